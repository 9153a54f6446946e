"""The messages of ``/onebest``: one dataclass each, from which parser, text and documentation follow.

A text message is a JSON object with ``type`` and the fields of that message; an unknown type or field, or a
value of another type, is an error that says so. Audio is binary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, ClassVar

from onebest_server.protocol import INVALID_DATA, ProtocolError


def _field(meaning: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Start:
    """Begins a session; the server answers ``started``."""

    type: ClassVar[str] = "start"
    sample_rate: int = _field("samples a second of the audio", 16000)
    encoding: str = _field(
        "`float32` in [-1, 1] or `int16`, little-endian, mono; `opus`: a packet a message, at 48000",
        "float32",
    )
    hotwords: tuple[str, ...] = _field("words and phrases to expect", ())
    latency_ms: int | None = _field(
        "audio that one step takes in, one of those on offer; null: the server's", None
    )
    endpoints: bool = _field("whether silence ends a segment", True)


@dataclass(frozen=True)
class Hotwords:
    """Changes the hotwords from here on."""

    type: ClassVar[str] = "hotwords"
    hotwords: tuple[str, ...] = _field("words and phrases to expect")


@dataclass(frozen=True)
class Finish:
    """Ends the audio; the server answers with the last ``final``, if anything was said, and ``finished``."""

    type: ClassVar[str] = "finish"


@dataclass(frozen=True)
class Resume:
    """Goes on with a session whose connection was lost; the first message of a new connection."""

    type: ClassVar[str] = "resume"
    session: str = _field("what `started` called it")
    segments: int = _field("how many `final` messages the client has; those after them are sent again")


@dataclass(frozen=True)
class Started:
    """The session has begun."""

    type: ClassVar[str] = "started"
    session: str = _field("its name, for `resume`")
    latency_ms: int = _field("audio that one step takes in")
    resume_seconds: float = _field("how long it is kept after its connection is lost")


@dataclass(frozen=True)
class Resumed:
    """The session goes on; the client sends its audio from ``acknowledged`` on."""

    type: ClassVar[str] = "resumed"
    acknowledged: int = _field("samples that the server has")


@dataclass(frozen=True)
class Partial:
    """The running segment so far, after each step; it may still change."""

    type: ClassVar[str] = "partial"
    segment: int = _field("its number, from 0")
    text: str = _field("what was said")
    start: float = _field("seconds to its first word; without one, to the endpoint before")
    acknowledged: int = _field("samples that the server has; the client need not keep them for `resume`")


@dataclass(frozen=True)
class Word:
    """A word of a ``final``."""

    type: ClassVar[str] = "word"
    word: str = _field("the word")
    start: float = _field("seconds to its start")
    end: float = _field("seconds to its end")
    confidence: float = _field("from 0 to 1")


@dataclass(frozen=True)
class Final:
    """A segment that will not change."""

    type: ClassVar[str] = "final"
    segment: int = _field("its number, from 0")
    text: str = _field("what was said")
    start: float = _field("seconds to its first word")
    end: float = _field("seconds to the end of its last word")
    confidence: float = _field("mean of its words' confidences, from 0 to 1")
    words: tuple[Word, ...] = _field("objects of `word`, `start`, `end`, `confidence`")
    endpoint: bool = _field("whether silence or length ended it, and not the end of the audio")
    acknowledged: int = _field("as in `partial`")


@dataclass(frozen=True)
class Behind:
    """Recognition has fallen behind the live audio."""

    type: ClassVar[str] = "behind"
    seconds: float = _field("by how much; 0: it has caught up")


@dataclass(frozen=True)
class Finished:
    """All results are out; the server closes the connection."""

    type: ClassVar[str] = "finished"
    segments: int = _field("`final` messages there were")
    seconds: float = _field("audio there was")
    requested: bool = _field("false if the server ended the session and not the client's `finish`")
    acknowledged: int = _field("samples that the server has; all of them are in the texts")


@dataclass(frozen=True)
class Error:
    """What went wrong; the server closes the connection with the same code and reason."""

    type: ClassVar[str] = "error"
    code: int = _field("the close code")
    message: str = _field("what was expected and what came")


ClientMessage = Start | Hotwords | Finish | Resume
ServerMessage = Started | Resumed | Partial | Final | Behind | Finished | Error
CLIENT_MESSAGES: tuple[type[ClientMessage], ...] = (Start, Hotwords, Finish, Resume)
SERVER_MESSAGES: tuple[type[ServerMessage], ...] = (
    Started,
    Resumed,
    Partial,
    Final,
    Behind,
    Finished,
    Error,
)
_BY_TYPE: Mapping[str, type[ClientMessage]] = {message.type: message for message in CLIENT_MESSAGES}
#: How the value of a field of this type is recognised, and what it is called.
_KINDS: Mapping[str, tuple[str, Any]] = {
    "int": ("an integer", lambda value: type(value) is int),
    "int | None": ("an integer or null", lambda value: value is None or type(value) is int),
    "float": ("a number", lambda value: type(value) in (int, float)),
    "bool": ("true or false", lambda value: type(value) is bool),
    "str": ("a text", lambda value: type(value) is str),
    "tuple[str, ...]": (
        "a list of texts",
        lambda value: type(value) is list and all(type(item) is str for item in value),
    ),
    "tuple[Word, ...]": ("a list of words", lambda value: type(value) is list),
}


def parse(text: str) -> ClientMessage:
    """Return a client's text message.

    Raises:
        ProtocolError: it is none.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    kind = _BY_TYPE.get(str(given.get("type"))) if isinstance(given, dict) else None
    if kind is None or not isinstance(given, dict):
        raise ProtocolError(INVALID_DATA, f"Expected a JSON object with a type of {', '.join(_BY_TYPE)}.")
    del given["type"]
    known = {item.name: item for item in fields(kind)}
    if unknown := given.keys() - known.keys():
        name = sorted(unknown)[0][:50]
        raise ProtocolError(
            INVALID_DATA, f"{kind.type} has no {name!r}, only {', '.join(known) or 'a type'}."
        )
    return kind(**{name: _read(kind.type, item, given) for name, item in known.items()})


