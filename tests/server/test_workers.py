"""``onebest serve`` as a command: worker processes, one of them killed, a signal to stop, what it prints."""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from clients import finals
from tiny_model import make_audio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from onebest.cli import main
from onebest.client import AsyncClient
from onebest.events import FinalText
from onebest_server import workers
from onebest_server.commands.serve import page_address
from onebest_server.server import Settings
from onebest_server.workers import Supervisor, run_process

AUDIO = make_audio(6.0)
ONEBEST = Path(sys.executable).with_name("onebest")


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.getLogger("websockets").setLevel(logging.NOTSET)


@contextlib.contextmanager
def serve(model, *options, hangup=signal.SIG_DFL):
    """Run the command with that handler of SIGHUP; give the process and its port once it is ready."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [ONEBEST, "serve", "--port", "0", "--model", model, *options]
    before = signal.signal(signal.SIGHUP, hangup)  # what this process ignores a new one ignores too
    try:
        started = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    with started as process:
        try:
            port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
            wait_until(lambda: is_ready(port))
            yield process, port
        finally:
            process.kill()


def is_ready(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200
    except OSError:
        return False


def is_bound(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def entries(process):
    """Return what the process has logged, once it has ended."""
    return [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]


def workers_of(process):
    """Return the ids of a process's workers."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


async def start(port):
    """Open a connection to /onebest and start; return it with its session's name."""
    connection = await connect(f"ws://127.0.0.1:{port}/onebest")
    await connection.send('{"type": "start"}')
    return connection, json.loads(await connection.recv())["session"]


async def start_at(port, worker):
    """Open connections until one is at that worker."""
    while True:
        connection, session = await start(port)
        if session.startswith(f"{worker}-"):
            return connection, session
        await connection.close()


async def finish(connection, samples):
    await connection.send(samples.tobytes())
    await connection.send('{"type": "finish"}')
    return finals([json.loads(message) async for message in connection])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_process_drains_on_a_signal(tiny_folder, say, number):
    with serve(tiny_folder) as (process, port):

        async def run():
            connection, _ = await start(port)
            await connection.send(AUDIO[:16000].tobytes())
            await connection.recv()
            process.send_signal(number)
            return await finish(connection, AUDIO[16000:])

        assert asyncio.run(run()) == say(AUDIO)
        assert process.wait(20) == 0
        assert [entry["event"] for entry in entries(process)] == [
            "serving",
            "session begins",
            "stopping",
            "session ends",
        ]


def test_a_worker_is_killed(tiny_folder, say):
    """Our client begins again with another worker; the clients of the other worker notice nothing."""
    with serve(tiny_folder, "--workers", 2) as (process, port):
        wait_until(lambda: len(workers_of(process)) == 2)

        async def run():
            victim, survivor = await start_at(port, 0), await start_at(port, 1)
            clients = [AsyncClient(f"ws://127.0.0.1:{port}") for _ in range(4)]
            for client in clients:
                await client.__aenter__()
                await client.send(AUDIO[:32000])
                await anext(aiter(client))
            await survivor[0].send(AUDIO[:32000].tobytes())
            os.kill(workers_of(process)[0], signal.SIGKILL)
            await victim[0].wait_closed()
            for client in clients:
                await client.send(AUDIO[32000:])
                await client.finish()
            texts = [[e.text async for e in client if isinstance(e, FinalText)] for client in clients]
            for client in clients:
                await client.__aexit__(None, None, None)
            return texts, await finish(survivor[0], AUDIO[32000:])

        texts, survivor = asyncio.run(run())
        assert texts == [say(AUDIO)] * 4
        assert survivor == say(AUDIO)
        wait_until(lambda: len(workers_of(process)) == 2)
        process.terminate()
        assert process.wait(20) == 0
        assert "a worker ended" in [entry["event"] for entry in entries(process)]


