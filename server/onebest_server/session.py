"""A session: one conversation, that is a protocol, a job, and the connection it has at the moment.

It lives on the event loop and does no input or output itself: a connection hands it messages (``receive``),
the scheduler's threads hand it turns (``deliver``), and what it has to say goes to its ``Outlet``. It
outlives its connection where the protocol said ``Keep``.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from onebest_server.job import Job, Turn
from onebest_server.protocol import (
    INTERNAL,
    NORMAL,
    POLICY,
    Action,
    Audio,
    Behind,
    Close,
    End,
    Event,
    Failed,
    Finished,
    Keep,
    Message,
    Open,
    Progress,
    Protocol,
    ProtocolError,
    Resume,
    Resumed,
    Send,
    Work,
)

if TYPE_CHECKING:
    from onebest_server.sessions import Sessions

#: A client is told again that recognition is behind when that has changed by so much.
BEHIND_STEP_SECONDS = 1.0
#: How the reason begins when a session cannot be resumed.
UNKNOWN_SESSION = "No such session."

_LOG = logging.getLogger(__name__)


class Outlet(ABC):
    """A connection as a session sees it.

    Attributes:
        session: whom the connection's messages are for; another one after ``Resume``.
    """

    session: Session

    @abstractmethod
    def send(self, message: Message) -> None:
        """Queue a message for the client."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Close the connection once everything queued is sent."""

    @abstractmethod
    def forward(self, worker: int, message: Message) -> None:
        """Hand the connection over to the worker that holds the session which a message asks for."""


