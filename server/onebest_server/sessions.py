"""All sessions of one process: opened, found again, and handed what the threads did."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from onebest.results import Segment
from onebest_server.job import Job
from onebest_server.limits import Limits
from onebest_server.metrics import Metrics
from onebest_server.models import Models
from onebest_server.protocol import Protocol
from onebest_server.scheduler import Batch, Scheduler
from onebest_server.session import Session

#: How often limits of time are looked at.
CHECK_SECONDS = 0.5
#: The share of the newest measurement in the utilisation and the real-time factor.
_NEWEST = 0.2

_LOG = logging.getLogger("onebest_server.access")


class Sessions:
    """The sessions of one process.

    Args:
        models: what decodes.
        limits: see ``Limits``.
        threads: threads that decode.
        worker: this process's number among ``workers``.
        workers: processes that share the port.
        log_text: whether the log may have what was said.
    """

    def __init__(
        self,
        models: Models,
        limits: Limits,
        *,
        threads: int = 1,
        worker: int = 0,
        workers: int = 1,
        log_text: bool = False,
    ):
        self.log_text = log_text
        self.models, self.limits, self.metrics = models, limits, Metrics()
        self.clock: Callable[[], float] = time.monotonic
        self._worker, self._workers = worker, workers
        self._threads = threads
        self._scheduler = Scheduler(self._report, threads, limits.batch)
        self._all: dict[str, Session] = {}
        self._of_job: dict[Job, Session] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_seconds = self._audio_seconds = 0.0

    def start(self) -> None:
        """Start the threads; the calling event loop is the sessions'."""
        self._loop = asyncio.get_running_loop()
        self._scheduler.start()

    async def stop(self) -> None:
        """End all sessions and the threads."""
        for session in list(self._all.values()):
            session.end()
        await asyncio.to_thread(self._scheduler.stop)
        self._loop = None

    def new_name(self) -> str:
        """Return a name that nobody can guess, for a session of this process."""
        return f"{self._worker}-{secrets.token_urlsafe(18)}"

    def open(self, name: str, request_id: str, protocol: Protocol) -> Session:
        """Begin a session."""
        job = Job(self.models.open, self.clock)
        session = Session(name, request_id, protocol, job, self)
        self._all[name] = self._of_job[job] = session
        self.metrics.sessions.labels(protocol.handshake.path).inc()
        self._count()
        _LOG.info("session begins", extra={"request_id": request_id, "path": protocol.handshake.path})
        return session

    def remove(self, session: Session) -> None:
        """Forget a session that ended."""
        if self._all.pop(session.name, None) is None:
            return
        del self._of_job[session.job]
        self._count()
        fields = {
            "request_id": session.request_id,
            "path": session.protocol.handshake.path,
            "seconds": round(self.clock() - session.started, 3),
            "audio_seconds": round(session.job.taken_seconds, 3),
            "code": session.code,
            "reason": session.reason,
        }
        _LOG.info("session ends", extra=fields)

    def find(self, name: str) -> Session | None:
        """Return the session of this process with that name."""
        return self._all.get(name)

    def worker_of(self, name: str) -> int | None:
        """Return the number of the other process whose session this is, if one could be it."""
        others = (worker for worker in range(self._workers) if worker != self._worker)
        return next((worker for worker in others if name.startswith(f"{worker}-")), None)

    def make_room_for_detached(self) -> None:
        """End the sessions that have waited longest for their clients, beyond the limit."""
        waiting = [session for session in self._all.values() if session.detached is not None]
        waiting.sort(key=lambda session: session.detached or 0.0)
        for session in waiting[: max(0, len(waiting) - self.limits.detached)]:
            session.end()
        self._count()

    def note_segments(self, session: Session, segments: tuple[Segment, ...]) -> None:
        """Log the text of segments, if that was asked for."""
        for segment in segments if self.log_text else ():
            _LOG.info("segment", extra={"request_id": session.request_id, "text": segment.text})

    def submit(self, job: Job) -> None:
        """Put a job in line."""
        self._scheduler.submit(job)

    @property
    def busy(self) -> bool:
        """Whether a connected client still waits for text."""
        return any(session.is_busy and session.detached is None for session in self._all.values())

    @property
    def connected(self) -> int:
        """Sessions that have a connection."""
        return sum(session.detached is None for session in self._all.values())

    def finish_all(self, code: int, reason: str, busy: bool = True) -> None:
        """Complete all texts and close; without ``busy`` only sessions that have nothing to complete."""
        for session in list(self._all.values()):
            if busy or not session.is_busy:
                session.finish_early(code, reason)

    async def watch(self) -> None:
        """Apply the limits of time and keep the metrics, for ever."""
        while True:
            due = self.clock() + CHECK_SECONDS
            await asyncio.sleep(CHECK_SECONDS)
            now = self.clock()
            late = now - due
            self.metrics.loop_lag.observe(late)
            self._check(now, late)
            self._measure(now, CHECK_SECONDS + late)

    def _check(self, now: float, late: float) -> None:
        for session in list(self._all.values()):
            session.excuse(late)
            session.check(now)

    def _measure(self, now: float, elapsed: float) -> None:
        metrics, sessions = self.metrics, self._all.values()
        metrics.queue_seconds.set(sum(session.job.queued_seconds for session in sessions))
        metrics.behind.set(sum(s.behind_seconds(now) >= self.limits.behind_seconds for s in sessions))
        self._utilisation += _NEWEST * (self._busy_seconds / elapsed / self._threads - self._utilisation)
        metrics.utilisation.set(self._utilisation)
        if self._audio_seconds:
            metrics.real_time_factor.set(self._busy_seconds / self._audio_seconds)
        self._busy_seconds = self._audio_seconds = 0.0

    _utilisation = 0.0

    def _count(self) -> None:
        connected = self.connected
        self.metrics.streams.set(connected)
        self.metrics.detached.set(len(self._all) - connected)

    def _report(self, batch: Batch) -> None:
        """Called by a thread of the scheduler."""
        if (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._deliver, batch)

    def _deliver(self, batch: Batch) -> None:
        metrics = self.metrics
        self._busy_seconds += batch.busy_seconds
        metrics.busy_seconds.inc(batch.busy_seconds)
        if batch.size:
            metrics.batch_size.observe(batch.size)
        for job, turn in batch.turns:
            if turn.step_latency is not None:
                metrics.partial_latency.observe(turn.step_latency)
            if turn.final_latency is not None:
                metrics.final_latency.observe(turn.final_latency)
            self._audio_seconds += turn.audio_seconds
            metrics.audio_seconds.inc(turn.audio_seconds)
            if (session := self._of_job.get(job)) is not None:
                session.deliver(turn)
