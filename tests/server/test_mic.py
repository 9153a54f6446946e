"""``onebest mic --server``: the words come from a server, which may go and come back."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from onebest.cli import main

ONEBEST = [sys.executable, "-c", "import sys; from onebest.cli import main; sys.exit(main())"]
WAIT_SECONDS = 60.0


@pytest.fixture
def serve():
    """Start ``onebest serve`` on a port; the function returns the process once it answers."""
    started = []

    def serve(port):
        command = [*ONEBEST, "serve", "--port", str(port)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return started[-1]
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    yield serve
    for process in started:
        process.kill()
        process.wait()


def find_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_a_server_that_is_killed_and_comes_back(serve, sound_server, clip, tmp_path):
    """It is killed in the middle of a sentence, and all of the sentence is in the text."""
    port, path = find_port(), tmp_path / "talk.txt"
    server = serve(port)
    mic = subprocess.Popen(
        [*ONEBEST, "mic", "--server", f"ws://127.0.0.1:{port}", "--latency", "320", "--output", str(path)],
        env=os.environ | sound_server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert mic.stderr.readline().startswith("Listening to default")
        player = threading.Thread(target=sound_server.play, args=[clip])
        player.start()
        while not re.search(r"[a-z]+ [a-z]+", path.read_text()):
            time.sleep(0.02)
        server.kill()
        server.wait()
        assert "was lost; it is tried again" in mic.stderr.readline()
        serve(port)
        assert "is back" in mic.stderr.readline()
        player.join()
        mic.send_signal(signal.SIGINT)
        output, errors = mic.communicate(timeout=WAIT_SECONDS)
    finally:
        mic.kill()
        mic.communicate()
    assert (mic.returncode, errors) == (0, "")
    assert output == path.read_text()
    assert 8 <= len(output.split()) <= 18


@pytest.mark.parametrize(
    "address",
    [
        "ws://127.0.0.1:{port}?token=secret",
        "http://127.0.0.1:{port}?token=secret",
        "127.0.0.1?token=secret",
        "ws://user:secret@127.0.0.1:{port}",
        "user:secret@127.0.0.1:{port}",
        "ws://a:b",
        "ws://[",
    ],
)
def test_no_server_is_told_before_the_device_opens(address, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["mic", "--server", address.format(port=find_port())]) == 1
    said = capfd.readouterr().err
    assert re.search("cannot be reached|Expected an address", said)
    assert "secret" not in said
