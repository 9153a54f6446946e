"""Augmentation of frames: levels measured in energy, masks within their limits, the original left alone."""

import numpy as np
import pytest
from tone_corpus import FloatArray

from onebest.frontend import SILENCE, compute_features
from onebest_training.augment import (
    change_speed,
    change_voice,
    disturb,
    mix_noise,
    spec_augment,
    warp_frequency,
)
from onebest_training.config import AugmentConfig

CLEAN = AugmentConfig()


def make_frames(frames: int = 120, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return (-6 + 3 * rng.standard_normal((frames, 80))).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def augment(
    features: FloatArray, config: AugmentConfig, noise: FloatArray | None, rng: np.random.Generator
) -> FloatArray:
    """One view of an utterance, as batches have it."""
    return disturb(change_voice(features, config, rng), config, noise, rng)


def db(energy: float) -> float:
    return float(10 * np.log10(energy))


def test_nothing_asked_changes_nothing() -> None:
    frames = make_frames()
    assert np.array_equal(augment(frames, CLEAN, make_frames(seed=1), rng()), frames)


@pytest.mark.parametrize("seed", range(4))
def test_everything_at_once_leaves_the_original_alone_and_follows_the_seed(seed: int) -> None:
    config = AugmentConfig(1.0, 1.0, (0.0, 10.0), 0.1, 1.0, 2, 10, 2.0, 10, 0.2)
    frames, noise = make_frames(), make_frames(40, seed=1)
    before = frames.copy(), noise.copy()
    changed = augment(frames, config, noise, rng(seed))
    assert np.array_equal(frames, before[0])
    assert np.array_equal(noise, before[1])
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    assert np.array_equal(augment(frames, config, noise, rng(seed)), changed)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_speed_changes_the_number_of_frames_and_keeps_the_ends(factor: float) -> None:
    ramp = np.repeat(np.linspace(-10, -2, 101, dtype=np.float32)[:, None], 80, 1)
    changed = change_speed(ramp, factor)
    assert len(changed) == round(101 / factor)
    np.testing.assert_allclose(changed[[0, -1]], ramp[[0, -1]])
    np.testing.assert_allclose(changed[:, 0], np.linspace(-10, -2, len(changed)), atol=1e-5)


def test_speed_stays_within_its_limit() -> None:
    lengths = [len(augment(make_frames(), AugmentConfig(speed=0.1), None, rng(seed))) for seed in range(50)]
    assert 120 / 1.1 - 1 <= min(lengths) < 115
    assert 125 < max(lengths) <= 120 / 0.9 + 1


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.2, 2.0])
def test_a_warp_moves_the_bins_by_its_factor_and_keeps_the_ends(factor: float) -> None:
    ramp = np.tile(np.arange(80, dtype=np.float32), (3, 1))
    warped = warp_frequency(ramp, factor)
    assert warped.dtype == np.float32
    below = int(0.875 * 79 * min(1.0, factor))
    np.testing.assert_allclose(warped[:, : below + 1], ramp[:, : below + 1] / factor, rtol=1e-5)
    np.testing.assert_allclose(warped[:, [0, -1]], ramp[:, [0, -1]])
    # Two straight lines that never turn back.
    steps = np.diff(warped[0])
    assert steps.min() > 0
    assert (np.abs(np.diff(steps)) > 1e-3).sum() <= 2


def test_a_factor_of_one_warps_nothing() -> None:
    assert np.array_equal(warp_frequency(make_frames(), 1.0), make_frames())


def test_a_warp_turns_one_tone_into_another() -> None:
    time = np.arange(16000) / 16000
    tone = compute_features(np.sin(2 * np.pi * 1000 * time).astype(np.float32))
    peak = int(tone[50].argmax())
    assert abs(int(warp_frequency(tone, 1.2)[50].argmax()) - 1.2 * peak) <= 1
    assert abs(int(warp_frequency(tone, 0.8)[50].argmax()) - 0.8 * peak) <= 1


def test_warps_stay_within_their_limit() -> None:
    ramp = np.arange(80, dtype=np.float32)[None] - 20
    at = [augment(ramp, AugmentConfig(warp=0.1), None, rng(seed))[0, 40] + 20 for seed in range(100)]
    assert 40 / 1.1 - 1e-3 <= min(at) < 37
    assert 43.5 < max(at) <= 40 / 0.9 + 1e-3


def test_volume_moves_all_frames_alike_down_to_silence() -> None:
    frames = make_frames()
    frames[:5] = SILENCE
    moves = []
    for seed in range(50):
        changed = augment(frames, AugmentConfig(volume=1.5), None, rng(seed))
        moves.append(float(np.median(changed - frames)))
        np.testing.assert_allclose(changed, np.maximum(frames + moves[-1], SILENCE), atol=1e-5)
    assert -1.5 <= min(moves) < -1.0
    assert 1.0 < max(moves) <= 1.5


