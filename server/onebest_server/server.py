"""One server process: a port, the sessions, and how they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve, unix_serve
from websockets.http11 import Request, Response

from onebest.errors import ConfigError
from onebest_server.access import Access, choose_subprotocol, is_loopback
from onebest_server.connection import ClientConnection, Doorway, WebsocketOutlet, converse, peer_path
from onebest_server.http import SHUTTING_DOWN, Admitted, Front
from onebest_server.limits import Limits
from onebest_server.models import Models
from onebest_server.protocol import GOING_AWAY, Handshake
from onebest_server.sessions import Sessions
from onebest_server.wyoming import WyomingListener

#: Time that the last texts and closes get when the server stops.
STOP_SECONDS = 10.0
#: Keeps connections alive through routers that forget silent ones.
PING_SECONDS = 20.0
#: Messages that are read before the one at hand is dealt with; each may have message_bytes.
MESSAGES_AHEAD = 4
#: Pings that a client has to leave without an answer before it is idle.
PINGS_BEFORE_IDLE = 3
_BACKLOG = 1024
_MOST_PORT = 65535


@dataclass(frozen=True)
class Settings:
    """How a server is set up.

    Attributes:
        host: address to bind.
        port: 0 is any free one.
        model: the model's folder; None is the one that onebest ships.
        chunk_ms: latency of clients that do not choose; None is the model's own.
        beam: of the search; 1 is greedy.
        threads: threads that decode, in each process.
        workers: processes that share the port.
        limits: see ``Limits``.
        tokens: see ``Access``.
        origins: see ``Access``.
        certificate: PEM file with the chain for TLS; None is no TLS.
        key: PEM file with its key; None if the certificate's file has it.
        log_text: whether the log may have what was said.
        wyoming_port: port for clients of Wyoming; None is no such port. Wyoming knows neither tokens nor TLS.

    Raises:
        ConfigError: no host, an impossible port, one for Wyoming beside tokens, which its clients would not
            need, or a key without its certificate.
    """

    host: str = "127.0.0.1"
    port: int = 6006
    model: Path | None = None
    chunk_ms: int | None = None
    beam: int = 1
    threads: int = 1
    workers: int = 1
    limits: Limits = field(default_factory=Limits)
    tokens: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    log_text: bool = False
    wyoming_port: int | None = None

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("Expected an address to bind, such as 0.0.0.0 for all of this machine's.")
        for port in (self.port, self.wyoming_port or 0):
            if not 0 <= port <= _MOST_PORT:
                raise ConfigError(f"Expected a port from 0 to {_MOST_PORT}, got {port}.")
        if self.wyoming_port and self.wyoming_port == self.port:
            raise ConfigError(f"Wyoming needs a port of its own, got {self.port} for both.")
        if self.key is not None and self.certificate is None:
            raise ConfigError(f"{self.key} is a key: expected its certificate too, for TLS.")
        if self.wyoming_port is not None and self.tokens:
            raise ConfigError("Wyoming knows no tokens: serve it without tokens, in a process of its own.")

    @property
    def access(self) -> Access:
        """Who may connect."""
        return Access(self.tokens, self.origins, is_loopback(self.host))

    def make_tls(self) -> ssl.SSLContext | None:
        """Return what TLS needs, or None without it.

        Raises:
            ConfigError: certificate or key cannot be used.
        """
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(map(str, filter(None, (self.certificate, self.key))))
            raise ConfigError(f"{files}: expected a certificate and its key ({error}).") from error
        return context


@contextlib.contextmanager
def binding(host: str, port: int) -> Iterator[None]:
    """Let an error say which address could not be bound.

    Raises:
        ConfigError: it is taken or not allowed.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"Cannot serve at {host}:{port}: {error.strerror}.") from error


