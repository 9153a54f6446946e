"""OpenAI's realtime transcription at ``/v1/realtime``, for its clients; see ``docs/clients.md``.

An item is what one ``completed`` event gives the text of. With ``server_vad`` it is a segment, which silence
ends; without turn detection it is what was appended up to a ``commit``. Its text is sent as ``delta`` events
while it is spoken. A client's mistake is answered with an ``error`` event and the session goes on.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from onebest.results import Segment, Token
from onebest_server.protocol import (
    INTERNAL,
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
    Send,
    SetHotwords,
)
from onebest_server.protocols.openai_session import Configuration, Refusal, is_of_beta, read_update
from onebest_server.protocols.pcm import PcmReader

_TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclass
class _Item:
    """One item, with what was told of it.

    Attributes:
        name: its id.
        started: whether the client knows of it.
        text: what the deltas sent so far add up to.
        segments: those that ended; several only without turn detection.
    """

    name: str = field(default_factory=lambda: f"item_{secrets.token_hex(10)}")
    started: bool = False
    text: str = ""
    segments: list[Segment] = field(default_factory=list)


@dataclass
class _Utterance:
    """What is between an ``Open`` and its ``Finished``.

    Attributes:
        configuration: that of its ``Open``.
        item: the running one.
        awaited: whether the client committed it and has not got an item for that.
        cleared: whether the client wants to hear no more of it.
        samples: how many were appended.
    """

    configuration: Configuration
    item: _Item = field(default_factory=_Item)
    awaited: bool = False
    cleared: bool = False
    samples: int = 0

    def ended_turns(self, progress: Progress) -> tuple[Segment, ...]:
        """Return the turns that are over: not one that ``clear`` came into, before the silence behind it."""
        *turns, last = progress.segments or (Segment(),)
        silence = (self.configuration.silence_ms or 0) / 1000
        is_cut = progress.seconds < min(last.end + silence, progress.decoded)
        return tuple(turns) if self.cleared and is_cut else progress.segments


class OpenaiProtocol(Protocol):
    """One client of OpenAI's realtime transcription."""

    def __init__(self, handshake: Handshake):
        super().__init__(handshake)
        self._name = f"sess_{secrets.token_hex(10)}"
        self._configuration = Configuration()
        self._pcm = PcmReader(self._configuration.format.encoding)
        self._open: _Utterance | None = None
        self._utterances: deque[_Utterance] = deque()
        self._before = 0.0
        self._previous: str | None = None

    def greet(self) -> Iterable[Action]:
        """Tell the client of its session."""
        return [self._tell_session("created", is_of_beta(self.handshake))]

    def receive(self, message: Message) -> Iterable[Action]:
        """Take one of the client's events."""
        event = _read_object(message)
        try:
            return self._receive(event)
        except Refusal as refusal:
            name = event.get("event_id")
            return [
                self._send(
                    "error",
                    error={
                        "type": "invalid_request_error",
                        "code": refusal.code,
                        "message": str(refusal),
                        "param": refusal.param,
                        "event_id": name if isinstance(name, str) else None,
                    },
                )
            ]

    def _receive(self, event: dict[str, Any]) -> list[Action]:
        match event.get("type"):
            case "session.update" | "transcription_session.update" as kind:
                return self._update(event, is_flat=kind.startswith("transcription"))
            case "input_audio_buffer.append":
                return self._append(event.get("audio"))
            case "input_audio_buffer.commit":
                return self._commit()
            case "input_audio_buffer.clear":
                return self._clear()
        raise Refusal(
            "Expected a type of session.update, transcription_session.update or "
            "input_audio_buffer.append, .commit or .clear.",
            "type",
        )

    def handle(self, event: Event) -> Iterable[Action]:
        """Send what an event means for the client."""
        if isinstance(event, Failed):
            kind = "server_error" if event.code == INTERNAL else "invalid_request_error"
            error = {"type": kind, "code": str(event.code), "message": event.reason, "param": None}
            return [self._send("error", error=error), Close(event.code, event.reason)]
        if not isinstance(event, Progress) or not self._utterances:
            return ()
        utterance = self._utterances[0]
        actions = list(self._tell(utterance, event))
        if isinstance(event, Finished):
            self._utterances.popleft()
            self._before += event.seconds
            if utterance is self._open:
                self._open = None  # the server ended it
        return actions

    # The client's events.

    def _update(self, event: dict[str, Any], is_flat: bool) -> list[Action]:
        most = self.handshake.limits.hotwords
        configuration = read_update(self._configuration, event.get("session"), most)
        if configuration.format != self._configuration.format:
            if self._open is not None:
                raise Refusal("Format and rate can only change while the buffer is empty.", "session")
            self._pcm = PcmReader(configuration.format.encoding)
        actions: list[Action] = []
        if self._open is not None:
            if configuration.silence_ms != self._configuration.silence_ms:
                self._open = None  # the next one is of the new kind
                actions.append(End())
            elif configuration.hotwords != self._configuration.hotwords:
                actions.append(SetHotwords(configuration.hotwords, lenient=True))
        self._configuration = configuration
        return [*actions, self._tell_session("updated", is_flat)]

    def _append(self, audio: Any) -> list[Action]:
        try:
            data = base64.b64decode(audio, validate=True) if isinstance(audio, str) else None
        except (binascii.Error, ValueError):
            data = None
        if data is None:
            raise Refusal("Expected audio to be base64 of samples in the session's format.", "audio")
        samples = self._pcm.read(data)
        if not len(samples):
            return []
        begin = [] if self._open is not None else [self._begin()]
        assert self._open is not None
        self._open.samples += len(samples)
        return [*begin, Audio(samples)]

    def _begin(self) -> Action:
        configuration = self._configuration
        self._open = _Utterance(configuration)
        self._utterances.append(self._open)
        return Open(
            configuration.format.sample_rate,
            configuration.hotwords,
            silence_ms=configuration.silence_ms,
            lenient=True,
        )

    def _commit(self) -> list[Action]:
        if self._open is None or not self._open.samples:
            raise Refusal("The buffer has no audio.", None, "input_audio_buffer_commit_empty")
        self._open.awaited = True
        committed = [] if self._open.configuration.has_turns else [self._tell_committed(self._open.item)]
        return [*committed, *self._end()]

    def _clear(self) -> list[Action]:
        """Drop what is no turn yet; ``cleared`` follows when all turns before it are told."""
        if self._open is None:
            self._pcm = PcmReader(self._configuration.format.encoding)
            return [self._tell_cleared()]
        self._open.cleared = True
        return self._end()

    def _end(self) -> list[Action]:
        self._open, self._pcm = None, PcmReader(self._configuration.format.encoding)
        return [End()]

    # What the client is told.

    def _tell_session(self, what: str, is_flat: bool) -> Send:
        if is_flat:
            session = self._configuration.describe_flat(self._name)
            return self._send(f"transcription_session.{what}", session=session)
        return self._send(f"session.{what}", session=self._configuration.describe(self._name))

    def _tell(self, utterance: _Utterance, progress: Progress) -> Iterator[Action]:
        if utterance.configuration.has_turns:
            yield from self._tell_turns(utterance, progress)
        elif not utterance.cleared:
            yield from self._tell_buffer(utterance, progress)
        if utterance.cleared and isinstance(progress, Finished):
            yield self._tell_cleared()

    def _tell_buffer(self, utterance: _Utterance, progress: Progress) -> Iterator[Action]:
        item = utterance.item
        item.segments += progress.segments
        yield from self._tell_delta(item, progress.partial)
        if isinstance(progress, Finished) and (utterance.awaited or item.segments):
            if not utterance.awaited:
                yield self._tell_committed(item)
            yield self._tell_completed(item, progress.seconds)

    def _tell_turns(self, utterance: _Utterance, progress: Progress) -> Iterator[Action]:
        for segment in utterance.ended_turns(progress):
            yield from self._tell_start(utterance.item, segment)
            yield from self._tell_turn(utterance, segment)
            utterance.awaited = False
        if progress.partial.words and not utterance.cleared:
            yield from self._tell_start(utterance.item, progress.partial)
            yield from self._tell_delta(utterance.item, progress.partial)
        if isinstance(progress, Finished) and utterance.awaited:
            yield self._tell_committed(utterance.item)
            yield self._tell_completed(utterance.item, 0.0)

    def _tell_cleared(self) -> Send:
        return self._send("input_audio_buffer.cleared")

    def _tell_start(self, item: _Item, segment: Segment) -> Iterator[Action]:
        if not item.started:
            item.started = True
            start = self._milliseconds(segment.start)
            yield self._send("input_audio_buffer.speech_started", audio_start_ms=start, item_id=item.name)

    def _tell_turn(self, utterance: _Utterance, segment: Segment) -> Iterator[Action]:
        item, utterance.item = utterance.item, _Item()
        item.segments.append(segment)
        end = self._milliseconds(segment.end)
        yield self._send("input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=item.name)
        yield self._tell_committed(item)
        yield from self._tell_delta(item, Segment())
        yield self._tell_completed(item, segment.end - segment.start)

    def _tell_committed(self, item: _Item) -> Send:
        previous, self._previous = self._previous, item.name
        return self._send("input_audio_buffer.committed", item_id=item.name, previous_item_id=previous)

    def _tell_delta(self, item: _Item, partial: Segment) -> Iterator[Action]:
        """Send what the text has grown by; one that changed otherwise waits for ``completed``."""
        text = _text([*item.segments, partial])
        if text != item.text and text.startswith(item.text):
            delta, item.text = text[len(item.text) :], text
            yield self._send(f"{_TRANSCRIPTION}.delta", item_id=item.name, content_index=0, delta=delta)

    def _tell_completed(self, item: _Item, seconds: float) -> Send:
        fields: dict[str, Any] = {
            "item_id": item.name,
            "content_index": 0,
            "transcript": _text(item.segments),
        }
        if self._configuration.has_logprobs:
            fields["logprobs"] = [_logprob(token) for segment in item.segments for token in segment.tokens]
        usage = {"type": "duration", "seconds": round(seconds, 3)}
        return self._send(f"{_TRANSCRIPTION}.completed", **fields, usage=usage)

    def _milliseconds(self, seconds: float) -> int:
        return round((self._before + seconds) * 1000)

    def _send(self, kind: str, **fields: Any) -> Send:
        event = {"type": kind, "event_id": f"event_{secrets.token_hex(10)}", **fields}
        return Send(json.dumps(event))


def _text(segments: Iterable[Segment]) -> str:
    return " ".join(segment.text for segment in segments if segment.text)


def _logprob(token: Token) -> dict[str, Any]:
    logprob = round(math.log(max(token.confidence, 1e-30)), 6)
    return {"token": token.token, "logprob": logprob, "bytes": list(token.token.encode())}


def _read_object(message: Message) -> dict[str, Any]:
    """Return a message's fields; none if it is no JSON object, which has no type then."""
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError):
        fields = None
    return fields if isinstance(fields, dict) else {}
