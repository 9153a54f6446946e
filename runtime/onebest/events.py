"""What comes out of a ``Listener``: text that may still grow, text that stays, and notices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onebest.results import Word

NoticeKind = Literal["listening", "silent", "dropped", "behind", "lost", "back", "connection", "output"]


@dataclass(frozen=True)
class Text:
    """Something that was said.

    Attributes:
        text: the words, single-spaced.
        start: seconds from the first sample that was recorded to the first word.
        end: seconds to the end of the last word.
        words: the same with their times.
    """

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()


class PartialText(Text):
    """What has been said since the last ``FinalText``. The next partial or final text takes its place."""


class FinalText(Text):
    """What was said up to a pause; it does not change any more."""


@dataclass(frozen=True)
class Notice:
    """Something that happened beside the text.

    Attributes:
        kind: ``listening``: recording has begun. ``silent``: the device gives nothing but zeros. ``dropped``:
            audio was lost. ``behind``: recognition is late. ``lost``, ``back``: the device has gone, or was
            found again. ``connection``: the same of a server. ``output``: text cannot be written any more.
        message: the same for a person.
    """

    kind: NoticeKind
    message: str


Event = PartialText | FinalText | Notice
