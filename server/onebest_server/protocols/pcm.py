"""Audio as the foreign protocols send it: interleaved channels, cut anywhere, even inside a sample.

Axis legend: S samples, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onebest.samples import HIGHEST_RATE, LOWEST_RATE

#: More channels than any recording that people speak on has.
MOST_CHANNELS = 16


class PcmReader:
    """Makes mono samples of bytes; what is left of a sample waits for the bytes that follow.

    Args:
        dtype: ``<i2`` or ``<f4``.
        channels: how many are interleaved; their mean is taken.
    """

    def __init__(self, dtype: str, channels: int = 1):
        self._dtype, self._channels = np.dtype(dtype), channels
        self._rest = b""

    def read(self, data: bytes) -> npt.NDArray[Any]:
        """Return the complete samples [S], of the reader's type; float32 where channels were mixed."""
        data = self._rest + data
        whole = len(data) - len(data) % (self._dtype.itemsize * self._channels)
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._dtype)
        if self._channels == 1:
            return samples
        scale = 32768 if self._dtype.kind == "i" else 1
        mixed = samples.reshape(-1, self._channels).mean(axis=1, dtype=np.float32)
        return np.asarray(mixed / np.float32(scale))


def is_rate(value: object) -> bool:
    """Return whether a value from outside is a sample rate that can be used."""
    return type(value) is int and LOWEST_RATE <= value <= HIGHEST_RATE