def test_a_session_is_resumed_at_its_worker_through_the_other(tiny_folder, say):
    with serve(tiny_folder, "--workers", 2) as (process, port):

        async def run():
            first, session = await start_at(port, 1)
            await first.send(AUDIO[:32000].tobytes())
            await first.recv()
            first.transport.abort()
            for _ in range(8):  # some of these reach the other worker
                lost, _ = await resume(session)
                lost.transport.abort()
            connection, acknowledged = await resume(session)
            assert acknowledged == 32000
            return await finish(connection, AUDIO[32000:])

        async def resume(session):
            connection = await connect(f"ws://127.0.0.1:{port}/onebest")
            await connection.send(json.dumps({"type": "resume", "session": session, "segments": 0}))
            return connection, json.loads(await connection.recv())["acknowledged"]

        assert asyncio.run(run()) == say(AUDIO)
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        assert float(re.search(r'onebest_sessions_total{path="/onebest"} (\S+)', metrics)[1]) >= 10
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


TERMINATE, INTERRUPT, HANGUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@pytest.mark.parametrize(
    ("number", "all_told"),
    [(TERMINATE, False), (TERMINATE, True), (INTERRUPT, True), (HANGUP, False), (HANGUP, True)],
)
def test_workers_drain_on_a_signal(tiny_folder, say, number, all_told):
    """Whether it comes to the supervisor or, as from a terminal or for a control group, to all at once."""
    with serve(tiny_folder, "--workers", 2) as (process, port):
        wait_until(lambda: len(workers_of(process)) == 2)

        async def run():
            connections = [(await start_at(port, worker))[0] for worker in (0, 1)]
            for connection in connections:
                await connection.send(AUDIO[:16000].tobytes())
                await connection.recv()
            for told in [process.pid, *(workers_of(process) if all_told else ())]:
                os.kill(told, number)
            await asyncio.sleep(1.0)
            return [await finish(connection, AUDIO[16000:]) for connection in connections]

        assert asyncio.run(run()) == [say(AUDIO)] * 2
        assert process.wait(20) == 0
        assert [entry["event"] for entry in entries(process)].count("stopping") == 2


@pytest.mark.parametrize("options", [(), ("--workers", 2)])
def test_nohup_keeps_it_running(tiny_folder, say, options):
    with serve(tiny_folder, *options, hangup=signal.SIG_IGN) as (process, port):

        async def run():
            connection, _ = await start(port)
            for told in (process.pid, *workers_of(process)):
                os.kill(told, HANGUP)
            return await finish(connection, AUDIO)

        assert asyncio.run(run()) == say(AUDIO)
        assert is_ready(port)
        process.terminate()
        assert process.wait(20) == 0


def test_nothing_is_left_of_a_supervisor_that_was_killed(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serve(tiny_folder, "--workers", 2) as (process, _):
        wait_until(lambda: len(list(tmp_path.glob("onebest-*/*.sock"))) == 2)
        process.kill()
        wait_until(lambda: not list(tmp_path.glob("onebest-*")))


@pytest.mark.parametrize("options", [(), ("--workers", 2)])
def test_a_second_signal_does_not_wait(tiny_folder, say, options):
    with serve(tiny_folder, "--drain-seconds", 600, *options) as (process, port):

        async def run():
            connection, _ = await start(port)
            await connection.send(AUDIO.tobytes())
            process.terminate()
            await asyncio.sleep(1.5)
            process.terminate()
            texts = []
            with contextlib.suppress(ConnectionClosed):
                async for message in connection:
                    texts.append(json.loads(message))
            return finals(texts), connection.close_code

        assert asyncio.run(run()) == (say(AUDIO), 1001)
        assert process.wait(20) == 0


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("option", ["--port", "--wyoming-port"])
def test_a_port_that_is_taken(tiny_folder, capsys, processes, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--model", str(tiny_folder), "--workers", str(processes)]
        assert main(["serve", "--port", "0", *options, option, str(port)]) == 1
        assert f"Cannot serve at 127.0.0.1:{port}: " in capsys.readouterr().err


def test_two_servers_do_not_share_a_port(tiny_folder, capsys):
    with serve(tiny_folder, "--workers", 2) as (_, port):
        options = ["--port", str(port), "--model", str(tiny_folder), "--workers", "2"]
        assert main(["serve", *options]) == 1
        assert f"Cannot serve at 127.0.0.1:{port}: " in capsys.readouterr().err


def test_the_threads_end_where_nobody_can_be_told_the_port(tiny_folder):
    def announce(port, wyoming_port):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_process(Settings(port=0, model=tiny_folder), announce=announce)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("decode")] == []


@pytest.mark.parametrize("options", [(), ("--workers", 2)])
def test_clients_may_connect_once_the_address_is_told(tiny_folder, options):
    command = [ONEBEST, "serve", "--port", "0", "--wyoming-port", "0", "--model", tiny_folder, *options]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
        wyoming_port = int(re.search(r"Wyoming .* (\d+)\.", process.stdout.readline())[1])
        may_connect = is_ready(port), is_bound(wyoming_port)
        process.terminate()
        assert process.wait(20) == 0
        assert may_connect == (True, True)


@pytest.mark.parametrize("options", [(), ("--workers", 2)])
def test_nothing_runs_on_where_the_address_cannot_be_told(tiny_folder, options):
    command = [ONEBEST, "serve", "--port", "0", "--model", tiny_folder, *options]
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(list(map(str, command)), stdout=full, stderr=subprocess.PIPE, text=True) as process,
    ):
        said = process.stderr.read()  # to its end, which a worker that runs on would keep away
        assert process.wait(20) == 1
        assert "No space left" in said


