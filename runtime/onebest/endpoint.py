"""Endpoints: where a stream's text is cut into segments, by the silence after speech and by length.

The three rules and their values are Kaldi's, as sherpa-onnx has them. Silence is where the search found no
token. Rules are applied to each encoder frame, so where a segment ends depends neither on the chunk nor on
the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onebest.results import FRAME_MS


class EndpointRule(NamedTuple):
    """An endpoint is where a segment is so long and ends in so much silence.

    Attributes:
        silence: seconds without a token, at the end.
        length: seconds of the segment, the silence being part of it.
        needs_speech: whether the segment must have a token.
    """

    silence: float = 0.0
    length: float = 0.0
    needs_speech: bool = False


#: 2.4 s of silence; 1.2 s of silence after speech; 20 s of anything.
DEFAULT_RULES = (
    EndpointRule(silence=2.4),
    EndpointRule(silence=1.2, needs_speech=True),
    EndpointRule(length=20.0),
)


class Endpointer:
    """Says behind which frames of one stream a segment ends."""

    def __init__(self, rules: Sequence[EndpointRule]):
        self._rules = [(_frames(rule.silence), _frames(rule.length), rule.needs_speech) for rule in rules]
        self._length = self._silence = 0
        self._spoke = False

    def take(self, speaks: bool) -> bool:
        """Take the next frame, which has a token or not; return whether the segment ends behind it."""
        self._length += 1
        self._silence = 0 if speaks else self._silence + 1
        self._spoke |= speaks
        ends = any(
            self._silence >= silence and self._length >= length and self._spoke >= needs_speech
            for silence, length, needs_speech in self._rules
        )
        if ends:
            self._length = self._silence = 0
            self._spoke = False
        return ends


def _frames(seconds: float) -> int:
    return round(seconds * 1000 / FRAME_MS)
