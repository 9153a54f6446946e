"""The TCP port of Wyoming: bytes in and out, each event one message of ``protocols.wyoming``.

As with websockets, a client is read no faster than it is decoded, and cut off when it does not read. One
that closes its own side behind its audio, as a pipe does, still gets the text.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import replace

from onebest_server.http import FULL
from onebest_server.limits import Limits
from onebest_server.protocol import INVALID_DATA, NORMAL, POLICY, Failed, Handshake, Message, ProtocolError
from onebest_server.protocols.wyoming import PATH, WyomingEvent, WyomingProtocol, measure
from onebest_server.session import Outlet, Session
from onebest_server.sessions import Sessions

#: A header's line; audio and most of the data come behind it.
LONGEST_LINE_BYTES = 1 << 16
#: Time that a client has to take in what is left before the connection is cut.
CLOSE_SECONDS = 10.0


class TcpOutlet(Outlet):
    """A TCP connection as a session sees it.

    Attributes:
        ended: set once there is nothing more to say.
    """

    def __init__(self, writer: asyncio.StreamWriter, unread_bytes: int, sessions: Sessions):
        self._writer, self._most, self._sessions = writer, unread_bytes, sessions
        self.ended = asyncio.Event()

    def send(self, message: Message) -> None:
        """Send a message; cut the connection if too much is waiting."""
        if self.is_lost:
            return
        self._writer.write(message if isinstance(message, bytes) else message.encode())
        if self._writer.transport.get_write_buffer_size() > self._most:
            self._sessions.metrics.refuse("unread_bytes")
            self._writer.transport.abort()

    @property
    def is_lost(self) -> bool:
        """Whether the client can be told nothing more."""
        return self._writer.transport.is_closing()

    def close(self, code: int, reason: str) -> None:
        """Send the end once everything is sent; the client then closes, or is cut off."""
        self.ended.set()
        with contextlib.suppress(OSError):  # of a client that is gone already
            self._writer.write_eof()
        asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._writer.transport.abort)

    def forward(self, worker: int, message: Message) -> None:
        """Close the connection: no session is resumed over this protocol."""
        self.close(POLICY, "Sessions of this protocol cannot be resumed.")


class WyomingListener:
    """Takes clients of Wyoming.

    Args:
        sessions: where they go.
        handshake: what their protocol is told.
        limits: of the server.

    Attributes:
        room: how many more clients the server may have.
        connections: those there are.
    """

    def __init__(self, sessions: Sessions, handshake: Handshake, limits: Limits):
        self._sessions, self._handshake, self._limits = sessions, replace(handshake, path=PATH), limits
        self._server: asyncio.Server | None = None
        self.room = limits.clients
        self.connections: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int, reuse_port: bool) -> int:
        """Bind the port and return it.

        Raises:
            OSError: the port is taken or not allowed.
        """
        self._server = await asyncio.start_server(
            self._converse, host, port, limit=LONGEST_LINE_BYTES, reuse_port=reuse_port or None
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def close(self) -> None:
        """Take no more clients."""
        if self._server is not None:
            self._server.close()

    def abort(self) -> None:
        """Cut the connections that are left."""
        for writer in self.connections:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = WyomingProtocol(replace(self._handshake, session=self._sessions.new_name()))
        outlet = TcpOutlet(writer, self._limits.unread_bytes, self._sessions)
        if len(self.connections) >= self.room:
            self._sessions.metrics.refuse("clients")
            outlet.send(WyomingEvent("error", {"text": FULL, "code": str(POLICY)}).to_bytes())
            outlet.close(POLICY, FULL)
            await _await_close(reader)
            writer.close()
            return
        self.connections.add(writer)
        session = self._sessions.open(protocol.handshake.session, secrets.token_hex(8), protocol)
        session.attach(outlet)
        try:
            await self._read(reader, outlet, session)
            await _await_close(reader)
        except asyncio.IncompleteReadError:
            if session.awaits_text:
                session.finish_early(NORMAL, "")
                await outlet.ended.wait()
        except ConnectionError:
            pass
        finally:
            session.detach(outlet, clean=True)
            self.connections.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, outlet: TcpOutlet, session: Session) -> None:
        while not (session.closed or outlet.is_lost):
            try:
                message = await read_message(reader, self._limits.message_bytes)
            except ProtocolError as error:
                self._sessions.metrics.refuse("protocol")
                session.tell(Failed(error.code, error.reason))
                return
            session.receive(message, outlet)
            await session.has_room()
            await asyncio.sleep(0)  # events that are here already come without giving way


async def _await_close(reader: asyncio.StreamReader) -> None:
    """Read what a client still sends, for nothing: closing before that could cost it our last message."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(LONGEST_LINE_BYTES):
            pass


async def read_message(reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    """Return the next event as bytes.

    Raises:
        ProtocolError: it is too long, or does not begin with a header.
        asyncio.IncompleteReadError: the connection ended.
    """
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError as error:
        raise ProtocolError(INVALID_DATA, "Expected a header on a line.") from error
    length = sum(measure(line))
    if len(line) + length > most_bytes:
        raise ProtocolError(POLICY, f"An event may have {most_bytes} bytes.")
    return line + await reader.readexactly(length)
