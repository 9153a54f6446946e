"""Audio that was sent and may have to be sent again.

Axis legend: S samples. Offsets count samples from the first that was ever appended.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class Outbox:
    """Audio from some offset on, until it is no longer needed."""

    def __init__(self) -> None:
        self._pieces: deque[FloatArray] = deque()
        self.first = self.end = 0

    def append(self, samples: FloatArray) -> None:
        """Add samples [S] at the end."""
        if len(samples):
            self._pieces.append(samples)
            self.end += len(samples)

    def forget(self, before: int) -> None:
        """Drop the pieces that lie before an offset."""
        while self._pieces and self.first + len(self._pieces[0]) <= before:
            self.first += len(self._pieces.popleft())

    def read(self, start: int, length: int) -> FloatArray:
        """Return up to ``length`` samples from an offset on that is not forgotten."""
        parts, offset = [], self.first
        for piece in self._pieces:
            part = piece[max(0, start - offset) : max(0, start + length - offset)]
            offset += len(piece)
            parts.append(part)
            if offset >= start + length:
                break
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)
