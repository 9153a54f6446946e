"""Vosk's protocol: exactly one reply to each message of audio, to ``{"eof" : 1}`` and to ``{"reset" : 1}``.

Client: first, if it likes, ``{"config": {"sample_rate", "words", "phrase_list", ...}}``, which has no
reply; then binary messages, int16 little-endian mono. Server: ``{"partial"}`` while a segment runs,
``{"text"}`` with ``"result"`` (its words) once it ended, in a list of ``"alternatives"`` where some are
asked for; after ``eof`` the rest, and the connection is closed. ``reset`` completes the text and begins
anew; another rate counts from there on. Times go on over both.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from onebest.results import Segment
from onebest.samples import HIGHEST_RATE, LOWEST_RATE
from onebest_server.protocol import (
    INVALID_DATA,
    UNSUPPORTED,
    Accepted,
    Action,
    Audio,
    Close,
    End,
    Event,
    Failed,
    Finished,
    Handshake,
    Message,
    Open,
    Progress,
    Protocol,
    ProtocolError,
    Send,
    SetHotwords,
    fit_hotwords,
)
from onebest_server.protocols.pcm import PcmReader

DEFAULT_RATE = 8000
#: In a list of phrases it stands for all other words, which a hotword does not exclude.
UNKNOWN = "[unk]"


class VoskProtocol(Protocol):
    """One client of Vosk."""

    def __init__(self, handshake: Handshake):
        super().__init__(handshake)
        self._open = Open(DEFAULT_RATE, lenient=True)
        self._words, self._has_alternatives = True, False
        self._pcm = PcmReader("<i2")
        self._is_open = self._eof = False
        self._segments: deque[Segment] = deque()
        self._endings: deque[Close | None] = deque()
        self._before_seconds = 0.0

    def receive(self, message: Message) -> Iterable[Action]:
        """Take audio, a configuration, ``eof`` or ``reset``; what comes behind ``eof`` is passed over."""
        if self._eof:
            return ()
        if isinstance(message, bytes):
            return [*self._begin(), Audio(self._pcm.read(message), reply=True)]
        fields = _read_object(message)
        if "config" in fields:
            return self._configure(fields["config"])
        if not fields.get("eof") and not fields.get("reset"):
            raise ProtocolError(UNSUPPORTED, "Expected config, eof, reset or binary int16 samples.")
        self._eof = bool(fields.get("eof"))
        begin = self._begin()
        self._is_open = False
        self._endings.append(Close() if self._eof else None)
        return [*begin, End()]

    def _begin(self) -> list[Action]:
        if self._is_open:
            return []
        self._is_open, self._pcm = True, PcmReader("<i2")
        return [self._open]

    def _configure(self, config: Any) -> list[Action]:
        """Set what a configuration names; a rate counts from the next ``Open`` on."""
        if not isinstance(config, dict):
            raise ProtocolError(INVALID_DATA, "Expected config to be an object.")
        if "sample_rate" in config:
            self._open = replace(self._open, sample_rate=_read_rate(config["sample_rate"]))
        self._words = bool(config.get("words", self._words))
        if "max_alternatives" in config:
            most = config["max_alternatives"]
            self._has_alternatives = isinstance(most, (int, float)) and most > 0
        if "phrase_list" not in config:
            return []
        phrases = config["phrase_list"] or []
        if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
            raise ProtocolError(INVALID_DATA, "Expected phrase_list to be a list of texts.")
        hotwords = fit_hotwords(
            (phrase for phrase in phrases if phrase != UNKNOWN), self.handshake.limits.hotwords
        )
        self._open = replace(self._open, hotwords=hotwords)
        return [SetHotwords(hotwords, lenient=True)] if self._is_open else []

    def handle(self, event: Event) -> Iterable[Action]:
        """Answer ``Accepted`` and ``Finished``, each with one message."""
        if isinstance(event, Failed):
            return [Close(event.code, event.reason)]
        if not isinstance(event, Progress):
            return ()
        self._segments += event.segments
        if isinstance(event, Accepted):
            ended = self._segments.popleft() if self._segments else None
            return [self._text([ended]) if ended else _send({"partial": event.partial.text})]
        if isinstance(event, Finished):
            rest = self._text(self._segments)
            self._segments.clear()
            self._before_seconds += event.seconds
            close = self._endings.popleft() if self._endings else None
            return [rest, close] if close else [rest]
        return ()

    def _text(self, segments: Iterable[Segment]) -> Send:
        segments = list(segments)
        answer: dict[str, Any] = {"text": " ".join(segment.text for segment in segments)}
        words = self._describe(segments)
        if words and self._words:
            answer = {"result": words, **answer}
        if self._has_alternatives:
            confidence = sum(word["conf"] for word in words) / len(words) if words else 1.0
            answer = {"alternatives": [{"confidence": round(confidence, 6), **answer}]}
        return _send(answer)

    def _describe(self, segments: Sequence[Segment]) -> list[dict[str, Any]]:
        return [
            {
                "conf": round(word.confidence, 6),
                "end": round(self._before_seconds + word.end, 2),
                "start": round(self._before_seconds + word.start, 2),
                "word": word.text,
            }
            for segment in segments
            for word in segment.words
        ]


def _read_object(message: str) -> dict[str, Any]:
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ProtocolError(INVALID_DATA, "Expected a JSON object.")
    return fields


def _read_rate(given: Any) -> int:
    """Return a sample rate, which may be a text."""
    try:
        rate = float(given)
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ProtocolError(INVALID_DATA, f"Expected a sample_rate of {LOWEST_RATE} to {HIGHEST_RATE}.")
    return int(rate)


def _send(answer: dict[str, Any]) -> Send:
    return Send(json.dumps(answer, ensure_ascii=False))
