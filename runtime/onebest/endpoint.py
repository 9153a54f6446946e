"""Endpoints: where a stream's text is cut into segments, by the silence after speech and by length.

The three rules and their values are Kaldi's, as sherpa-onnx has them. Silence is where the search found no
token. Rules are applied to each encoder frame, so where a segment ends depends neither on the chunk nor on
the batch. A rule of length alone waits for the end of a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onebest.errors import ConfigError
from onebest.results import FRAME_MS

#: Frames without a token behind which a word is over, and those that a rule of length waits for that at most.
_WORD_GAP_FRAMES, _LONGEST_WAIT_FRAMES = 10, 25
#: Nobody waits longer for an endpoint.
_LONGEST_SECONDS = 1e6


class EndpointRule(NamedTuple):
    """An endpoint is where a segment is so long and ends in so much silence.

    Attributes:
        silence: seconds without a token, at the end.
        length: seconds of the segment, the silence being part of it; without a silence up to a second more,
            until a word ends.
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
    """Says where in one stream a segment ends.

    Raises:
        ConfigError: a rule's seconds are no number, or below 0.
    """

    def __init__(self, rules: Sequence[EndpointRule]):
        self._rules = [(_frames(rule.silence), _frames(rule.length), rule.needs_speech) for rule in rules]
        self._begin()

    def _begin(self) -> None:
        self._length = self._silence = 0
        self._spoke = False

    @property
    def silence_frames(self) -> int:
        """Encoder frames of silence behind which no rule has more to wait for."""
        return max(silence for silence, _, _ in self._rules)

    def ends_before(self, starts_word: bool) -> bool:
        """Whether the segment ends before the next frame, which has a token that begins a word or not."""
        ends = starts_word and self._meets(wait=0, gap=0)
        if ends:
            self._begin()
        return ends

    def take(self, speaks: bool) -> bool:
        """Take the next frame, which has a token or not; return whether the segment ends behind it."""
        self._length += 1
        self._silence = 0 if speaks else self._silence + 1
        self._spoke |= speaks
        ends = self._meets(wait=_LONGEST_WAIT_FRAMES, gap=_WORD_GAP_FRAMES)
        if ends:
            self._begin()
        return ends

    def _meets(self, wait: int, gap: int) -> bool:
        """Whether a rule is met; one of length alone so many frames later, or in a gap between words."""
        return any(
            self._silence >= silence
            and self._length >= length + (0 if silence or self._silence >= gap else wait)
            and self._spoke >= needs_speech
            for silence, length, needs_speech in self._rules
        )


def _frames(seconds: float) -> int:
    if not 0 <= seconds <= _LONGEST_SECONDS:
        raise ConfigError(f"An endpoint rule has {seconds} seconds. Give it a number of 0 or more.")
    return round(seconds * 1000 / FRAME_MS)
