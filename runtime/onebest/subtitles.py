"""Words with times -> subtitles, short enough to be read while they are heard, spelled as SRT or WebVTT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from onebest.results import Word
from onebest.vocabulary import is_unspaced

#: Two lines of 42 characters and six seconds: what the usual guidelines for subtitles allow.
LINE_CHARACTERS, CUE_LINES, CUE_SECONDS = 42, 2, 6.0
#: How long a cue stays after its last word, unless the next one comes.
LINGER_SECONDS = 1.0


@dataclass(frozen=True)
class Cue:
    """One subtitle.

    Attributes:
        text: one or two lines.
        start: seconds to when it appears.
        end: seconds to when it vanishes.
    """

    text: str
    start: float
    end: float


def make_cues(words: Sequence[Word], until: float = inf) -> list[Cue]:
    """Return the words as cues that overlap neither one another nor what begins at ``until`` seconds."""
    groups = list(_group(words))
    starts = [*(group[0].start for group in groups), until]
    return [
        Cue("\n".join(_wrap(group)), start, min(group[-1].end + LINGER_SECONDS, next_start))
        for group, start, next_start in zip(groups, starts[:-1], starts[1:], strict=True)
    ]


def format_srt(number: int, cue: Cue) -> str:
    """Return a cue as a block of an SRT file; the first is number 1."""
    return f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n\n"


def format_vtt(cue: Cue) -> str:
    """Return a cue as a block of a WebVTT file."""
    text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n\n"


def _group(words: Sequence[Word]) -> Iterator[list[Word]]:
    group: list[Word] = []
    for word in words:
        if group and not _fits(group, word):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _fits(group: Sequence[Word], word: Word) -> bool:
    """Whether a cue may have this word too: it is short enough then, and the word comes while it stands."""
    return (
        len(_wrap([*group, word])) <= CUE_LINES
        and word.end - group[0].start <= CUE_SECONDS
        and word.start - group[-1].end <= LINGER_SECONDS
    )


def _wrap(words: Sequence[Word]) -> list[str]:
    lines = [words[0].text]
    for word in words[1:]:
        added = _space(lines[-1], word.text) + word.text
        if len(lines[-1]) + len(added) <= LINE_CHARACTERS:
            lines[-1] += added
        else:
            lines.append(word.text)
    return lines


def _space(before: str, after: str) -> str:
    return "" if is_unspaced(before[-1:]) and is_unspaced(after) else " "


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