@pytest.mark.parametrize("snr_db", [0.0, 8.0, 20.0])
def test_noise_is_mixed_at_the_ratio_of_energies(snr_db: float) -> None:
    frames, noise = make_frames(), make_frames(500, seed=1) - 2
    added = np.exp(mix_noise(frames, noise, snr_db, rng())) - np.exp(frames)
    assert db(np.exp(frames).mean() / added.mean()) == pytest.approx(snr_db, abs=0.05)


def test_features_of_mixed_samples_are_nearly_mixed_features() -> None:
    generator = rng()
    speech, noise = (level * generator.standard_normal(16000).astype(np.float32) for level in (0.2, 0.05))
    mixed = mix_noise(compute_features(speech), compute_features(noise), db(16.0), rng())
    assert np.abs(mixed.mean(0) - compute_features(speech + noise).mean(0)).max() < 0.25


def test_short_noise_is_repeated() -> None:
    frames, noise = make_frames(50), np.zeros((7, 80), np.float32)
    noise[3] = 6.0
    loud = mix_noise(frames, noise, -20.0, rng()).mean(1) > 1
    assert np.diff(loud.nonzero()[0]).tolist() == [7] * (loud.sum() - 1)


def test_noise_comes_as_often_as_asked() -> None:
    frames, noise = make_frames(20), make_frames(30, seed=1)
    config = AugmentConfig(noise_probability=0.3)
    changed = [not np.array_equal(augment(frames, config, noise, rng(seed)), frames) for seed in range(400)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("seed", range(8))
def test_a_telephone_keeps_its_band_and_little_else(seed: int) -> None:
    time, tones = np.arange(16000) / 16000, (100, 600, 2000, 3000, 4300, 6000)
    frames = compute_features(sum(np.sin(2 * np.pi * hz * time) for hz in tones).astype(np.float32) / 8)
    changed = augment(frames, AugmentConfig(band_probability=1.0), None, rng(seed))
    low, *kept, high, highest = (
        int(compute_features(np.sin(2 * np.pi * hz * time).astype(np.float32))[50].argmax()) for hz in tones
    )
    assert np.allclose(changed[50, kept], frames[50, kept])
    assert (changed[50, [high, highest]] < frames[50, [high, highest]] - 1).all()
    assert changed[50, low] <= frames[50, low]
    assert changed.min() >= SILENCE


def test_most_telephones_cut_the_lowest_bins() -> None:
    frames = make_frames()
    config = AugmentConfig(band_probability=1.0)
    lowest = [augment(frames, config, None, rng(seed))[:, 0].mean() for seed in range(200)]
    assert np.mean(np.array(lowest) < frames[:, 0].mean()) == pytest.approx(0.7, abs=0.1)


def widths(mask: np.ndarray) -> list[int]:
    """The lengths of the runs of true values."""
    edges = np.diff(np.concatenate([[0], mask.astype(int), [0]]))
    return ((edges == -1).nonzero()[0] - (edges == 1).nonzero()[0]).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_one_band_of_bins_gets_its_mean(seed: int) -> None:
    frames = make_frames()
    changed = spec_augment(frames, AugmentConfig(frequency_masks=1, frequency_width=12), rng(seed))
    masked = (changed != frames).all(0)
    assert (changed != frames).any(0).tolist() == masked.tolist()
    assert sum(widths(masked)) <= 12
    assert len(widths(masked)) <= 1
    np.testing.assert_allclose(changed[:, masked], np.broadcast_to(frames.mean(0), (120, 80))[:, masked])


@pytest.mark.parametrize("seed", range(10))
def test_stretches_of_time_get_the_mean_of_each_bin(seed: int) -> None:
    frames = make_frames(400)
    changed = spec_augment(frames, AugmentConfig(time_mask_rate=0.5, time_width=9), rng(seed))
    masked = (changed != frames).all(1)
    assert (changed != frames).any(1).tolist() == masked.tolist()
    assert masked.sum() <= 9 * 12
    np.testing.assert_allclose(changed[masked], np.broadcast_to(frames.mean(0), (masked.sum(), 80)))


def test_masks_of_time_come_by_the_second() -> None:
    config = AugmentConfig(time_mask_rate=0.5, time_width=20)
    shares = [(spec_augment(make_frames(400), config, rng(s)) != make_frames(400)).mean() for s in range(100)]
    # Two masks of ten frames on average in four seconds, a few of which overlap.
    assert np.mean(shares) == pytest.approx(20 / 400, abs=0.012)


def test_the_shortest_utterance_survives() -> None:
    config = AugmentConfig(1.0, 1.0, (0.0, 10.0), 0.1, 1.0, 2, 80, 50.0, 10)
    assert augment(make_frames(1), config, make_frames(1), rng()).shape == (1, 80)
