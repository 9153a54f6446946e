import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from onebest.errors import AudioError
from onebest.frontend import compute_features
from onebest.samples import Resampler, check_samples


def test_int16_is_float32():
    integers = np.array([-32768, -1, 0, 1, 16384, 32767], np.int16)
    np.testing.assert_array_equal(check_samples(integers), integers / np.float32(32768))


def test_samples_behind_a_header_of_odd_length():
    samples = np.linspace(-1, 1, 800, dtype=np.float32)
    received = np.frombuffer(b"\x01" + samples.tobytes(), np.float32, offset=1)
    np.testing.assert_array_equal(compute_features(check_samples(received)), compute_features(samples))


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([0.0, 0.1], "got list"),
        (np.zeros(3), "got float64"),
        (np.zeros(3, np.int32), "got int32"),
        (np.zeros((2, 3), np.float32), r"got the shape \(2, 3\)"),
        (np.ma.masked_array(np.zeros(3, np.float32)), "got MaskedArray"),
        (np.zeros((), np.float32), r"got the shape \(\)"),
        (np.array([0, 0, np.nan, 0], np.float32), "Sample 2 is nan"),
        (np.array([0, -np.inf, 0], np.float32), "Sample 1 is -inf"),
        (np.array([0, 20000, 0], np.float32), "got one of 20000. Divide by full scale"),
    ],
)
def test_what_is_no_audio_is_refused(samples, says):
    with pytest.raises(AudioError, match=says):
        check_samples(samples)


@pytest.mark.parametrize("rate", [0, -16000, 999, 10**6, float("nan")])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(AudioError, match="sample rate between"):
        Resampler(rate)


@given(st.sampled_from([8000, 11025, 22050, 44100, 48000]), st.lists(st.integers(0, 900), max_size=12))
def test_resampling_in_any_cutting_equals_the_whole(rate, sizes):
    samples = np.random.default_rng(0).standard_normal(sum(sizes) + 500).astype(np.float32)
    resampler = Resampler(rate)
    pieces = [resampler.accept(piece) for piece in np.split(samples, np.cumsum(sizes))]
    np.testing.assert_array_equal(
        np.concatenate([*pieces, resampler.finish()]), soxr.resample(samples, rate, 16000)
    )


def test_16_khz_passes_through():
    resampler, samples = Resampler(16000), np.ones(5, np.float32)
    assert resampler.accept(samples) is samples
    assert not len(resampler.finish())
