"""A websocket and its session: messages in, messages out, and nothing else.

Reading stops while the session's queue is full, so that a client is read no faster than it is decoded. What
the client does not read waits in a queue; beyond a limit the connection is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from websockets.asyncio.client import unix_connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from onebest_server.http import Admitted, respond
from onebest_server.metrics import Metrics
from onebest_server.protocol import NORMAL, POLICY, Close, Message
from onebest_server.session import UNKNOWN_SESSION, Outlet, Session

#: Time that a client has to take in what is left and the close.
CLOSE_SECONDS = 10.0
#: Time that a client may go on with a request that is refused: closing before could cost it the answer.
REFUSED_SECONDS = 1.0
#: What RFC 6455 leaves for the reason of a close frame.
_LONGEST_REASON_BYTES = 123
#: A close frame without a code counts as this one.
_NO_CODE = 1005
#: How the websockets library closes when a message is too long.
_TOO_LONG = 1009
#: How a request begins that wants to change something.
_OTHER_METHOD = re.compile(rb"(?!GET |HEAD )[A-Z]+ /")


class Doorway:
    """The connections that have not finished their opening.

    Args:
        most: how many there may be.
        metrics: where they are counted.
    """

    def __init__(self, most: int, metrics: Metrics):
        self._most = most
        self.metrics = metrics
        self._opening: set[ServerConnection] = set()

    def enter(self, connection: ServerConnection) -> bool:
        """Note a connection and return whether there was room for it."""
        self._opening.add(connection)
        self.metrics.handshakes.set(len(self._opening))
        has_room = len(self._opening) <= self._most
        if not has_room:
            self.metrics.refuse("handshakes")
        return has_room

    def leave(self, connection: ServerConnection) -> None:
        """Forget a connection."""
        self._opening.discard(connection)
        self.metrics.handshakes.set(len(self._opening))

    def abort(self) -> None:
        """Drop all of them."""
        for connection in self._opening:
            connection.transport.abort()


class ClientConnection(ServerConnection):
    """A connection that passes a doorway while it opens, keeps what it was admitted as, and says when its
    client answers a ping or is lost.
    """

    admitted: Admitted
    doorway: Doorway
    on_pong: Callable[[], None]
    on_lost: Callable[[], None]
    _has_data = _is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection; one too many gets 503."""
        super().connection_made(transport)
        if not self.doorway.enter(self):
            refusal = respond(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are opening.")
            self.transport.write(refusal.serialize())
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that could have a body, which the library hangs up on, gets 405."""
        is_first, self._has_data = not self._has_data, True
        if is_first and _OTHER_METHOD.match(data):
            self._is_refused = True
            allowed = {"Allow": "GET, HEAD"}
            refusal = respond(HTTPStatus.METHOD_NOT_ALLOWED, "Expected GET.", more=allowed)
            self.transport.write(refusal.serialize())
            self.loop.call_later(REFUSED_SECONDS, self.transport.close)
        elif not self._is_refused:
            super().data_received(data)

    def process_event(self, event: Event) -> None:
        """Take a request or a frame."""
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode is Opcode.PONG:
            self.on_pong()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        super().connection_lost(exc)
        self.on_lost()

    async def handshake(self, *arguments: Any, **named: Any) -> None:
        """Open the connection."""
        try:
            await super().handshake(*arguments, **named)
        except asyncio.CancelledError:  # by the library, after handshake_seconds
            self.doorway.metrics.refuse("handshake_seconds")
            raise
        finally:
            self.doorway.leave(self)


class Forward(NamedTuple):
    """Where a connection goes on: another worker, and the message that asked for it."""

    worker: int
    message: Message


class WebsocketOutlet(Outlet):
    """A websocket as a session sees it."""

    def __init__(self, connection: Connection, unread_bytes: int, metrics: Metrics):
        self._connection = connection
        self._most = unread_bytes
        self.metrics = metrics
        self._queue: asyncio.Queue[Message | Close] = asyncio.Queue()
        self._unread = 0
        self.forwarded: Forward | None = None

    def send(self, message: Message) -> None:
        """Queue a message; cut the connection if too much is waiting."""
        if self._connection.transport.is_closing():
            return
        self._unread += len(message)
        if self._unread > self._most:
            self.metrics.refuse("unread_bytes")
            self._connection.transport.abort()
        else:
            self._queue.put_nowait(message)

    def close(self, code: int, reason: str) -> None:
        """Close once everything queued is sent."""
        self._queue.put_nowait(Close(code, reason))

    def forward(self, worker: int, message: Message) -> None:
        """Leave the connection to another worker."""
        self.forwarded = Forward(worker, message)

    async def write(self) -> None:
        """Send what is queued until the close."""
        try:
            while not isinstance(item := await self._queue.get(), Close):
                await self._connection.send(item)
                self._unread -= len(item)
            await close(self._connection, item.code, item.reason)
        except ConnectionClosed:
            pass


async def close(connection: Connection, code: int, reason: str) -> None:
    """Close a connection, also one whose client does not read."""
    short = reason.encode()[:_LONGEST_REASON_BYTES].decode(errors="ignore")
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close(code, short)
    except TimeoutError:
        connection.transport.abort()


async def converse(
    connection: ClientConnection, session: Session, outlet: WebsocketOutlet, peers: Path | None
) -> None:
    """Carry a session until its connection is closed or lost.

    Args:
        connection: the websocket.
        session: what its first messages are for.
        outlet: the same websocket for the session.
        peers: the folder with the sockets of all workers.
    """

    def leave() -> None:
        outlet.session.detach(outlet, clean=_received_code(connection) in (NORMAL, _NO_CODE))

    session.attach(outlet)
    connection.on_pong = lambda: outlet.session.hear()
    connection.on_lost = leave  # at once: where there is no room, what a lost client has sent is for nothing
    writer = asyncio.create_task(outlet.write())
    try:
        async for message in connection:
            outlet.session.receive(message, outlet)
            if outlet.forwarded is not None and peers is not None:
                await relay(connection, peer_path(peers, outlet.forwarded.worker), outlet.forwarded.message)
                return
            await outlet.session.has_room()
            await asyncio.sleep(0)  # messages that are here already come without giving way
            if connection.state is State.CLOSED:
                return
    except ConnectionClosed:
        pass
    finally:
        writer.cancel()
        leave()
        connection.on_pong = connection.on_lost = lambda: None  # or the session would outlive it in a cycle
        closed = connection.protocol.close_sent
        if closed is not None and closed.code == _TOO_LONG:
            outlet.metrics.refuse("message_bytes")


def peer_path(folder: Path, worker: int) -> Path:
    """Return the socket on which a worker takes connections from the others."""
    return folder / f"{worker}.sock"


async def relay(client: ClientConnection, path: Path, first: Message) -> None:
    """Carry a client's connection to the worker that has its session, and the worker's answers back.

    Pings stay on this side; that the client answers them is passed on, for the worker takes it for a message.
    """
    try:
        peer = await unix_connect(str(path), "ws://worker/onebest", max_size=None, ping_interval=None)
    except (OSError, InvalidHandshake):
        await close(client, POLICY, UNKNOWN_SESSION)
        return
    await peer.send(first)
    answered = asyncio.Event()
    client.on_pong = answered.set
    passing = _copy(client, peer), _copy(peer, client), _pass_pongs(answered, peer)
    copies = [asyncio.create_task(copy) for copy in passing]
    await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    for copy in copies:
        copy.cancel()
    await asyncio.gather(*copies, return_exceptions=True)
    await _end_with(peer, client)
    await _end_with(client, peer)


async def _copy(source: Connection, target: Connection) -> None:
    try:
        async for message in source:
            await target.send(message)
            await asyncio.sleep(0)
            if source.state is State.CLOSED and _received_code(source) is None:
                return
    except ConnectionClosed:
        pass


async def _pass_pongs(answered: asyncio.Event, peer: Connection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await answered.wait()
            answered.clear()
            await peer.pong()


async def _end_with(one: Connection, other: Connection) -> None:
    """End a connection as the other one ended: closed with the same code, or lost."""
    if one.protocol.state is not State.CLOSED or other.protocol.state is State.CLOSED:
        return
    code = _received_code(one)
    if code is None:
        other.transport.abort()
    else:
        await close(other, NORMAL if code == _NO_CODE else code, one.protocol.close_reason or "")


def _received_code(connection: Connection) -> int | None:
    received = connection.protocol.close_rcvd
    return None if received is None else int(received.code)
