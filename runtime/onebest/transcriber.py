"""What recognises one recording, as a listener needs it: a model here, or (``remote``) a server.

Axis legend: S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onebest.events import Event, FinalText, PartialText
from onebest.recognizer import Recognizer

FloatArray = npt.NDArray[np.float32]


class Transcriber(Protocol):
    """What recognises one uninterrupted recording; the times of its events are seconds of that recording."""

    def accept(self, samples: FloatArray) -> Iterable[Event]:
        """Take the next samples [S] and return what there is to say now."""
        ...

    def finish(self) -> Iterable[Event]:
        """Say that there are no more samples and return what is left to say."""
        ...

    def close(self) -> None:
        """Give back what this holds; finished or not, it is not used any more."""
        ...


class LocalTranscriber:
    """A stream of a recognizer on this machine.

    Args:
        recognizer: the model.
        sample_rate: the rate of the samples in Hz.
        hotwords: words and phrases to expect.
    """

    def __init__(self, recognizer: Recognizer, sample_rate: int, hotwords: Sequence[str] = ()):
        self._stream = recognizer.stream(sample_rate, endpoints=True, hotwords=hotwords)
        self._partial = ""

    def accept(self, samples: FloatArray) -> Iterator[Event]:
        """Take the next samples [S] and return what there is to say now."""
        self._stream.accept(samples)
        yield from self._take_finals()
        partial = self._stream.result.partial
        if partial.text != self._partial:
            self._partial = partial.text
            yield PartialText(partial.text, partial.start, partial.end, partial.words)

    def finish(self) -> Iterator[Event]:
        """Say that there are no more samples and return what is left to say."""
        self._stream.finish()
        yield from self._take_finals()

    def close(self) -> None:
        """Do nothing: there is only memory to give back."""

    def _take_finals(self) -> Iterator[Event]:
        for segment in self._stream.take_segments():
            self._partial = ""
            yield FinalText(segment.text, segment.start, segment.end, segment.words)
