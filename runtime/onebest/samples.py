"""Samples of any rate, float32 or int16 -> checked float32 samples at 16 kHz.

Axis legend: S samples.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from onebest.errors import AudioError
from onebest.frontend import SAMPLE_RATE

FloatArray = npt.NDArray[np.float32]

LOWEST_RATE, HIGHEST_RATE = 1000, 768000
#: Float samples may exceed 1 a little; beyond this they are integers that nobody scaled.
HIGHEST_LEVEL = 16.0
_INT16_SCALE = np.float32(1 / 32768)


def check_samples(samples: npt.NDArray[Any]) -> FloatArray:
    """Return samples [S], float32 or int16, as float32 in [-1, 1].

    Raises:
        AudioError: another type or shape, NaN, infinity, or a level that no float32 audio has.
    """
    # Masked arrays alone have a mask: their class would have to be imported here, in the middle of a stream.
    is_array = isinstance(samples, np.ndarray) and not hasattr(samples, "mask")
    if not is_array or samples.dtype not in (np.float32, np.int16):
        found = samples.dtype if is_array else type(samples).__name__
        raise AudioError(f"Expected a NumPy array of float32 in [-1, 1] or int16, got {found}. Convert it.")
    if samples.ndim != 1:
        raise AudioError(f"Expected mono samples of one axis, got the shape {samples.shape}. Mix them.")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) * _INT16_SCALE
    peak = np.abs(samples).max(initial=0)
    if not np.isfinite(peak):
        at = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(f"Sample {at} is {samples[at]}, expected finite numbers. Repair what made them.")
    if peak > HIGHEST_LEVEL:
        raise AudioError(
            f"Expected float32 samples in [-1, 1], got one of {peak:g}. "
            "Divide by full scale (32768 for 16 bits)."
        )
    return np.require(samples, requirements="A")  # a part of a message may begin at an odd byte


class Resampler:
    """Samples of a given rate -> samples at 16 kHz, as they come; the cutting makes no difference.

    Raises:
        AudioError: no recogniser could use such a rate.
    """

    def __init__(self, sample_rate: int):
        is_number = isinstance(sample_rate, Real)
        if not is_number or not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise AudioError(
                f"Expected a sample rate between {LOWEST_RATE} and {HIGHEST_RATE} Hz, got "
                f"{sample_rate!r}. Give the rate of the samples as a number."
            )
        self.sample_rate = sample_rate
        self._resampler = None
        if sample_rate != SAMPLE_RATE:
            import soxr  # takes longer to load than 16 kHz audio has reason to wait

            self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, "float32")

    def accept(self, samples: FloatArray) -> FloatArray:
        """Take the next samples [S] and return those at 16 kHz that they complete."""
        if self._resampler is None:
            return samples
        resampled: FloatArray = self._resampler.resample_chunk(samples)
        return resampled

    def finish(self) -> FloatArray:
        """Return the samples at 16 kHz that were held back."""
        nothing = np.zeros(0, np.float32)
        if self._resampler is None:
            return nothing
        rest: FloatArray = self._resampler.resample_chunk(nothing, last=True)
        return rest
