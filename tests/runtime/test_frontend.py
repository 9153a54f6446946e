import kaldi_native_fbank as knf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebest.errors import ModelError
from onebest.frontend import NUM_BINS, SILENCE, SPEC, FrontEnd, check_spec, compute_features


def reference(samples):
    """What kaldi-native-fbank gives when its options are written out here again."""
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = 16000
    options.frame_opts.snip_edges = False
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = -400
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16000, samples.tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(index).copy() for index in range(fbank.num_frames_ready)]
    return np.array(frames, np.float32).reshape(-1, 80)


def noise(length, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)


@pytest.mark.parametrize("length", [1, 79, 80, 81, 159, 160, 239, 240, 279, 280, 281, 399, 400, 401, 9999])
def test_equal_to_kaldi_native_fbank(length):
    samples = noise(length)
    np.testing.assert_array_equal(compute_features(samples), reference(samples))


@given(st.lists(st.integers(0, 700), max_size=12), st.integers(1, 4000))
def test_cutting_makes_no_difference(sizes, rest):
    samples = noise(sum(sizes) + rest)
    front_end = FrontEnd()
    pieces = np.split(samples, np.cumsum(sizes))
    frames = np.concatenate([*(front_end.accept(piece) for piece in pieces), front_end.finish()])
    np.testing.assert_array_equal(frames, compute_features(samples))


def test_digital_silence():
    frames = compute_features(np.zeros(16000, np.float32))
    assert frames.shape == (100, NUM_BINS)
    np.testing.assert_allclose(frames, SILENCE, atol=1e-6)


def test_nothing_gives_no_frames():
    assert compute_features(np.zeros(0, np.float32)).shape == (0, NUM_BINS)
    assert FrontEnd().accept(np.zeros(0, np.float32)).shape == (0, NUM_BINS)


def test_another_specification_is_refused():
    check_spec(SPEC.to_dict(), "model")
    with pytest.raises(ModelError, match=r"model was made .*high_freq_hz: 0 instead of -400"):
        check_spec({**SPEC.to_dict(), "high_freq_hz": 0}, "model")
