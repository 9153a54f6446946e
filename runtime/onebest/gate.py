"""The voice gate: keeps long silence from the encoder without a trace in the text.

The encoder sees the first seconds of a silence. What follows waits; of a long wait only the last seconds are
kept, and the encoder sees those when a sound comes back. So its memory holds what it would hold anyway. What
is left out is a multiple of the period of the model's positions, for a model that counts them.

Axis legend: F feature frames (10 ms).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from onebest.errors import ConfigError

#: The loudest log-mel bin that white noise of full scale (an RMS of 1) gives, but for rare frames.
_FULL_SCALE = 9.5
#: Feature frames of silence that the encoder sees at each end, at least.
SHORTEST_HOLD_FRAMES = 600


class VoiceGate:
    """Listens to one stream and counts its feature frames.

    Args:
        silence_dbfs: a frame is silent if it is nowhere louder than white noise of this RMS, in decibels of
            full scale.
        memory_frames: feature frames that the encoder remembers.
        unit_frames: what is left out is a multiple of this.

    Raises:
        ConfigError: the level is not a number.
    """

    def __init__(self, silence_dbfs: float, memory_frames: int, unit_frames: int):
        if math.isnan(silence_dbfs):
            raise ConfigError(f"silence_dbfs is {silence_dbfs}. Give a level in decibels, -70 for example.")
        self._level = _FULL_SCALE + silence_dbfs * math.log(10) / 10
        self._hold_frames = max(memory_frames, SHORTEST_HOLD_FRAMES)
        self._unit_frames = unit_frames
        self._arrived = self._passed = self._last_sound = 0

    @property
    def is_shut(self) -> bool:
        """Whether all that waits is silent, and what the encoder saw last for long enough."""
        return self._passed - self._last_sound >= self._hold_frames

    @property
    def spared_frames(self) -> int:
        """How many of the frames that wait may be left out, the oldest ones."""
        more = self._arrived - self._passed - self._hold_frames
        return max(more, 0) // self._unit_frames * self._unit_frames if self.is_shut else 0

    def arrive(self, frames: npt.NDArray[np.float32]) -> None:
        """Take note of new features [F, 80]."""
        loud = np.flatnonzero(frames.max(1) > self._level)
        if len(loud):
            self._last_sound = self._arrived + int(loud[-1]) + 1
        self._arrived += len(frames)

    def move(self, frames: int, spoke: bool) -> None:
        """Take note that the stream has moved past frames, and whether a token came out."""
        self._passed += frames
        if spoke:
            self._last_sound = max(self._last_sound, self._passed)
