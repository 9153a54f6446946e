"""Processes of the server: one that serves, or several that share a port and one that watches over them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from onebest_server.logs import set_up_logs
from onebest_server.models import Models
from onebest_server.server import Server, Settings

#: A worker that ends sooner than this is started again after as long a pause.
SHORTEST_LIFE_SECONDS = 2.0
#: Workers that end so soon one after another before the server gives up.
MOST_SHORT_LIVES = 5

_LOG = logging.getLogger(__name__)


def run_process(
    settings: Settings,
    worker: int = 0,
    peers: Path | None = None,
    announce: Callable[[int], None] | None = None,
) -> None:
    """Serve in this process until SIGTERM or SIGINT, then drain; a second signal hurries."""
    set_up_logs()
    models = Models(settings.model, settings.chunk_ms, beam=settings.beam)
    asyncio.run(_serve(Server(settings, models, worker, peers), announce))


async def _serve(server: Server, announce: Callable[[int], None] | None) -> None:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def stop_or_hurry() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_or_hurry)
    if (parent := multiprocessing.parent_process()) is not None:
        sentinel = parent.sentinel

        def follow_parent() -> None:
            loop.remove_reader(sentinel)
            stop.set()

        loop.add_reader(sentinel, follow_parent)
    await server.start()
    if announce is not None:
        announce(server.port)
    _LOG.info("serving")
    await stop.wait()
    _LOG.info("stopping")
    await server.drain(hurry)


class Supervisor:
    """Workers that share a port; one that dies is started again.

    Raises:
        ModelError: the workers could not load the model.
        ConfigError: the workers could not use the certificate.
        OSError: the port is taken or not allowed.
    """

    def __init__(self, settings: Settings):
        set_up_logs()
        Models(settings.model, settings.chunk_ms, beam=settings.beam)
        settings.make_tls()
        self._port_holder = _hold_port(settings.host, settings.port)
        self._settings = replace(settings, port=self._port_holder.getsockname()[1])
        self._folder = Path(tempfile.mkdtemp(prefix="onebest-"))
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._started: dict[int, float] = {}
        self._short_lives = 0
        self._stopping = False

    @property
    def port(self) -> int:
        """The port that the workers share."""
        return self._settings.port

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return 0 if every worker then ended well."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            for worker in range(self._settings.workers):
                self._start(worker)
            while not self._stopping and self._short_lives < MOST_SHORT_LIVES:
                self._watch()
            return self._end()
        finally:
            self._port_holder.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, worker: int) -> None:
        process = self._context.Process(
            target=run_process, args=(self._settings, worker, self._folder), name=f"worker-{worker}"
        )
        process.start()
        self._processes[worker], self._started[worker] = process, time.monotonic()

    def _watch(self) -> None:
        """Wait for a worker to end, and start it again."""
        wait([process.sentinel for process in self._processes.values()], timeout=0.2)
        for worker, process in list(self._processes.items()):
            if process.is_alive() or self._stopping:
                continue
            _LOG.error("a worker ended", extra={"worker": worker, "code": process.exitcode})
            self._forget_metrics(process)
            lived = time.monotonic() - self._started[worker]
            self._short_lives = self._short_lives + 1 if lived < SHORTEST_LIFE_SECONDS else 0
            if self._short_lives:
                time.sleep(SHORTEST_LIFE_SECONDS)
            self._start(worker)

    def _forget_metrics(self, process: BaseProcess) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid, str(self._folder))  # type: ignore[no-untyped-call]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, AttributeError):
                process.terminate()

    def _end(self) -> int:
        gave_up = not self._stopping
        self._stop(signal.SIGTERM, None)
        for process in self._processes.values():
            process.join()
        fine = (0, -signal.SIGTERM)  # the latter of a worker that was not up yet and had no clients
        return int(gave_up or any(process.exitcode not in fine for process in self._processes.values()))


def _hold_port(host: str, port: int) -> socket.socket:
    """Bind a port that the workers will share, without listening: so it stays ours while they come and go."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    holder = socket.socket(family, kind, protocol)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError:
        holder.close()
        raise
    return holder


def run_server(settings: Settings, announce: Callable[[int], None]) -> int:
    """Serve with as many processes as the settings say; return the exit status.

    Args:
        settings: see ``Settings``.
        announce: called with the port once it is bound.
    """
    if settings.workers == 1:
        run_process(settings, announce=announce)
        return 0
    supervisor = Supervisor(settings)
    announce(supervisor.port)
    return supervisor.run()
