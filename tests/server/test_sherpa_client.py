"""sherpa-onnx's own client program, and what clients of its Python server do, with the model that onebest
ships.
"""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from clients import pieces, url
from websockets.asyncio.client import connect

from onebest import Recognizer
from onebest_server.models import Models
from onebest_server.server import Server, Settings

SAMPLES = Path(__file__).parents[2] / "samples"
CLIENT = Path(sys.executable).with_name("sherpa-onnx-online-websocket-client")


@pytest.fixture(scope="module")
def shipped():
    return Models()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Give a recording of speech as a WAV file, its samples and its text."""
    samples, rate = soundfile.read(SAMPLES / "librispeech-251-137823-0022.flac", dtype="float32")
    path = tmp_path_factory.mktemp("wav") / "speech.wav"
    soundfile.write(path, samples, rate, subtype="PCM_16")
    stream = Recognizer().stream(rate, endpoints=True)
    stream.accept(samples)
    return path, samples, stream.finish().text


def serve(models, work):
    async def run():
        server = Server(Settings(port=0), models)
        await server.start()
        try:
            return await work(server)
        finally:
            await server.drain()

    return asyncio.run(run())


def test_the_program(shipped, recording):
    path, _, text = recording

    async def work(server):
        command = [CLIENT, f"--server-port={server.port}", "--seconds-per-message=0.01", path]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)

    done = serve(shipped, work)
    assert done.returncode == 0
    answers = [json.loads(found) for found in re.findall(r"(\{\"text\".*\})$", done.stderr, re.MULTILINE)]
    assert answers[-1]["text"] == text
    assert answers[-1]["is_eof"]
    assert "Done!" in done.stderr


@pytest.mark.parametrize("waits_for_the_close", [True, False])
def test_clients_of_the_python_server(shipped, recording, waits_for_the_close):
    """They keep the last message that is no ``Done!``, and read until the close or until ``Done!``."""
    _, samples, text = recording

    async def work(server):
        async with connect(url(server, "/")) as socket:
            for piece in pieces(samples, 8000):
                await socket.send(piece.tobytes())
            await socket.send("Done")
            last = ""
            async for message in socket:
                if message != "Done!":
                    last = json.loads(message)["text"]
                elif not waits_for_the_close:
                    break
            return last

    assert serve(shipped, work) == text


def test_the_documents_program(shipped, recording):
    """docs/server.md shows a client; it says what the recognizer says."""
    document = (SAMPLES.parent / "docs" / "server.md").read_text("utf-8")
    program = re.search(r"^```python\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)[1]

    async def work(server):
        command = [sys.executable, "-c", program.replace("6006", str(server.port))]
        options = {"capture_output": True, "text": True, "timeout": 60, "cwd": SAMPLES.parent}
        return await asyncio.to_thread(subprocess.run, command, **options)

    done = serve(shipped, work)
    assert done.returncode == 0, done.stderr
    assert done.stdout == recording[2] + "\n"
