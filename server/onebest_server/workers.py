"""Processes of the server: one that serves, or several that share a port and one that watches over them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from onebest.signals import stop_signals
from onebest_server.logs import set_up_logs
from onebest_server.models import Models
from onebest_server.server import Server, Settings, binding

#: Called with the port and that of Wyoming, None where there is none.
Announce = Callable[[int, int | None], None]
#: A worker that ends sooner than this is started again after a pause.
SHORTEST_LIFE_SECONDS = 10.0
PAUSE_SECONDS = 2.0
#: Workers that end so soon one after another before the server gives up.
MOST_SHORT_LIVES = 5
#: Signals that come closer together are one wish: to a group of processes, and what its supervisor passes on.
SAME_WISH_SECONDS = 1.0
#: Signals that a terminal sends to all processes that it runs.
FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP)
#: Files that a process has open besides its connections, amply.
FILES_BESIDE = 100
#: How often the supervisor looks for a wish.
_LOOK_SECONDS = 0.2

_LOG = logging.getLogger(__name__)


def run_process(
    settings: Settings,
    worker: int = 0,
    peers: Path | None = None,
    announce: Announce | None = None,
) -> None:
    """Serve in this process until one of ``stop_signals``, then drain; a later second one hurries."""
    set_up_logs()
    limits = settings.limits
    allow_files(FILES_BESIDE + 2 * limits.clients + limits.handshakes)  # two for a client of another worker
    models = Models(settings.model, settings.chunk_ms, beam=settings.beam)
    asyncio.run(_serve(Server(settings, models, worker, peers), announce))
    parent = multiprocessing.parent_process()
    if peers is not None and parent is not None and not parent.is_alive():
        shutil.rmtree(peers, ignore_errors=True)  # the supervisor was killed, and cannot


def allow_files(count: int) -> None:
    """Let this process have so many files open, sockets included; if it may not, as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < count:
        _LOG.warning(f"{most} files may be open, too few for the limits of clients and handshakes")


async def _serve(server: Server, announce: Announce | None) -> None:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()
    told = 0.0

    def stop_or_hurry() -> None:
        nonlocal told
        if not stop.is_set():
            told = loop.time()
            stop.set()
        elif loop.time() - told > SAME_WISH_SECONDS:
            hurry.set()

    for number in stop_signals():
        loop.add_signal_handler(number, stop_or_hurry)
    if (parent := multiprocessing.parent_process()) is not None:
        sentinel = parent.sentinel

        def follow_parent() -> None:
            loop.remove_reader(sentinel)
            stop.set()

        loop.add_reader(sentinel, follow_parent)
    await server.start()
    try:
        if announce is not None:
            announce(server.port, server.wyoming_port)
        _LOG.info("serving")
        await stop.wait()
    finally:
        _LOG.info("stopping")
        await server.drain(hurry)


class Supervisor:
    """Workers that share a port; one that dies is started again.

    Raises:
        ModelError: the workers could not load the model.
        ConfigError: the workers could not use the certificate, or a port is taken or not allowed.
    """

    def __init__(self, settings: Settings):
        set_up_logs()
        Models(settings.model, settings.chunk_ms, beam=settings.beam)
        settings.make_tls()
        with contextlib.ExitStack() as holders:
            ports = {
                name: holders.enter_context(_hold_port(settings.host, port)).getsockname()[1]
                for name in ("port", "wyoming_port")
                if (port := getattr(settings, name)) is not None
            }
            self._holders = holders.pop_all()
        self._settings = replace(settings, **ports)
        self._folder = Path(tempfile.mkdtemp(prefix="onebest-"))
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._started: dict[int, float] = {}
        self._due = dict.fromkeys(range(settings.workers), 0.0)
        self._short_lives = 0
        self._wishes = 0

    @property
    def port(self) -> int:
        """The port that the workers share."""
        return self._settings.port

    def run(self, announce: Announce | None = None) -> int:
        """Run until one of ``stop_signals``; return 0 if every worker then ended well.

        Args:
            announce: called with the ports once a worker takes clients.
        """
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
        for number in stop_signals():
            signal.signal(number, self._wish)
        resource_tracker.ensure_running()  # or starting it would let SIGINT through to the first worker
        try:
            while not self._wishes and self._short_lives < MOST_SHORT_LIVES:
                self._start_due()
                self._watch()
                if announce is not None and any(self._folder.glob("*.sock")):  # bound behind the ports
                    announce(self.port, self._settings.wyoming_port)
                    announce = None
            return self._end()
        except BaseException:
            self._end()
            raise
        finally:
            self._holders.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        self._wishes += 1

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker, due in self._due.items() if due <= now]:
            del self._due[worker]
            self._start(worker)

    def _start(self, worker: int) -> None:
        """Start a worker; what a terminal tells all processes it takes from the supervisor only."""
        process = self._context.Process(
            target=run_process, args=(self._settings, worker, self._folder), name=f"worker-{worker}"
        )
        signal.pthread_sigmask(signal.SIG_BLOCK, FROM_TERMINAL)
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_TERMINAL)
        self._processes[worker], self._started[worker] = process, time.monotonic()

    def _watch(self) -> None:
        """Wait for workers to end, and note when they are to start again."""
        wait([process.sentinel for process in self._processes.values()], _LOOK_SECONDS)
        now = time.monotonic()
        for worker, process in list(self._processes.items()):
            if process.is_alive() or self._wishes:
                continue
            _LOG.error("a worker ended", extra={"worker": worker, "code": process.exitcode})
            del self._processes[worker]
            self._forget_metrics(process)
            is_short = now - self._started[worker] < SHORTEST_LIFE_SECONDS
            self._short_lives = self._short_lives + 1 if is_short else 0
            self._due[worker] = now + PAUSE_SECONDS if is_short else now

    def _forget_metrics(self, process: BaseProcess) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid, str(self._folder))  # type: ignore[no-untyped-call]

    def _end(self) -> int:
        """Tell the workers to stop, once for each wish, until all have ended; return the exit status."""
        gave_up, told = not self._wishes, 0
        while running := [process for process in self._processes.values() if process.is_alive()]:
            if told < max(1, self._wishes):
                told += 1
                for process in running:
                    process.terminate()
            wait([process.sentinel for process in running], _LOOK_SECONDS)
        fine = (0, -signal.SIGTERM)  # the latter of a worker that was not up yet and had no clients
        return int(gave_up or any(process.exitcode not in fine for process in self._processes.values()))


def _hold_port(host: str, port: int) -> socket.socket:
    """Bind a port that the workers will share, without listening: so it stays ours while they come and go.

    Raises:
        ConfigError: it is taken, by another server that would share it too, or not allowed.
    """
    with binding(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
        holder = socket.socket(family, kind, protocol)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(address)
        except OSError:
            holder.close()
            raise
        return holder


def run_server(settings: Settings, announce: Announce) -> int:
    """Serve with as many processes as the settings say; return the exit status.

    Args:
        settings: see ``Settings``.
        announce: called with the ports once clients may connect.
    """
    if settings.workers == 1:
        run_process(settings, announce=announce)
        return 0
    return Supervisor(settings).run(announce)
