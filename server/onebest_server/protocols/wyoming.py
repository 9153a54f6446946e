"""Wyoming, Home Assistant's protocol for voice, as a server of speech to text; ``docs/clients.md`` says more.

It has a TCP port of its own. An event is a line with a JSON header, then data and payload of the lengths that
the header gives; here each event is one message. Client: ``describe``; or ``transcribe``, ``audio-start``,
``audio-chunk`` and ``audio-stop``. Server: ``info``; or ``transcript-start``, ``transcript-chunk`` with what
the text has grown by, ``transcript`` with all of it, and ``transcript-stop``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onebest
from onebest.samples import HIGHEST_RATE, LOWEST_RATE
from onebest_server.protocol import (
    INVALID_DATA,
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
    fit_hotwords,
)
from onebest_server.protocols.pcm import MOST_CHANNELS, PcmReader, is_rate

#: What this protocol is called where others have the path of their address.
PATH = "wyoming"
LANGUAGES = ("en",)
_VERSION = "1.5.2"


@dataclass(frozen=True)
class WyomingEvent:
    """One event.

    Attributes:
        type: which one.
        data: its fields.
        payload: audio.
    """

    type: str
    data: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the event as it is sent."""
        data = json.dumps(self.data).encode() if self.data else b""
        header: dict[str, Any] = {"type": self.type, "version": _VERSION}
        if data:
            header["data_length"] = len(data)
        if self.payload:
            header["payload_length"] = len(self.payload)
        return json.dumps(header).encode() + b"\n" + data + self.payload


def measure(line: bytes) -> tuple[int, int]:
    """Return how many bytes of data and of payload follow a header's line.

    Raises:
        ProtocolError: it is no header.
    """
    header = _read_object(line)
    lengths = [header.get(f"{name}_length") or 0 for name in ("data", "payload")]
    if not isinstance(header.get("type"), str) or not all(type(n) is int and n >= 0 for n in lengths):
        raise ProtocolError(INVALID_DATA, "Expected a header with a type, and lengths of 0 or more.")
    return lengths[0], lengths[1]


def parse(message: bytes) -> WyomingEvent:
    """Return the event that a message is.

    Raises:
        ProtocolError: it is none.
    """
    line, _, rest = message.partition(b"\n")
    data_length, payload_length = measure(line)
    if len(rest) != data_length + payload_length:
        raise ProtocolError(INVALID_DATA, "The header's lengths are not those of the event.")
    header = _read_object(line)
    data = header.get("data") or {}
    if not isinstance(data, dict):
        raise ProtocolError(INVALID_DATA, "Expected data to be an object.")
    more = _read_object(rest[:data_length]) if data_length else {}
    return WyomingEvent(header["type"], data | more, rest[data_length:])


class WyomingProtocol(Protocol):
    """One client of Wyoming."""

    def __init__(self, handshake: Handshake):
        super().__init__(handshake)
        self._hotwords: tuple[str, ...] = ()
        self._pcm: PcmReader | None = None
        self._format: dict[str, Any] = {}
        self._texts: list[str] = []
        self._told = ""
        self._is_telling = False

    def receive(self, message: Message) -> Iterable[Action]:
        """Take one of the client's events; one that is unknown is passed over, as Wyoming has it."""
        event = parse(message if isinstance(message, bytes) else message.encode())
        match event.type:
            case "describe":
                return [_send("info", **describe())]
            case "ping":
                return [_send("pong", text=event.data.get("text"))]
            case "transcribe":
                self._hotwords = self._read_hotwords(event.data)
            case "audio-start":
                return self._begin(event.data) if self._pcm is None else ()
            case "audio-chunk":
                begin = self._begin(event.data) if self._pcm is None else []
                assert self._pcm is not None
                self._check_format(event.data)
                return [*begin, Audio(self._pcm.read(event.payload))]
            case "audio-stop" if self._pcm is not None:
                self._pcm = None
                return [End()]
        return ()

    def handle(self, event: Event) -> Iterable[Action]:
        """Send what an event means for the client."""
        match event:
            case Finished():
                return [*self._tell(event), *self._finish()]
            case Progress():
                return list(self._tell(event))
            case Failed():
                return [
                    _send("error", text=event.reason, code=str(event.code)),
                    Close(event.code, event.reason),
                ]
        return ()

    def _begin(self, data: dict[str, Any]) -> list[Action]:
        self._format = {name: data.get(name) for name in ("rate", "width", "channels")}
        rate, width, channels = self._format.values()
        if not is_rate(rate):
            raise ProtocolError(INVALID_DATA, f"rate: expected {LOWEST_RATE} to {HIGHEST_RATE}.")
        if width != 2:
            raise ProtocolError(INVALID_DATA, "width: expected 2, that is int16 little-endian.")
        if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
            raise ProtocolError(INVALID_DATA, f"channels: expected 1 to {MOST_CHANNELS}.")
        self._pcm = PcmReader("<i2", channels)
        assert isinstance(rate, int)
        return [Open(rate, self._hotwords, lenient=True)]

    def _check_format(self, data: dict[str, Any]) -> None:
        """Take a chunk's format where it is that of the utterance; one that is left out is."""
        for name, value in self._format.items():
            if data.get(name, value) != value:
                raise ProtocolError(INVALID_DATA, f"{name}: expected {value} to the end of the utterance.")

    def _read_hotwords(self, data: dict[str, Any]) -> tuple[str, ...]:
        """Return the names and terms to expect; those beyond the limits are left out."""
        lists = [data.get(name) or [] for name in ("transcript_names", "transcript_terms")]
        if not all(isinstance(terms, list) and all(isinstance(t, str) for t in terms) for terms in lists):
            raise ProtocolError(INVALID_DATA, "Expected transcript_names and transcript_terms to be texts.")
        return fit_hotwords([*lists[0], *lists[1]], self.handshake.limits.hotwords)

    def _tell(self, progress: Progress) -> Iterator[Action]:
        """Send what the text has grown by; one that changed otherwise waits for the whole."""
        self._texts += [segment.text for segment in progress.segments]
        text = _join([*self._texts, progress.partial.text])
        if text == self._told or not text.startswith(self._told):
            return
        yield from self._start()
        yield _send("transcript-chunk", text=text[len(self._told) :])
        self._told = text

    def _start(self) -> Iterator[Action]:
        if not self._is_telling:
            self._is_telling = True
            yield _send("transcript-start", language=LANGUAGES[0])

    def _finish(self) -> list[Action]:
        start = list(self._start())
        transcript = _send("transcript", text=_join(self._texts), language=LANGUAGES[0])
        self._texts, self._told, self._is_telling = [], "", False
        return [*start, transcript, _send("transcript-stop")]


def describe() -> dict[str, Any]:
    """Return the fields of ``info``."""
    artifact = {
        "name": "onebest",
        "attribution": {"name": "onebest", "url": ""},
        "installed": True,
        "version": onebest.__version__,
    }
    model = artifact | {"description": "The model that the server runs", "languages": list(LANGUAGES)}
    program = artifact | {
        "description": "Streaming speech recognition on your own device",
        "models": [model],
        "supports_transcript_streaming": True,
    }
    return {"asr": [program]}


def _join(texts: Iterable[str]) -> str:
    return " ".join(filter(None, texts))


def _send(kind: str, **data: Any) -> Send:
    return Send(WyomingEvent(kind, data).to_bytes())


def _read_object(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ProtocolError(INVALID_DATA, "Expected a JSON object.")
    return fields
