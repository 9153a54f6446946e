"""onebest's own protocol; ``messages`` has its messages.

The client starts with ``start`` or ``resume`` and then sends binary audio. After a lost connection nothing
is lost and nothing doubled: the server keeps the session, counts the samples it has (``acknowledged``), and
numbers the segments; the client says how many of them it has, and sends its audio from the acknowledged
sample on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from functools import partial
from typing import Any

import numpy.typing as npt

from onebest.results import Segment
from onebest.samples import HIGHEST_RATE, LOWEST_RATE
from onebest_server import messages, protocol
from onebest_server.opus import OPUS_RATE, OpusDecoder
from onebest_server.protocol import (
    INVALID_DATA,
    LONGEST_HOTWORD,
    POLICY,
    UNSUPPORTED,
    Action,
    Audio,
    Close,
    End,
    Event,
    Handshake,
    Keep,
    Message,
    Open,
    Progress,
    Protocol,
    ProtocolError,
    Send,
    SetHotwords,
    pcm,
)

Decode = Callable[[bytes], npt.NDArray[Any]]
#: Samples of a binary message, by the encoding; each session has its own.
ENCODINGS: Mapping[str, Callable[[], Decode]] = {
    "float32": lambda: partial(pcm, dtype="<f4"),
    "int16": lambda: partial(pcm, dtype="<i2"),
    "opus": lambda: OpusDecoder().decode,
}


class State(Enum):
    """Where the conversation is."""

    NEW = auto()
    RUNNING = auto()
    FINISHING = auto()


class OnebestProtocol(Protocol):
    """One client of ours."""

    def __init__(self, handshake: Handshake):
        super().__init__(handshake)
        self._state = State.NEW
        self._decode: Decode | None = None
        self._samples = 0
        self._segments = 0
        self._kept: deque[messages.Final] = deque(maxlen=handshake.limits.replay_messages)
        self._finished: messages.Finished | None = None

    def receive(self, message: Message) -> Iterable[Action]:
        """Take audio or one of the client's messages; audio on its way behind ``finish`` is passed over."""
        if isinstance(message, bytes):
            if self._state is State.FINISHING:
                return []
            self._expect(State.RUNNING, "audio")
            assert self._decode is not None, "a session that runs has started"
            samples = self._decode(message)
            self._samples += len(samples)
            return [Audio(samples)]
        parsed = messages.parse(message)
        match parsed:
            case messages.Start():
                self._expect(State.NEW, parsed.type)
                return self._start(parsed)
            case messages.Resume():
                self._expect(State.NEW, parsed.type)
                return [protocol.Resume(parsed.session, parsed.segments)]
            case messages.Hotwords():
                self._expect(State.RUNNING, parsed.type)
                return [SetHotwords(self._check_hotwords(parsed.hotwords))]
            case messages.Finish():
                if self._state is State.FINISHING:
                    return []  # said again after a resume
                self._expect(State.RUNNING, parsed.type)
                self._state = State.FINISHING
                return [End()]

    def handle(self, event: Event) -> Iterable[Action]:
        """Send what an event means for the client."""
        match event:
            case protocol.Stepped():
                return [*self._finals(event, is_end=False), self._partial(event.partial)]
            case protocol.Finished():
                finals = list(self._finals(event, is_end=True))
                requested = self._state is State.FINISHING
                seconds = round(event.seconds, 3)
                self._finished = messages.Finished(self._segments, seconds, requested, self._samples)
                return [*finals, *self._end()]
            case protocol.Behind():
                return [_send(messages.Behind(event.seconds))]
            case protocol.Resumed():
                return self._resume(event.seen)
            case protocol.Failed():
                return [_send(messages.Error(event.code, event.reason)), Close(event.code, event.reason)]
        return []

    def _expect(self, state: State, what: str) -> None:
        if self._state is not state:
            raise ProtocolError(UNSUPPORTED, f"Unexpected {what}: the session is {self._state.name.lower()}.")

    def _start(self, start: messages.Start) -> list[Action]:
        latencies = self.handshake.latencies_ms
        if start.encoding not in ENCODINGS:
            raise ProtocolError(INVALID_DATA, f"'encoding': expected {', '.join(ENCODINGS)}.")
        if not LOWEST_RATE <= start.sample_rate <= HIGHEST_RATE:
            raise ProtocolError(INVALID_DATA, f"'sample_rate': expected {LOWEST_RATE} to {HIGHEST_RATE}.")
        if start.encoding == "opus" and start.sample_rate != OPUS_RATE:
            raise ProtocolError(INVALID_DATA, f"'sample_rate': expected {OPUS_RATE} with opus.")
        if start.latency_ms is not None and start.latency_ms not in latencies:
            raise ProtocolError(INVALID_DATA, f"'latency_ms': expected one of {sorted(latencies)}.")
        hotwords = self._check_hotwords(start.hotwords)
        self._state, self._decode = State.RUNNING, ENCODINGS[start.encoding]()
        latency_ms, seconds = start.latency_ms or latencies[0], self.handshake.limits.detached_seconds
        started = messages.Started(self.handshake.session, latency_ms, seconds)
        return [Keep(), Open(start.sample_rate, hotwords, latency_ms, start.endpoints), _send(started)]

    def _check_hotwords(self, hotwords: tuple[str, ...]) -> tuple[str, ...]:
        most = self.handshake.limits.hotwords
        if len(hotwords) > most or any(len(hotword) > LONGEST_HOTWORD for hotword in hotwords):
            raise ProtocolError(
                INVALID_DATA, f"'hotwords': expected up to {most}, of up to {LONGEST_HOTWORD} characters."
            )
        return hotwords

    def _partial(self, running: Segment) -> Send:
        return _send(messages.Partial(self._segments, running.text, round(running.start, 3), self._samples))

    def _finals(self, progress: Progress, is_end: bool) -> Iterable[Action]:
        for segment in progress.segments:
            is_endpoint = not (is_end and segment is progress.segments[-1])
            words = tuple(
                messages.Word(word.text, round(word.start, 3), round(word.end, 3), round(word.confidence, 4))
                for word in segment.words
            )
            final = messages.Final(
                segment=self._segments,
                text=segment.text,
                start=round(segment.start, 3),
                end=round(segment.end, 3),
                confidence=round(sum(word.confidence for word in words) / max(1, len(words)), 4),
                words=words,
                endpoint=is_endpoint,
                acknowledged=self._samples,
            )
            self._segments += 1
            self._kept.append(final)
            yield _send(final)

    def _resume(self, seen: int) -> list[Action]:
        oldest = self._segments - len(self._kept)
        if not oldest <= seen <= self._segments:
            raise ProtocolError(POLICY, f"Segments {oldest} to {self._segments} are kept, not {seen}.")
        again = [_send(final) for final in self._kept if final.segment >= seen]
        return [_send(messages.Resumed(self._samples)), *again, *self._end()]

    def _end(self) -> list[Action]:
        """Return what ends the session, if its text is complete."""
        return [_send(self._finished), Close()] if self._finished else []


def _send(message: messages.ServerMessage) -> Send:
    return Send(messages.to_text(message))
