"""What a stream has recognised: tokens, words and segments with their times, collected as they come.

``Transcript`` belongs to one stream and grows; a ``Result`` is what stood in it at one moment. Making one
costs nothing: its text and words are put together when they are asked for, so a stream of hours pays for its
chunks only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

from onebest.vocabulary import Speller, Vocabulary, starts_word

#: One encoder frame: a token is heard in one.
FRAME_MS = 40
FRAME_SECONDS = FRAME_MS / 1000


class Token(NamedTuple):
    """One token of the text and when it came.

    Attributes:
        token: what it adds to the text; a leading space starts a word.
        start: seconds from the stream's first sample to the encoder frame that it was heard in.
        confidence: the model's probability of this token in that frame, in [0, 1].
    """

    token: str
    start: float
    confidence: float

    @property
    def end(self) -> float:
        """Seconds to the end of that frame, 40 ms later."""
        return seconds(round(self.start * 1000 / FRAME_MS) + 1)


class Word(NamedTuple):
    """One word and when it was heard.

    Attributes:
        text: the word without spaces; in Chinese and Japanese a character.
        start: seconds from the stream's first sample to its first token.
        end: seconds to the end of its last token.
        confidence: the geometric mean of its tokens' probabilities.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """What was said between two endpoints.

    Attributes:
        text: the words, single-spaced as the model wrote them.
        words: the same with their times.
        tokens: what the text is made of, in order.
        start: seconds from the stream's first sample to the first word; where there is none, to the endpoint
            before.
        end: seconds to the end of the last word; where there is none, the same as ``start``.
    """

    text: str = ""
    words: tuple[Word, ...] = ()
    tokens: tuple[Token, ...] = ()
    start: float = 0.0
    end: float = 0.0


class _Closed(NamedTuple):
    """A finished segment, and what each of its tokens adds to the text."""

    segment: Segment
    pieces: Sequence[str]


class Result:
    """What a stream had recognised at one moment. Later results only add to it.

    Segments that ``Stream.take_segments`` handed out are in no later result: neither in its text nor in its
    tokens.

    Attributes:
        is_final: whether the stream is finished.
        duration: seconds of audio accepted.
    """

    def __init__(self, closed: Sequence[_Closed], running: _Running, is_final: bool, duration: float):
        self._closed, self._closed_count = closed, len(closed)
        self._running, self._running_count = running, len(running.tokens)
        self.is_final = is_final
        self.duration = duration

    @cached_property
    def text(self) -> str:
        """The words of all segments, single-spaced as the model wrote them."""
        return "".join(self._pieces).strip()

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """What the text is made of, in order."""
        parts = [*self.segments, self.partial]
        return tuple(token for part in parts for token in part.tokens)

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The words of the text with their times; the last may still grow.

        One that an endpoint cuts is whole here, and in two parts in the segments.
        """
        return _words(self.tokens, self._pieces)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """What was said up to the last endpoint; the end of a stream is one."""
        return tuple(closed.segment for closed in self._closed[: self._closed_count])

    @cached_property
    def partial(self) -> Segment:
        """What has been said since; empty in a final result."""
        return self._running.to_segment(self._running_count)

    def __eq__(self, other: object) -> bool:
        """Compare all that the two say."""
        return isinstance(other, Result) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        kind = "final" if self.is_final else "partial"
        return f"<{kind} result after {self.duration:.2f} s: {self.text!r}>"

    @property
    def _pieces(self) -> list[str]:
        closed = chain.from_iterable(closed.pieces for closed in self._closed[: self._closed_count])
        return [*closed, *self._running.pieces[: self._running_count]]

    def _all(self) -> tuple[object, ...]:
        return (self.segments, self.partial, self.is_final, self.duration)


class _Running:
    """The tokens since the last endpoint, and what each adds to the text. Both lists only grow."""

    def __init__(self, start: float, tokens: Sequence[Token] = (), pieces: Sequence[str] = ()):
        self.start = start
        self.tokens, self.pieces = list(tokens), list(pieces)

    def to_segment(self, count: int) -> Segment:
        """Return the first tokens as a segment."""
        tokens, pieces = self.tokens[:count], self.pieces[:count]
        words = _words(tokens, pieces)
        start, end = (words[0].start, words[-1].end) if words else (self.start, self.start)
        return Segment("".join(pieces).strip(), words, tuple(tokens), start, end)


class Transcript:
    """Collects what one stream recognises."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._speller = Speller(vocabulary)
        self._closed: list[_Closed] = []
        self._running = _Running(0.0)

    def add(self, token: int, frame: int, confidence: float) -> None:
        """Add a token that came at an encoder frame of the stream."""
        spelled = self._vocabulary.spell(token)
        self._running.tokens.append(Token(spelled, seconds(frame), confidence))
        self._running.pieces.append(self._speller.spell(token))

    def close(self, frame: int) -> None:
        """End the running segment, the next starts at this frame; one without tokens leaves nothing."""
        running, self._running = self._running, _Running(seconds(frame))
        if running.tokens:
            pieces = [*running.pieces[:-1], running.pieces[-1] + self._speller.finish()]
            closed = _Running(running.start, running.tokens, pieces)
            self._closed.append(_Closed(closed.to_segment(len(pieces)), pieces))

    def take(self) -> tuple[Segment, ...]:
        """Return the finished segments and forget them."""
        closed, self._closed = self._closed, []
        return tuple(segment for segment, _ in closed)

    def to_result(self, is_final: bool, duration: float) -> Result:
        """Return what stands here now."""
        return Result(self._closed, self._running, is_final, duration)


def seconds(frames: int) -> float:
    """Return the length of encoder frames in seconds."""
    return frames * FRAME_MS / 1000


def _words(tokens: Sequence[Token], pieces: Sequence[str]) -> tuple[Word, ...]:
    words: list[Word] = []
    starts = [index for index, pair in enumerate(pairwise(pieces), 1) if starts_word(*pair)]
    for first, last in pairwise([0, *starts, len(pieces)]):
        text = "".join(pieces[first:last]).strip()
        if text:
            logs = [math.log(max(token.confidence, 1e-30)) for token in tokens[first:last]]
            words.append(
                Word(text, tokens[first].start, tokens[last - 1].end, math.exp(sum(logs) / len(logs)))
            )
    return tuple(words)
