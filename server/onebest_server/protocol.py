"""What a protocol is: a state machine without input and output, between a client's messages and a session.

A protocol turns each message of the client into actions, and each event of the session into actions:

    receive(message: str | bytes) -> actions        handle(event) -> actions

The session carries the actions out in order. Those that concern audio (``Open``, ``Audio``,
``SetHotwords``, ``End``) wait in its queue and are worked on by the scheduler, which answers with events;
``Send``, ``Close``, ``Keep`` and ``Resume`` are done at once. After ``End`` came ``Finished``, the same
session may ``Open`` its next utterance.

A protocol knows neither sockets nor threads, so it is tested with plain lists. A new one is a class with
the two methods and a line in ``protocols.PROTOCOLS``.

Axis legend: S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from onebest.errors import OnebestError
from onebest.results import Segment
from onebest_server.limits import Limits

Message = str | bytes

# Close codes of RFC 6455, section 7.4.1.
NORMAL, GOING_AWAY, UNSUPPORTED, INVALID_DATA, POLICY, INTERNAL = 1000, 1001, 1003, 1007, 1008, 1011


class ProtocolError(OnebestError, ValueError):
    """A client's message that its protocol does not allow.

    Attributes:
        code: the close code that says so.
        reason: what was expected and what came, for the client.
    """

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code = code
        self.reason = reason


# Actions: what a protocol asks of its session.


#: Tokens of one word can lie 300 ms apart; a shorter silence would end segments inside words.
SHORTEST_SILENCE_MS = 400
#: Characters of a hotword.
LONGEST_HOTWORD = 100


@dataclass(frozen=True)
class Open:
    """Begin an utterance.

    Attributes:
        sample_rate: of the audio that follows, Hz.
        hotwords: words and phrases to expect.
        chunk_ms: one of ``Handshake.latencies_ms``; None is the server's own.
        endpoints: whether silence ends a segment.
        silence_ms: the silence after speech that does; None is the runtime's own.
        lenient: whether hotwords that the model cannot write are left out; else they are an error.
    """

    sample_rate: int
    hotwords: tuple[str, ...] = ()
    chunk_ms: int | None = None
    endpoints: bool = True
    silence_ms: int | None = None
    lenient: bool = False


@dataclass(frozen=True)
class Audio:
    """The next samples [S], mono, float32 in [-1, 1] or int16; ``Accepted`` follows if ``reply`` is set."""

    samples: npt.NDArray[Any]
    reply: bool = False


@dataclass(frozen=True)
class SetHotwords:
    """Expect other words from here on; ``lenient`` as in ``Open``."""

    hotwords: tuple[str, ...]
    lenient: bool = False


@dataclass(frozen=True)
class End:
    """The utterance is over; ``Finished`` follows."""


@dataclass(frozen=True)
class Send:
    """Send a message to the client."""

    message: Message


@dataclass(frozen=True)
class Close:
    """Close the connection once everything is sent."""

    code: int = NORMAL
    reason: str = ""


@dataclass(frozen=True)
class Keep:
    """Keep this session for a while if the connection is lost, under its ``Handshake.session``."""


@dataclass(frozen=True)
class Resume:
    """Continue the session of that name on this connection; its protocol gets ``Resumed``."""

    session: str
    seen: int


Action = Open | Audio | SetHotwords | End | Send | Close | Keep | Resume
#: Those that wait in the session's queue.
Work = Open | Audio | SetHotwords | End


# Events: what a session tells its protocol. Each finished segment is in exactly one of the first three.


@dataclass(frozen=True)
class Progress:
    """What an utterance has come to.

    Attributes:
        segments: those that ended since the event before.
        partial: what has been said since the last of them; it may still grow.
        seconds: audio of the utterance taken in.
        decoded: seconds of it in which words have been looked for; behind its end there is some silence.
    """

    segments: tuple[Segment, ...]
    partial: Segment
    seconds: float
    decoded: float = 0.0


class Stepped(Progress):
    """A chunk was decoded."""


class Accepted(Progress):
    """All that can be decoded after one ``Audio`` action with ``reply`` was decoded."""


class Finished(Progress):
    """The utterance is complete; ``partial`` is empty."""


@dataclass(frozen=True)
class Behind:
    """Recognition has fallen behind live audio by so many seconds; 0 once it has caught up."""

    seconds: float


@dataclass(frozen=True)
class Failed:
    """The session cannot go on: bad input, a limit, or an error of the server's own."""

    code: int
    reason: str


@dataclass(frozen=True)
class Resumed:
    """The client is back on a new connection and has seen so many numbered results."""

    seen: int


Event = Progress | Behind | Failed | Resumed


@dataclass(frozen=True)
class Handshake:
    """What a protocol knows when a client connects.

    Attributes:
        path: the path without the query.
        query: the query's parameters; the last value of each.
        parameters: all of them, in order.
        headers: the request's headers, names in lower case.
        session: the name this session can be resumed by.
        latencies_ms: the chunk lengths on offer, the server's own first.
        limits: those that concern protocols are hotwords, replay_messages and detached_seconds.
    """

    path: str = "/"
    query: Mapping[str, str] = field(default_factory=dict)
    parameters: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    latencies_ms: tuple[int, ...] = (640,)
    limits: Limits = field(default_factory=Limits)


class Protocol(ABC):
    """One client's side of a conversation. Its constructor may raise ``ProtocolError``: refused with 400."""

    def __init__(self, handshake: Handshake):
        self.handshake = handshake

    def greet(self) -> Iterable[Action]:
        """Return what is said as soon as the client is connected."""
        return ()

    @abstractmethod
    def receive(self, message: Message) -> Iterable[Action]:
        """Return what a client's message asks for.

        Raises:
            ProtocolError: the message is not allowed; the session hands it to ``handle`` as ``Failed``.
        """

    @abstractmethod
    def handle(self, event: Event) -> Iterable[Action]:
        """Return what follows from an event; after ``Failed`` that includes ``Close``."""


def fit_hotwords(hotwords: Iterable[str], most: int) -> tuple[str, ...]:
    """Return as many of the hotwords as there may be, without those that are too long."""
    return tuple(islice((hotword for hotword in hotwords if len(hotword) <= LONGEST_HOTWORD), most))


def pcm(message: bytes, dtype: str) -> npt.NDArray[Any]:
    """Return the samples [S] of a binary message; ``dtype`` is ``<f4`` or ``<i2``.

    Raises:
        ProtocolError: the message ends inside a sample.
    """
    width = np.dtype(dtype).itemsize
    if len(message) % width:
        raise ProtocolError(
            INVALID_DATA, f"Expected whole samples of {width} bytes, got {len(message)} bytes."
        )
    return np.frombuffer(message, dtype)