def _read(message: str, item: Field[Any], given: Mapping[str, Any]) -> Any:
    if item.name not in given:
        if item.default is MISSING:
            raise ProtocolError(INVALID_DATA, f"{message} lacks {item.name!r}.")
        return item.default
    value = given[item.name]
    called, is_one = _KINDS[str(item.type)]
    if not is_one(value):
        raise ProtocolError(INVALID_DATA, f"{item.name!r} of {message}: expected {called}.")
    return tuple(value) if isinstance(value, list) else value


def to_text(message: ClientMessage | ServerMessage) -> str:
    """Return a message as it is sent."""
    return json.dumps({"type": message.type, **asdict(message)}, ensure_ascii=False)


def describe_messages() -> str:
    """Return the messages as one table in Markdown."""
    rows = ["| message | from | field | type | default | meaning |", "| --- | --- | --- | --- | --- | --- |"]
    for side, kinds in (("client", CLIENT_MESSAGES), ("server", SERVER_MESSAGES)):
        for kind in kinds:
            rows.append(f"| `{kind.type}` | {side} | | | | {(kind.__doc__ or '').replace('``', '`')} |")
            rows += [f"| | | {_describe(item)} |" for item in fields(kind)]
    return "\n".join(rows) + "\n"


def _describe(item: Field[Any]) -> str:
    called, _ = _KINDS[str(item.type)]
    default = item.default if not isinstance(item.default, tuple) else list(item.default)
    shown = "" if item.default is MISSING else f"`{json.dumps(default)}`"
    return f"`{item.name}` | {called} | {shown} | {item.metadata['meaning']}"
