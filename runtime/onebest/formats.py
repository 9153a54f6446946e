"""A final result of a file -> the text of it: plain, one JSON object, SRT or WebVTT subtitles."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from onebest.results import Result
from onebest.subtitles import format_srt, format_vtt, make_cues


def to_plain(name: str, result: Result) -> str:
    """Return the words on one line."""
    return result.text + "\n"


def to_json(name: str, result: Result) -> str:
    """Return one line: the file's name, its length, its text, its words and its tokens, times in seconds."""
    content: dict[str, Any] = {
        "file": name,
        "duration": round(result.duration, 3),
        "text": result.text,
        "words": [
            {
                "word": word.text,
                "start": round(word.start, 2),
                "end": round(word.end, 2),
                "confidence": round(word.confidence, 3),
            }
            for word in result.words
        ],
        "tokens": [
            {
                "token": token.token,
                "start": round(token.start, 2),
                "end": round(token.end, 2),
                "confidence": round(token.confidence, 3),
            }
            for token in result.tokens
        ],
    }
    return json.dumps(content) + "\n"


def to_srt(name: str, result: Result) -> str:
    """Return the words as SRT subtitles."""
    return "".join(format_srt(number, cue) for number, cue in enumerate(make_cues(result.words), 1))


def to_vtt(name: str, result: Result) -> str:
    """Return the words as WebVTT subtitles."""
    return "WEBVTT\n\n" + "".join(map(format_vtt, make_cues(result.words)))


#: By name: how a file's name and result are written, and the ending of a file that holds it.
FORMATS: dict[str, tuple[Callable[[str, Result], str], str]] = {
    "plain": (to_plain, ".txt"),
    "json": (to_json, ".json"),
    "srt": (to_srt, ".srt"),
    "vtt": (to_vtt, ".vtt"),
}
