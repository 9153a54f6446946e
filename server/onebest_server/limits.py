"""Every limit of the server, by name, with its default."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, fields
from typing import Any


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Limits:
    """What one server process takes on; whatever goes beyond is refused or closed, and others are not
    disturbed.

    ``describe_limits`` says what each one means; ``onebest serve`` has an option of the same name for each.
    """

    clients: int = _limit(500, "connected clients; a further one is refused with 503")
    handshakes: int = _limit(256, "connections that have not finished their opening; a further one gets 503")
    handshake_seconds: float = _limit(10.0, "time for the opening; then the connection is dropped")
    message_bytes: int = _limit(1 << 22, "size of a client's message; a longer one closes with 1009")
    queue_seconds: float = _limit(
        10.0, "audio waiting for its turn, a stream; no more is read until it shrinks"
    )
    unread_bytes: int = _limit(1 << 20, "text that a client has not read; beyond it the connection is cut")
    idle_seconds: float = _limit(
        60.0,
        "time without a message from the client or its answer to a ping; then its text is completed and "
        "it is closed with 1008",
    )
    session_seconds: float = _limit(
        14400.0, "length of a session; then its text is completed and it is closed with 1008"
    )
    detached_seconds: float = _limit(60.0, "time that a session waits for its client to come back")
    detached: int = _limit(500, "sessions that wait so; the oldest makes room")
    replay_messages: int = _limit(1000, "results kept for a client that comes back; older ones are forgotten")
    hotwords: int = _limit(100, "hotwords a session, of up to 100 characters each")
    behind_seconds: float = _limit(2.0, "how far a live stream may fall behind before its client is told")
    drain_seconds: float = _limit(30.0, "time that running sessions have to end once the server is to stop")
    batch: int = _limit(16, "streams that one step decodes together")


def describe_limits() -> list[tuple[str, float, str]]:
    """Return name, default and meaning of each limit."""
    return [(limit.name, _default(limit.name), limit.metadata["meaning"]) for limit in fields(Limits)]


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each limit."""
    group = parser.add_argument_group("limits, each for one process")
    for name, default, meaning in describe_limits():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(
            option,
            type=_positive(type(default)),
            default=default,
            metavar="N",
            help=f"{meaning} ({default:.15g})",
        )


def read_limits(arguments: argparse.Namespace) -> Limits:
    """Return the limits that the arguments name."""
    return Limits(**{limit.name: getattr(arguments, limit.name) for limit in fields(Limits)})


def _default(name: str) -> float:
    value: float = getattr(Limits, name)
    return value


def _positive(kind: type[float]) -> Any:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text}")
        return value

    read.__name__ = kind.__name__
    return read
