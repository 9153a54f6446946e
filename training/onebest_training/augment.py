"""Augmentation of log-mel frames, anew at every pass; energies add, so noise is mixed in the energy domain.

Axis legend: F feature frames (10 ms), 80 mel bins.
"""

from __future__ import annotations

import numpy as np

from onebest.frontend import NUM_BINS, SAMPLE_RATE, SILENCE, SPEC, FloatArray
from onebest_training.config import AugmentConfig
from onebest_training.features import LOG_MEL

#: Nats of energy in a decibel.
NATS_PER_DB = float(np.log(10.0) / 10.0)
#: Where a telephone's band may begin, and how often it begins above the lowest bin; where it may end. In Hz.
TELEPHONE_LOW_HZ, TELEPHONE_LOW_SHARE, TELEPHONE_HIGH_HZ = (150.0, 400.0), 0.7, (3200.0, 4000.0)
#: Outside it, by how much the energy falls from bin to bin, and how far its floor is above silence, in nats.
TELEPHONE_FALL, TELEPHONE_FLOOR = (1.0, 5.0), (0.0, 4.0)
#: Share of the bins over which a warp is one straight line; a second one leads from there to the top.
WARP_KNEE = 0.875


def change_voice(features: FloatArray, config: AugmentConfig, rng: np.random.Generator) -> FloatArray:
    """Return features [F, 80] of a faster or slower, higher or lower voice: how long it speaks changes.

    Args:
        features: a clean utterance.
        config: what may happen and how strongly.
        rng: decides everything.
    """
    if config.speed:
        features = change_speed(features, 1.0 + config.speed * rng.uniform(-1.0, 1.0))
    if config.warp:
        features = warp_frequency(features, 1.0 + config.warp * rng.uniform(-1.0, 1.0))
    return features


def disturb(
    features: FloatArray, config: AugmentConfig, noise: FloatArray | None, rng: np.random.Generator
) -> FloatArray:
    """Return an altered copy of features [F, 80]: level, noise, telephone, masks; their length stays.

    Args:
        features: an utterance.
        config: what may happen, how often and how strongly.
        noise: frames [any, 80] of a background sound, used when the draw says so.
        rng: decides everything.
    """
    if config.volume:
        features = np.maximum(
            features + np.float32(config.volume * rng.uniform(-1.0, 1.0)), np.float32(SILENCE)
        )
    if noise is not None and rng.random() < config.noise_probability:
        features = mix_noise(features, noise, rng.uniform(*config.noise_snr_db), rng)
    if rng.random() < config.band_probability:
        features = pass_telephone(features, rng)
    return spec_augment(features, config, rng)


def change_speed(features: FloatArray, factor: float) -> FloatArray:
    """Return features played ``factor`` times as fast, by linear interpolation of frames; pitch stays."""
    count = max(1, round(len(features) / factor))
    at = np.linspace(0.0, len(features) - 1.0, count, dtype=np.float32)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, len(features) - 1)
    share = (at - low)[:, None]
    return np.asarray(features[low] * (1.0 - share) + features[high] * share, np.float32)


def warp_frequency(features: FloatArray, factor: float) -> FloatArray:
    """Return features whose bins have moved up by ``factor``, as from a shorter vocal tract; the ends stay.

    Vocal tract length perturbation (Jaitly and Hinton 2013), on the mel axis: bin b holds what stood at
    b / factor, up to a knee from which on a straight line leads to the top bin.
    """
    top = features.shape[1] - 1.0
    knee = WARP_KNEE * top * min(1.0, factor)
    at = np.interp(np.arange(features.shape[1]), [0.0, knee, top], [0.0, knee / factor, top])
    low = np.minimum(at.astype(np.int64), features.shape[1] - 2)
    share = (at - low).astype(np.float32)
    warped: FloatArray = features[:, low] * (1 - share) + features[:, low + 1] * share
    return warped


def mix_noise(features: FloatArray, noise: FloatArray, snr_db: float, rng: np.random.Generator) -> FloatArray:
    """Return features with the noise, repeated as needed from a random start.

    ``snr_db`` is the ratio of the mean energies of speech and noise in dB.
    """
    start = int(rng.integers(len(noise)))
    noise = np.take(noise, np.arange(start, start + len(features)), axis=0, mode="wrap")
    ratio = np.log(np.exp(features).mean()) - np.log(np.exp(noise).mean())
    mixed: FloatArray = np.logaddexp(features, noise + np.float32(ratio - snr_db * NATS_PER_DB))
    return mixed.astype(np.float32)


def pass_telephone(features: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return features [F, 80] as a telephone passes them on: outside its band they fall, down to a floor."""
    bins = np.arange(features.shape[1])
    low = _bin_at(rng.uniform(*TELEPHONE_LOW_HZ)) if rng.random() < TELEPHONE_LOW_SHARE else 0.0
    outside = np.maximum(low - bins, 0.0) + np.maximum(bins - _bin_at(rng.uniform(*TELEPHONE_HIGH_HZ)), 0.0)
    fallen = features - (rng.uniform(*TELEPHONE_FALL) * outside).astype(np.float32)
    passed: FloatArray = np.maximum(fallen, np.float32(SILENCE + rng.uniform(*TELEPHONE_FLOOR)))
    return passed


def _bin_at(hertz: float) -> float:
    """Return the bin in whose middle a frequency lies, fractions between two middles."""
    lowest, highest = _mel(SPEC.low_freq_hz), _mel(SAMPLE_RATE / 2 + SPEC.high_freq_hz)
    return (_mel(hertz) - lowest) / (highest - lowest) * (NUM_BINS + 1) - 1.0


def _mel(hertz: float) -> float:
    """Return a frequency on the mel scale, as Kaldi has it."""
    return float(1127.0 * np.log1p(hertz / 700.0))


def spec_augment(
    features: FloatArray, config: AugmentConfig, rng: np.random.Generator, rate: int = LOG_MEL.rate
) -> FloatArray:
    """Return features with bands of bins and of time set to their mean (SpecAugment, arXiv 1904.08779).

    Args:
        features: log-mel frames [F, 80], or what a pre-trained encoder makes of them [F, any].
        config: how many masks, and their widths.
        rng: decides everything.
        rate: frames a second.
    """
    frames, bins = features.shape
    time_masks = rng.poisson(config.time_mask_rate * frames / rate) if config.time_mask_rate else 0
    if not (config.frequency_masks or time_masks):
        return features
    features, mean = features.copy(), features.mean(0)
    widest = config.time_width * rate // LOG_MEL.rate
    for _ in range(config.frequency_masks):
        width = int(rng.integers(config.frequency_width + 1))
        first = int(rng.integers(bins - width + 1))
        features[:, first : first + width] = mean[first : first + width]
    for _ in range(time_masks):
        width = int(rng.integers(min(widest, frames) + 1))
        first = int(rng.integers(frames - width + 1))
        features[first : first + width] = mean
    return features