class Server:
    """A server process.

    Args:
        settings: see ``Settings``.
        models: what decodes.
        worker: this process's number among ``settings.workers``.
        peers: a folder for the sockets over which workers hand clients to each other.

    Attributes:
        port: the port, once started.
        wyoming_port: that of Wyoming, once started.
        sessions: its sessions.
    """

    def __init__(self, settings: Settings, models: Models, worker: int = 0, peers: Path | None = None):
        limits = settings.limits
        self._settings, self._limits = settings, limits
        self._worker, self._peers = worker, peers
        self.port, self.wyoming_port = settings.port, settings.wyoming_port
        self.sessions = Sessions(
            models,
            limits,
            threads=settings.threads,
            worker=worker,
            workers=settings.workers,
            log_text=settings.log_text,
        )
        metrics = self.sessions.metrics
        handshake = Handshake(latencies_ms=models.latencies_ms, limits=limits)
        self._wyoming = WyomingListener(self.sessions, handshake, limits)
        self._front = Front(settings.access, metrics, handshake, limits.clients)
        self._doorway = Doorway(limits.handshakes, metrics)
        self._admitted: set[ServerConnection] = set()
        self._outlets: set[WebsocketOutlet] = set()
        self._listeners: list[WebsocketServer] = []
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind the ports and take clients.

        Raises:
            ConfigError: a port is taken or not allowed, or the certificate cannot be used.
        """
        tls = self._settings.make_tls()
        self.sessions.start()
        self._watch = asyncio.create_task(self.sessions.watch())
        try:
            await self._bind(tls)
        except BaseException:
            await self._stop()
            raise

    async def _bind(self, tls: ssl.SSLContext | None) -> None:
        host, shared = self._settings.host, self._settings.workers > 1
        options = self._options() | {"reuse_port": shared or None}
        if tls is not None:
            options |= {"ssl": tls, "ssl_handshake_timeout": self._limits.handshake_seconds}
        with binding(host, self.port):
            self._listeners.append(await serve(self._converse, host, self.port, **options))
        self.port = self._listeners[0].sockets[0].getsockname()[1]
        if self.wyoming_port is not None:
            with binding(host, self.wyoming_port):
                self.wyoming_port = await self._wyoming.start(host, self.wyoming_port, shared)
        if self._peers is not None:  # last: this socket says that the ports are bound
            path = peer_path(self._peers, self._worker)
            path.unlink(missing_ok=True)
            unpinged = self._options() | {"ping_interval": None}  # the worker at the client pings it
            self._listeners.append(await unix_serve(self._converse, str(path), **unpinged))

    def _options(self) -> dict[str, Any]:
        return {
            "process_request": self._answer,
            "select_subprotocol": lambda connection, offered: choose_subprotocol(offered),
            "create_connection": self._connect,
            "open_timeout": self._limits.handshake_seconds,
            "max_size": self._limits.message_bytes,
            "max_queue": MESSAGES_AHEAD,
            "ping_interval": min(PING_SECONDS, self._limits.idle_seconds / PINGS_BEFORE_IDLE),
            "ping_timeout": None,  # idle_seconds finds clients that are gone; reading may pause for longer
            "compression": None,
            "backlog": _BACKLOG,
        }

    def _connect(self, *arguments: Any, **named: Any) -> ServerConnection:
        connection = ClientConnection(*arguments, **named)
        connection.doorway = self._doorway
        connection.on_pong = connection.on_lost = lambda: None
        return connection

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request, or admit it."""
        assert isinstance(connection, ClientConnection)
        self._admitted = {taken for taken in self._admitted if not taken.transport.is_closing()}
        self._front.room = self._limits.clients - len(self._admitted) - len(self._wyoming.connections)
        trusted = len(self._listeners) > 1 and connection.server is self._listeners[1]
        answer = self._front.answer(request, self.sessions.new_name(), trusted)
        if isinstance(answer, Response):
            if getattr(request, "method", "GET") == "HEAD":  # websockets 15 hangs up on those
                answer.body = b""
            return answer
        self._admitted.add(connection)
        self._wyoming.room = self._limits.clients - len(self._admitted)
        connection.admitted = answer
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        assert isinstance(connection, ClientConnection)
        admitted: Admitted = connection.admitted
        protocol = admitted.protocol
        session = self.sessions.open(protocol.handshake.session, admitted.request_id, protocol)
        outlet = WebsocketOutlet(connection, self._limits.unread_bytes, self.sessions.metrics)
        self._outlets.add(outlet)
        try:
            await converse(connection, session, outlet, self._peers)
        finally:
            self._outlets.discard(outlet)
            self._admitted.discard(connection)
            self._wyoming.room = self._limits.clients - len(self._admitted)

    @property
    def _busy(self) -> bool:
        """Whether a client still waits for text, or is carried to another worker, where it may."""
        return self.sessions.busy or any(outlet.forwarded for outlet in self._outlets)

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Stop without losing a text: no new clients; running ones may end, then get what they have.

        Until the last of them has left, who asks is told that the server is not ready any more.

        Args:
            hurry: once set, running clients are not waited for.
        """
        self._front.draining = True
        self._wyoming.close()
        self.sessions.finish_all(GOING_AWAY, SHUTTING_DOWN, busy=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.drain_seconds):
                while self._busy and not (hurry and hurry.is_set()):
                    await asyncio.sleep(0.05)
        self.sessions.finish_all(GOING_AWAY, SHUTTING_DOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while self._outlets or self._wyoming.connections:  # the admitted may never have opened
                    await asyncio.sleep(0.05)
        await self._stop()

    async def _stop(self) -> None:
        for listener in self._listeners:
            listener.close(close_connections=False)
        self._wyoming.close()
        self._wyoming.abort()
        self._doorway.abort()
        for connection in self._admitted:
            connection.transport.abort()
        for listener in self._listeners:
            await listener.wait_closed()
        if self._watch is not None:
            self._watch.cancel()
        await self.sessions.stop()
