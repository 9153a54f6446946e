"""Deepgram's live protocol at ``/v1/listen``, for its clients; ``docs/clients.md`` says what is covered.

Client: parameters in the query, binary audio, and ``KeepAlive``, ``Finalize``, ``CloseStream`` or
``Configure`` as JSON. Server: ``Results``, on request ``SpeechStarted`` and ``UtteranceEnd``, and at the end
``Metadata``. Times go on over ``Finalize``, which is the end of one utterance and the beginning of the next.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import onebest
from onebest.results import Segment
from onebest.samples import HIGHEST_RATE, LOWEST_RATE
from onebest_server.protocol import (
    INVALID_DATA,
    LONGEST_HOTWORD,
    SHORTEST_SILENCE_MS,
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
    Stepped,
)
from onebest_server.protocols.pcm import MOST_CHANNELS, PcmReader

ENCODINGS = {"linear16": "<i2", "linear32": "<f4", "mulaw": "mulaw", "alaw": "alaw"}
_TOO_MANY_KEYTERMS = "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"
#: Characters of a message that was not understood which are said again.
_LONGEST_ECHO = 200


class DeepgramProtocol(Protocol):
    """One client of Deepgram."""

    def __init__(self, handshake: Handshake):
        super().__init__(handshake)
        query = handshake.query
        encoding = query.get("encoding", "")
        if encoding not in ENCODINGS:
            raise ProtocolError(
                INVALID_DATA, f"encoding: expected {' or '.join(ENCODINGS)}, raw and without a container."
            )
        self._rate = _integer(query, "sample_rate", LOWEST_RATE, HIGHEST_RATE)
        channels = _integer({"channels": "1"} | dict(query), "channels", 1, MOST_CHANNELS)
        if channels > 1 and _flag(query, "multichannel"):
            raise ProtocolError(INVALID_DATA, "multichannel: channels are mixed, not told apart.")
        self._pcm = PcmReader(ENCODINGS[encoding], channels)
        self._interim = _flag(query, "interim_results")
        self._vad_events = _flag(query, "vad_events")
        self._has_endpoints = query.get("endpointing", "").lower() != "false"
        self._silence_ms = _silence(query)
        self._gap = _integer(query, "utterance_end_ms", 1, 60000) / 1000 if "utterance_end_ms" in query else 0
        self._keyterms = self._check_keyterms(_keyterms(handshake))
        self._request = str(uuid.uuid4())
        self._is_open = self._closing = False
        self._endings: deque[str] = deque()
        self._before = self._word_end = self._utterance_end = 0.0
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Set what concerns the running utterance; seconds are from its start."""
        self._told = 0.0
        self._speaks = False

    def receive(self, message: Message) -> Iterable[Action]:
        """Take audio or one of the client's messages."""
        if self._closing:
            return ()
        if isinstance(message, bytes):
            return [*self._begin(), Audio(self._pcm.read(message))] if message else self._end("CloseStream")
        try:
            return self._control(_read_object(message))
        except ProtocolError as error:  # the stream goes on, as with Deepgram
            return [_send(_error("SchemaError", error.reason) | {"message": message[:_LONGEST_ECHO]})]

    def _control(self, fields: dict[str, Any]) -> list[Action]:
        match fields.get("type"):
            case "KeepAlive":
                return []
            case "Finalize" | "CloseStream" as kind:
                return self._end(kind)
            case "Configure":
                return self._configure(fields.get("keyterms"))
        raise ProtocolError(INVALID_DATA, "Expected a type of KeepAlive, Finalize, CloseStream or Configure.")

    def handle(self, event: Event) -> Iterable[Action]:
        """Send what an event means for the client."""
        match event:
            case Stepped():
                return list(self._describe(event))
            case Finished():
                return list(self._finish(event))
            case Failed():
                return [_send(_error("Error", event.reason)), Close(event.code, event.reason)]
        return ()

    def _begin(self) -> list[Action]:
        if self._is_open:
            return []
        self._is_open = True
        return [Open(self._rate, self._keyterms, silence_ms=self._silence_ms, lenient=True)]

    def _end(self, kind: str) -> list[Action]:
        begin = self._begin()
        self._is_open, self._closing = False, kind == "CloseStream"
        self._endings.append(kind)
        return [*begin, End()]

    def _configure(self, keyterms: Any) -> list[Action]:
        answer = {"type": "ConfigureSuccess", "request_id": self._request}
        if keyterms is None:
            return [_send(answer)]
        if not isinstance(keyterms, list) or not all(isinstance(term, str) for term in keyterms):
            raise ProtocolError(INVALID_DATA, "Expected keyterms to be a list of texts.")
        try:
            self._keyterms = self._check_keyterms(tuple(keyterms))
        except ProtocolError as error:
            failure = {"type": "ConfigureFailure", "code": _TOO_MANY_KEYTERMS, "description": error.reason}
            return [_send(answer | failure)]
        change = [SetHotwords(self._keyterms, lenient=True)] if self._is_open else []
        return [*change, _send(answer | {"keyterms": keyterms})]

    def _check_keyterms(self, keyterms: tuple[str, ...]) -> tuple[str, ...]:
        most = self.handshake.limits.hotwords
        if len(keyterms) > most or any(len(term) > LONGEST_HOTWORD for term in keyterms):
            raise ProtocolError(
                INVALID_DATA, f"keyterm: expected up to {most}, of up to {LONGEST_HOTWORD} characters."
            )
        return keyterms

    def _describe(self, progress: Progress) -> Iterator[Action]:
        """Describe the segments that ended, and the running one."""
        yield from self._describe_ended(progress.segments)
        yield from self._start_of_speech(progress.partial)
        if self._interim and progress.partial.words:
            yield self._results(progress.partial, progress.seconds, is_final=False)
        yield from self._take_words(progress.partial)
        yield from self._end_of_utterance(progress.decoded)

    def _describe_ended(self, segments: Iterable[Segment]) -> Iterator[Action]:
        for segment in segments:
            yield from self._start_of_speech(segment)
            yield self._results(segment, segment.end, is_final=True, speech_final=self._has_endpoints)
            yield from self._take_words(segment)
            self._speaks = False

    def _start_of_speech(self, segment: Segment) -> Iterator[Action]:
        yield from self._end_of_utterance(segment.start)
        if self._vad_events and segment.words and not self._speaks:
            timestamp = round(self._before + segment.start, 3)
            yield _send({"type": "SpeechStarted", "channel": [0, 1], "timestamp": timestamp})
        self._speaks = self._speaks or bool(segment.words)

    def _take_words(self, segment: Segment) -> Iterator[Action]:
        """Take a segment's words, and say where one is followed by a pause."""
        for word in segment.words:
            yield from self._end_of_utterance(word.start)
            self._word_end = max(self._word_end, self._before + word.end)

    def _end_of_utterance(self, until: float) -> Iterator[Action]:
        """Say once of the last word that it was one, if nothing follows it ``until`` a pause is over."""
        is_pause = self._before + until >= self._word_end + self._gap
        if self._gap and is_pause and self._word_end > self._utterance_end:
            self._utterance_end = self._word_end
            end = round(self._word_end, 3)
            yield _send({"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": end})

    def _finish(self, event: Finished) -> Iterator[Action]:
        ending = self._endings.popleft() if self._endings else "CloseStream"
        *ended, last = event.segments or (Segment(),)
        yield from self._describe_ended(ended)
        yield from self._start_of_speech(last)
        is_finalize = ending == "Finalize"
        flags = {"speech_final": self._has_endpoints, "from_finalize": is_finalize}
        yield self._results(last, event.seconds, is_final=True, **flags)
        yield from self._take_words(last)
        yield from self._end_of_utterance(event.seconds)
        self._before += event.seconds
        self._begin_anew()
        if not is_finalize:
            yield from (self._metadata(), Close())

    def _results(
        self,
        segment: Segment,
        end: float,
        *,
        is_final: bool,
        speech_final: bool = False,
        from_finalize: bool = False,
    ) -> Send:
        """Return the text of the time since the last final result, up to ``end``."""
        start = self._told
        self._told = max(start, end) if is_final else start
        words = [
            {
                "word": word.text,
                "start": round(self._before + word.start, 3),
                "end": round(self._before + word.end, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in segment.words
        ]
        confidence = sum(word.confidence for word in segment.words) / max(1, len(words))
        alternative = {"transcript": segment.text, "confidence": round(confidence, 4), "words": words}
        model = {"name": "onebest", "version": onebest.__version__, "arch": "transducer"}
        return _send(
            {
                "type": "Results",
                "channel_index": [0, 1],
                "duration": round(max(0.0, end - start), 3),
                "start": round(self._before + start, 3),
                "is_final": is_final,
                "speech_final": speech_final,
                "from_finalize": from_finalize,
                "channel": {"alternatives": [alternative]},
                "metadata": {"request_id": self._request, "model_info": model, "model_uuid": "onebest"},
            }
        )

    def _metadata(self) -> Send:
        return _send(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": self._request,
                "sha256": "",
                "created": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "duration": round(self._before, 3),
                "channels": 1,
            }
        )


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() == "true"


def _integer(query: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = query.get(name, "")
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not least <= value <= most:
        raise ProtocolError(INVALID_DATA, f"{name}: expected {least} to {most}.")
    return value


def _silence(query: Mapping[str, str]) -> int | None:
    """Return the silence that ends a segment, for ``endpointing`` in milliseconds."""
    if query.get("endpointing", "true").lower() in ("true", "false"):
        return None
    return max(SHORTEST_SILENCE_MS, _integer(query, "endpointing", 0, 60000))


def _keyterms(handshake: Handshake) -> tuple[str, ...]:
    """Return what ``keyterm``, and the older ``keywords`` with a weight behind a colon, say to expect."""
    keyterms = [value for name, value in handshake.parameters if name == "keyterm"]
    weighted = [value.partition(":") for name, value in handshake.parameters if name == "keywords"]
    keywords = [keyword for keyword, _, weight in weighted if not weight.strip().startswith("-")]
    return tuple(filter(None, keyterms + keywords))


def _read_object(message: str) -> dict[str, Any]:
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ProtocolError(INVALID_DATA, "Expected binary audio or a JSON object.")
    return fields


def _error(variant: str, description: str) -> dict[str, Any]:
    return {"type": "Error", "variant": variant, "description": description}


def _send(answer: dict[str, Any]) -> Send:
    return Send(json.dumps(answer))
