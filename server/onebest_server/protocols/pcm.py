"""Audio as the foreign protocols send it: interleaved channels, cut anywhere, even inside a sample.

Telephones' samples are bytes on a scale that is finer near zero: ITU-T G.711, mu-law and A-law.

Axis legend: S samples, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onebest.samples import HIGHEST_RATE, LOWEST_RATE

#: More channels than any recording that people speak on has.
MOST_CHANNELS = 16


def _mu_law() -> npt.NDArray[np.int16]:
    """Return the samples [256] that the bytes of mu-law stand for."""
    code = 255 - np.arange(256)
    size = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return np.where(code & 128, -size, size).astype(np.int16)


def _a_law() -> npt.NDArray[np.int16]:
    """Return the samples [256] that the bytes of A-law stand for."""
    code = np.arange(256) ^ 0x55
    exponent, step = code >> 4 & 7, ((code & 15) << 4) + 8
    size = np.where(exponent, step + 256 << np.maximum(exponent - 1, 0), step)
    return np.where(code & 128, size, -size).astype(np.int16)


_LAWS = {"mulaw": _mu_law(), "alaw": _a_law()}


class PcmReader:
    """Makes mono samples of bytes; what is left of a sample waits for the bytes that follow.

    Args:
        encoding: ``<i2``, ``<f4``, ``mulaw`` or ``alaw``.
        channels: how many are interleaved; their mean is taken.
    """

    def __init__(self, encoding: str, channels: int = 1):
        self._law = _LAWS.get(encoding)
        self._dtype = np.dtype(encoding if self._law is None else "u1")
        self._channels = channels
        self._rest = b""

    def read(self, data: bytes) -> npt.NDArray[Any]:
        """Return the complete samples [S], int16 or float32; float32 where channels were mixed."""
        data = self._rest + data
        whole = len(data) - len(data) % (self._dtype.itemsize * self._channels)
        self._rest = data[whole:]
        samples: npt.NDArray[Any] = np.frombuffer(data[:whole], self._dtype)
        if self._law is not None:
            samples = self._law[samples]
        if self._channels == 1:
            return samples
        scale = 32768 if samples.dtype.kind == "i" else 1
        mixed = samples.reshape(-1, self._channels).mean(axis=1, dtype=np.float32)
        return np.asarray(mixed / np.float32(scale))


def is_rate(value: object) -> bool:
    """Return whether a value from outside is a sample rate that can be used."""
    return type(value) is int and LOWEST_RATE <= value <= HIGHEST_RATE
