"""Threads that decode the ready chunks of all sessions in batches, a few chunks a session and turn at most.

Jobs with work stand in one line. A thread takes its share of those in front, decodes what is ready of each in
one batch, and sends those with more work to the back: every client gets its turn, however much it has sent.
Who has said all and waits for the last words may pass the others, yet has three quarters of a batch at most.
Under load the others' turns come later, and then have several chunks, which cost less together.
onnxruntime releases the interpreter's lock, so threads use as many cores.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from onebest.recognizer import Recognizer, Stream
from onebest_server.job import FAILED, Job, Turn
from onebest_server.protocol import INTERNAL

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """What one thread did in one go.

    Attributes:
        turns: each job with what its turn gave.
        size: jobs whose chunks were decoded together.
        busy_seconds: how long it took.
    """

    turns: list[tuple[Job, Turn]]
    size: int
    busy_seconds: float


class Scheduler:
    """A line of jobs and the threads that work on it.

    Args:
        report: called by a thread after each batch.
        threads: how many there are.
        largest_batch: jobs whose chunks are decoded together at most.
    """

    def __init__(self, report: Callable[[Batch], None], threads: int = 1, largest_batch: int = 16):
        self._report = report
        self._largest_batch = largest_batch
        self._line: deque[Job] = deque()
        self._in_line: set[Job] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [threading.Thread(target=self._run, name=f"decode-{i}") for i in range(threads)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each thread complete its batch, and wait for it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def submit(self, job: Job) -> None:
        """Put a job with work in line, unless it stands there or a thread is at work on it."""
        with self._changed:
            if job not in self._in_line and job.has_work:
                self._in_line.add(job)
                self._line.append(job)
                self._changed.notify()

    def _run(self) -> None:
        while jobs := self._take():
            started = time.perf_counter()
            size = self._decode(jobs)
            turns = [(job, job.collect(advanced)) for job, advanced in jobs.items()]
            self._report(Batch(turns, size, time.perf_counter() - started))
            self._put_back(jobs)

    def _take(self) -> dict[Job, bool]:
        """Wait for jobs and return this thread's share, each with False; nothing once stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._stopped)
            if self._stopped:
                return {}
            share = min(-(-len(self._line) // len(self._threads)), self._largest_batch)
            passing = islice((job for job in self._line if job.is_ending), max(1, 3 * share // 4))
            jobs = dict.fromkeys(islice(dict.fromkeys([*passing, *self._line]), share), False)
            self._line = deque(job for job in self._line if job not in jobs)
            return jobs

    def _decode(self, jobs: dict[Job, bool]) -> int:
        """Decode what is ready of each job, note in ``jobs`` whose it was, and return of how many it was."""
        groups: dict[Recognizer, dict[Job, Stream]] = {}
        for job in jobs:
            if (stream := job.feed()) is not None:
                groups.setdefault(stream.recognizer, {})[job] = stream
        for recognizer, streams in groups.items():
            try:
                recognizer.advance(list(streams.values()))
                jobs.update(dict.fromkeys(streams, True))
            except Exception:
                _LOG.exception("a batch failed")
                for job in streams:
                    job.fail(INTERNAL, FAILED)
        return sum(len(streams) for streams in groups.values())

    def _put_back(self, jobs: Iterable[Job]) -> None:
        with self._changed:
            for job in jobs:
                if job.has_work:
                    self._line.append(job)
                    self._changed.notify()
                else:
                    self._in_line.discard(job)