class FailingProcess:
    """A worker that ends as soon as it is started, as one does that cannot bind a port."""

    exitcode, pid = 1, 0
    started = 0

    def __init__(self, **arguments):
        self.sentinel, writer = os.pipe()
        os.close(writer)

    def start(self):
        FailingProcess.started += 1
        assert FailingProcess.started < 20, "it was started again and again"

    def is_alive(self):
        return False


@pytest.mark.parametrize(("count", "warns"), [(120, False), (300, True)])
def test_as_many_files_as_the_limits_need(count, warns):
    script = (
        "import resource as r, sys; from onebest_server.workers import allow_files; "
        "r.setrlimit(r.RLIMIT_NOFILE, (60, 200)); allow_files(int(sys.argv[1])); "
        "print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    said = subprocess.run([sys.executable, "-c", script, str(count)], capture_output=True, text=True)
    assert said.stdout == f"({min(count, 200)}, 200)\n"
    assert ("200 files may be open" in said.stderr) == warns


def test_workers_that_cannot_start(tiny_folder, monkeypatch):
    monkeypatch.setattr(workers, "SHORTEST_LIFE_SECONDS", 0.3)
    monkeypatch.setattr(workers, "PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(FailingProcess, "started", 0)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    numbers = (TERMINATE, INTERRUPT, HANGUP)
    handlers = [signal.getsignal(number) for number in numbers]
    supervisor = Supervisor(Settings(port=0, model=tiny_folder, workers=2))
    supervisor._context = SimpleNamespace(Process=FailingProcess)
    try:
        assert supervisor.run() == 1
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "missing"], "missing"),
        (["--model", "missing", "--workers", "2"], "missing"),
        (["--workers", "0"], "one worker"),
        (["--token-file", "missing"], "missing"),
        (["--origin", "https://example.org/page"], "https://example.org/page"),
        (["--tls-cert", "missing"], "missing"),
        (["--tls-key", "key.pem"], "key.pem"),
        (["--tls-cert", __file__, "--tls-key", "missing"], " and missing: "),
        (["--host", ""], "an address to bind"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--wyoming-port", "-1"], "from 0 to 65535"),
        (["--port", "7000", "--wyoming-port", "7000"], "of its own"),
    ],
)
def test_wrong_settings(capsys, options, said):
    assert main(["serve", "--port", "0", *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--queue-seconds", "0"], ["--batch", "1.5"], ["--clients", "x"], ["--detached-seconds", "inf"]],
)
def test_wrong_limits(capsys, options):
    with pytest.raises(SystemExit):
        main(["serve", *options])
    assert options[0] in capsys.readouterr().err


def test_a_warning_where_everybody_may_connect(tiny_folder):
    with serve(tiny_folder, "--host", "0.0.0.0") as (process, _):
        process.terminate()
        process.wait(20)
        assert "no token is set" in process.stderr.read()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:6006/"),
        ("0.0.0.0", "http://127.0.0.1:6006/"),
        ("::", "http://[::1]:6006/"),
        ("asr.example", "http://asr.example:6006/"),
    ],
)
def test_the_address_is_one_where_a_browser_gives_the_microphone(host, address):
    assert page_address(Settings(host=host), 6006) == address
