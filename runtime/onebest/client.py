"""A client of ``onebest serve``: samples out, text in, over connections that may break.

``AsyncClient`` is for asyncio, ``Client`` the same for programs without it. Both send audio as it comes and
give the text as it comes:

    with Client("ws://127.0.0.1:6006", sample_rate=16000) as client:
        client.send(samples)
        client.finish()
        for event in client:
            print(event)

A connection that breaks is made again, and nothing is lost or doubled: the server keeps the session for a
while and says up to which sample it has the audio. If the session is gone, because its server was, a new
one gets the audio again from where the last complete segment ended.

Axis legend: S samples. Offsets count samples from the client's first.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from onebest.connecting import CONNECT_ERRORS, advise, describe, is_refusal, without_secrets
from onebest.errors import OnebestError, StreamError, check_whole
from onebest.events import Event, FinalText, Notice, PartialText
from onebest.hotwords import check_phrases
from onebest.outbox import Outbox
from onebest.results import Word
from onebest.samples import check_samples

_T = TypeVar("_T")

PATH = "/onebest"
#: Audio in one message.
MESSAGE_SECONDS = 0.2
#: Audio kept for a server that has to begin again, where no segment ends for longer.
KEPT_SECONDS = 60.0
#: Begin again so much before the first word of a segment that was not complete.
LEAD_SECONDS = 0.5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
#: A server that answers no ping for so long is taken to be gone.
SILENCE_SECONDS = 60.0
#: Time that a server has to agree that a connection ends.
CLOSE_SECONDS = 1.0
_NOT_IN_USE = "A client connects in a with statement. Use it there: with Client(...) as client."
#: What a server may say; see ``onebest_server.messages``.
_MESSAGES = ("started", "resumed", "partial", "final", "behind", "finished", "error")


class ServerError(OnebestError, ConnectionError):
    """A server that cannot be reached, or that refuses."""


class AsyncClient:
    """A client for asyncio; an asynchronous context manager and iterator of events.

    Args:
        url: ``ws://`` or ``wss://``, host and port; without a path it is that of onebest's protocol.
        sample_rate: of the samples that will be sent.
        hotwords: words and phrases to expect.
        latency_ms: audio that one step of the server takes in; None is the server's choice.
        token: what the server asks for, if it does.
        give_up_seconds: for how long a connection is tried to be made.
        buffer_seconds: audio that waits for a connection; ``send`` waits beyond it.

    Raises:
        ConfigError: a hotword is no word or phrase, or the rate no whole number.
    """

    def __init__(
        self,
        url: str,
        sample_rate: int = 16000,
        *,
        hotwords: Sequence[str] = (),
        latency_ms: int | None = None,
        token: str | None = None,
        give_up_seconds: float = 60.0,
        buffer_seconds: float = 30.0,
    ):
        parts = urlsplit(url)
        # A load balancer that goes by this parameter leads a client back to the server that has its session.
        query = "&".join(filter(None, [parts.query, f"client={secrets.token_hex(8)}"]))
        path = PATH if parts.path in ("", "/") else parts.path
        self._url = urlunsplit(parts._replace(path=path, query=query))
        self._address = without_secrets(self._url)  # for people
        check_whole(sample_rate=sample_rate)
        self._rate = int(sample_rate)
        self._start = {
            "type": "start",
            "sample_rate": self._rate,
            "hotwords": list(check_phrases(hotwords)),
            "latency_ms": latency_ms,
        }
        self._headers = {"Authorization": f"Bearer {token.strip()}"} if token else {}
        self._give_up_seconds = give_up_seconds
        self._buffer_samples = round(buffer_seconds * sample_rate)
        self._outbox = Outbox()
        self._changed = asyncio.Condition()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._finishing = False
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        # The server's session: its name, the offset it began at, how many of its segments are complete.
        self._session: str | None = None
        self._base = self._session_segments = 0
        # Offsets: sent on this connection, held by the server, and complete whatever happens to the server.
        self._sent = self._acknowledged = self._settled = 0
        self._is_lost = False
        # Since the last session: when to give up, and the pause before the next try.
        self._deadline: float | None = None
        self._pause = FIRST_PAUSE_SECONDS

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def send(self, samples: npt.NDArray[Any]) -> None:
        """Send the next samples [S], float32 in [-1, 1] or int16, mono; wait while too much is under way.

        Raises:
            AudioError: the samples are no audio.
            ServerError: the server cannot be reached, or refuses.
            StreamError: the client is not in use yet, or was told that no more audio comes.
        """
        self._check_in_use()
        if self._finishing:
            raise StreamError("This client's audio is finished. Use a new one for what follows.")
        checked = check_samples(samples).copy()
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._error or self._outbox.end - self._acknowledged <= self._buffer_samples
            )
            self._raise_error()
            self._outbox.append(checked)
            self._changed.notify_all()

    async def finish(self) -> None:
        """Say that no more audio comes; the events end with the last text.

        Raises:
            StreamError: the client is not in use yet.
        """
        self._check_in_use()
        async with self._changed:
            self._finishing = True
            self._changed.notify_all()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Give the events until the last.

        Raises:
            ServerError: the server cannot be reached, or refuses.
            StreamError: the client is not in use yet.
        """
        self._check_in_use()
        while (event := await self._events.get()) is not None:
            yield event
        self._events.put_nowait(None)
        self._raise_error()

    async def poll(self) -> list[Event]:
        """Return the events that are there already.

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        events = []
        while not self._events.empty():
            if (event := self._events.get_nowait()) is None:
                self._events.put_nowait(None)
                break
            events.append(event)
        self._raise_error()
        return events

    def _check_in_use(self) -> None:
        if self._task is None:
            raise StreamError(_NOT_IN_USE)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _run(self) -> None:
        """Keep a connection until all is said."""
        try:
            while not await self._hold_connection():
                pass
        except Exception as error:  # whatever it is, who waits for events has to know
            async with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._events.put_nowait(None)

    async def _hold_connection(self) -> bool:
        """Make a connection and use it until it breaks; return whether all was said.

        Raises:
            ServerError: the server refuses, is another kind of server, or was away for too long.
        """
        connection = await self._connect()
        sender = None
        try:
            if await self._greet(connection):
                sender = asyncio.create_task(self._send_audio(connection))
                async for message in connection:
                    if await self._take(self._read(message)):
                        return True
            problem: Exception = EOFError("the server closed the connection")
        except ConnectionClosed as error:
            if is_refusal(error):
                raise self._give_up(error) from error
            problem = error
        finally:
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            await connection.close()
        await self._await_next_try("was lost", problem)
        return False

    async def _connect(self) -> ClientConnection:
        while True:
            try:
                return await connect(
                    self._url,
                    additional_headers=self._headers,
                    compression=None,
                    ping_timeout=SILENCE_SECONDS,
                    close_timeout=CLOSE_SECONDS,
                    max_size=None,
                )
            except CONNECT_ERRORS as error:
                if is_refusal(error):
                    raise self._give_up(error) from error
                await self._await_next_try(f"cannot be made ({describe(error)})", error)

    async def _await_next_try(self, problem: str, error: Exception) -> None:
        """Wait before a connection is made again, longer each time until a session is under way.

        Raises:
            ServerError: it has been tried for long enough.
        """
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline, self._pause = now + self._give_up_seconds, FIRST_PAUSE_SECONDS
        if now + self._pause > self._deadline:
            raise self._give_up(error) from error
        self._note_connection(problem)
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _give_up(self, error: Exception) -> ServerError:
        return ServerError(f"{self._address}: {describe(error)}. {advise(error)}")

    async def _greet(self, connection: ClientConnection) -> bool:
        """Start a session or resume the one there is; return False if that is gone."""
        if self._session is None:
            self._base = self._sent = max(self._settled, self._outbox.first)
            self._session_segments = 0
            await connection.send(json.dumps(self._start))
            return True
        resume = {"type": "resume", "session": self._session, "segments": self._session_segments}
        await connection.send(json.dumps(resume))
        answer = self._read(await connection.recv())
        if answer["type"] != "resumed":
            self._session = None
            return False
        self._sent = self._base + answer["acknowledged"]
        self._note_session()
        return True

    def _note_session(self) -> None:
        """Note that a session is under way."""
        self._deadline = None
        self._note_connection(None)

    async def _send_audio(self, connection: ClientConnection) -> None:
        length = round(MESSAGE_SECONDS * self._rate)
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._sent < self._outbox.end or self._finishing)
                    samples = self._outbox.read(self._sent, length)
                if not len(samples):
                    break
                await connection.send(samples.astype("<f4").tobytes())
                self._sent += len(samples)
            await connection.send(json.dumps({"type": "finish"}))
        except ConnectionClosed:
            pass

    def _read(self, message: str | bytes) -> dict[str, Any]:
        """Return a server's message.

        Raises:
            ServerError: it is none of our protocol.
        """
        try:
            fields = json.loads(message)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or fields.get("type") not in _MESSAGES:
            raise ServerError(
                f"{self._address}: expected a message of onebest's protocol, got {message[:50]!r}. "
                "Is it the address of onebest serve?"
            )
        return fields

    async def _take(self, message: dict[str, Any]) -> bool:
        """Take one of the server's messages; return whether all was said."""
        match message["type"]:
            case "started":
                self._session = message["session"]
                self._note_session()
            case "behind" if message["seconds"]:
                self._notify("behind", f"The server is {message['seconds']:.1f} s behind.")
            case "partial":
                start = self._offset(message["start"] - LEAD_SECONDS)
                await self._settle(start, message["acknowledged"])
                self._publish(message, PartialText)
            case "final":
                self._publish(message, FinalText)
                self._session_segments += 1
                await self._settle(self._offset(message["end"]), message["acknowledged"])
            case "finished":
                acknowledged = message["acknowledged"]
                await self._settle(self._base + acknowledged, acknowledged)
                self._session = None  # what comes now, another session takes
                return message["requested"] or (self._finishing and self._settled >= self._outbox.end)
            case "error":
                raise ServerError(f"{self._address}: {message['message']}")
        return False

    def _offset(self, seconds: float) -> int:
        return self._base + round(seconds * self._rate)

    async def _settle(self, settled: int, acknowledged: int) -> None:
        """Forget the audio that nobody will need again."""
        async with self._changed:
            self._acknowledged = self._base + acknowledged
            self._settled = max(self._settled, min(settled, self._acknowledged))
            kept = self._acknowledged - round(KEPT_SECONDS * self._rate)
            self._outbox.forget(max(self._settled, kept))
            self._changed.notify_all()

    def _publish(self, message: dict[str, Any], kind: type[PartialText | FinalText]) -> None:
        before = self._base / self._rate
        words = tuple(
            Word(word["word"], word["start"] + before, word["end"] + before, word["confidence"])
            for word in message.get("words", ())
        )
        start, end = message["start"] + before, message.get("end", message["start"]) + before
        self._events.put_nowait(kind(message["text"], start, end, words))

    def _notify(self, kind: Literal["behind", "connection"], message: str) -> None:
        self._events.put_nowait(Notice(kind, message))

    def _note_connection(self, problem: str | None) -> None:
        """Give a notice once of what the connection's problem is, and one when it is back."""
        if bool(problem) != self._is_lost:
            self._is_lost = bool(problem)
            how = f"{problem}; it is tried again" if problem else "is back"
            self._notify("connection", f"The connection to {self._address} {how}.")


class Client:
    """``AsyncClient`` for programs without asyncio: the same arguments and methods, one thread beside."""

    def __init__(self, url: str, sample_rate: int = 16000, **options: Any):
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = AsyncClient(url, sample_rate, **options)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="onebest-client", daemon=True)
        self._thread.start()
        self._call(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._client.__aexit__(None, None, None))
        loop, self._loop = self._loop, None
        assert loop is not None
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()

    def send(self, samples: npt.NDArray[Any]) -> None:
        """Send the next samples [S]; see ``AsyncClient.send``."""
        self._call(self._client.send(samples))

    def finish(self) -> None:
        """Say that no more audio comes."""
        self._call(self._client.finish())

    def __iter__(self) -> Iterator[Event]:
        """Give the events until the last; another thread may ``send`` meanwhile."""
        events = self._client.__aiter__()
        while (event := self._call(_next(events))) is not None:
            yield event

    def poll(self) -> list[Event]:
        """Return the events that are there already."""
        return self._call(self._client.poll())

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            work.close()
            raise StreamError(_NOT_IN_USE)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)