class Session:
    """One conversation.

    Args:
        name: what it can be resumed by.
        request_id: what the log calls it.
        protocol: its side of the conversation.
        job: its work.
        sessions: all sessions of this process.

    Attributes:
        closed: whether it is over; whatever comes then is ignored.
        detached: when its connection was lost, while it waits for another one.
        code: the close code it ended with.
    """

    def __init__(self, name: str, request_id: str, protocol: Protocol, job: Job, sessions: Sessions):
        self.name, self.request_id = name, request_id
        self.protocol, self.job = protocol, job
        self.outlet: Outlet | None = None
        self.closed = False
        self.detached: float | None = None
        self.code, self.reason = NORMAL, ""
        self.started = self._heard = sessions.clock()
        self._sessions = sessions
        self._room = asyncio.Event()
        self._room.set()
        self._keep = self._open = self._complete = self._greeted = False
        self._unfinished = 0
        self._ending: Close | None = None
        self._first_audio: float | None = None
        self._told_behind = 0.0
        self._message: Message = b""

    # The connection's side.

    def attach(self, outlet: Outlet) -> None:
        """Take a connection; one that was there before is closed."""
        if self.outlet is not None:
            self.outlet.close(POLICY, "This session goes on with another connection.")
        self.outlet, outlet.session = outlet, self
        self.detached = None
        self.hear()
        if not self._greeted:
            self._greeted = True
            self._guard(self.protocol.greet)

    def detach(self, outlet: Outlet, clean: bool) -> None:
        """Lose a connection: wait for another one, or end if the client closed it or cannot come back."""
        if self.outlet is not outlet:
            return
        self.outlet = None
        if clean or self.closed or self._ending or not self._keep:
            self.end()
        else:
            self.detached = self._sessions.clock()
            self._sessions.make_room_for_detached()

    def receive(self, message: Message, outlet: Outlet) -> None:
        """Take a client's message from its connection."""
        if self.closed or self._complete or self._ending or outlet is not self.outlet:
            return
        self._message = message
        self.hear()
        self._guard(lambda: self.protocol.receive(message))

    def hear(self) -> None:
        """Take a sign of life of the client's."""
        self._heard = self._sessions.clock()

    async def has_room(self) -> None:
        """Wait until the queue has room for more audio."""
        await self._room.wait()

    # The scheduler's side.

    def deliver(self, turn: Turn) -> None:
        """Take what the job's turn gave."""
        for event in turn.events:
            self._unfinished -= isinstance(event, Finished)
            if isinstance(event, Progress):
                self._sessions.note_segments(self, event.segments)
            self.tell(event)
        self._look_at_queue()
        if self._ending and not self._unfinished and not self.closed:
            self._perform([self._ending])

    @property
    def is_busy(self) -> bool:
        """Whether an utterance has begun whose text is not complete."""
        return self._unfinished > 0

    @property
    def awaits_text(self) -> bool:
        """Whether the client has ended an utterance whose text is not complete."""
        return self._unfinished > self._open

    def tell(self, event: Event) -> None:
        """Hand an event to the protocol."""
        if not self.closed:
            self._guard(lambda: self.protocol.handle(event))

    # The server's side.

    def finish_early(self, code: int, reason: str) -> None:
        """Complete the text of what came so far, and close; what comes from now on is ignored."""
        if self.closed or self._ending:
            return
        self._ending = Close(code, reason)
        if self._open:
            self._perform([End()])
        if not self._unfinished:
            self._perform([self._ending])

    def excuse(self, seconds: float) -> None:
        """Leave time in which the server heard nobody, as while its process is stopped, out of the limits."""
        self._heard += seconds
        if self.detached is not None:
            self.detached += seconds

    def check(self, now: float) -> None:
        """Apply the limits of time, and tell the client if recognition has fallen behind."""
        limits = self._sessions.limits
        if self.detached is not None:
            if now - self.detached > limits.detached_seconds:
                self.end()
        elif self._complete or self._ending:
            return
        elif now - self._heard > limits.idle_seconds and self._is_waiting_for_client():
            self._sessions.metrics.refuse("idle_seconds")
            self._leave_idle(f"Nothing came for {limits.idle_seconds:g} s.")
        elif now - self.started > limits.session_seconds:
            self._sessions.metrics.refuse("session_seconds")
            self.finish_early(POLICY, f"A session may last {limits.session_seconds:g} s.")
        else:
            self._report_behind(now)

    def end(self) -> None:
        """Forget all that is left of this session."""
        self.closed = True
        self.job.cancel()
        self._room.set()
        self._sessions.remove(self)

    def behind_seconds(self, now: float) -> float:
        """Return how far recognition is behind live audio.

        That is how long the oldest audio has waited, yet no more than what real time leads over the audio
        taken in: a client that sends faster than it speaks makes its audio wait itself.
        """
        if self._first_audio is None:
            return 0.0
        lead = now - self._first_audio - self.job.taken_seconds
        return max(0.0, min(self.job.waiting_seconds(now), lead))

    # How actions are carried out.

    def _guard(self, ask: Callable[[], Iterable[Action]]) -> None:
        """Carry out what a protocol answers; its errors, and those of the client, end this session only."""
        try:
            self._perform(ask())
        except ProtocolError as error:
            self._sessions.metrics.refuse("protocol")
            self.tell(Failed(error.code, error.reason))
        except Exception:
            _LOG.exception("a protocol failed", extra={"request_id": self.request_id})
            self._close(Close(INTERNAL, "The server failed."))

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    if self.outlet is not None:
                        self.outlet.send(action.message)
                case Close():
                    self._close(self._ending or action)
                    return
                case Keep():
                    self._keep = True
                case Resume():
                    self._resume(action)
                case _:
                    self._queue(action)
            if self.closed:
                return

    def _queue(self, work: Work) -> None:
        if isinstance(work, Open) == self._open:
            raise ProtocolError(
                POLICY, "Audio came before its start." if not self._open else "Already started."
            )
        if isinstance(work, Open):
            self._open = True
            self._unfinished += 1
        elif isinstance(work, End):
            self._open = False
        elif isinstance(work, Audio) and self._first_audio is None:
            self._first_audio = self._sessions.clock()
        self.job.put(work)
        self._sessions.submit(self.job)
        self._look_at_queue()

    def _look_at_queue(self) -> None:
        if self.job.queued_load < self._sessions.limits.queue_seconds or not self.job.has_work:
            self._room.set()
        else:
            self._room.clear()

    def _close(self, close: Close) -> None:
        self.code, self.reason = close.code, close.reason
        if self.outlet is not None:
            self.outlet.close(close.code, close.reason)
        if self._keep and close.code == NORMAL:
            self._complete = True  # until the client is known to have it all
        else:
            self.end()

    def _resume(self, action: Resume) -> None:
        """Give this session's connection to another session, and end."""
        outlet, found = self.outlet, self._sessions.find(action.session)
        assert outlet is not None, "a message came, so there is a connection"
        if found is not None:
            found.attach(outlet)
            found.tell(Resumed(action.seen))
        elif (worker := self._sessions.worker_of(action.session)) is not None:
            outlet.forward(worker, self._message)
        else:
            raise ProtocolError(POLICY, f"{UNKNOWN_SESSION} Start a new one.")
        self.outlet = None
        self.end()

    def _is_waiting_for_client(self) -> bool:
        is_behind = self.job.queued_seconds > 0 and self.job.has_work
        return not is_behind and not self.awaits_text

    def _leave_idle(self, reason: str) -> None:
        """Close an idle client; one that said something gets its text first."""
        if self._open and self._first_audio is not None:
            self.finish_early(POLICY, reason)
        else:
            self.tell(Failed(POLICY, reason))

    def _report_behind(self, now: float) -> None:
        behind, least = self.behind_seconds(now), self._sessions.limits.behind_seconds
        if behind >= least and abs(behind - self._told_behind) >= BEHIND_STEP_SECONDS:
            self._told_behind = behind
            self.tell(Behind(round(behind, 1)))
        elif self._told_behind and behind < least / 2:
            self._told_behind = 0.0
            self.tell(Behind(0.0))
