"""Fixtures of the server's tests: servers with the tiny model, in this process, and what audio says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from tiny_model import write_bundle

from onebest import Recognizer
from onebest_server.limits import Limits
from onebest_server.models import Models
from onebest_server.server import Server, Settings
from onebest_server.session import Session

#: A test that waits for ever fails instead.
LONGEST_TEST_SECONDS = 20


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with the tiny model. Not to be changed."""
    return write_bundle(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def models(tiny_folder):
    return Models(tiny_folder)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A folder with a certificate of our own for 127.0.0.1, cert.pem, and key.pem."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", folder / "key.pem", "-out", folder / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="session")
def say(tiny_folder):
    """Return the texts of the segments of samples, offline."""
    recognizer = Recognizer(tiny_folder)

    def say(samples, sample_rate=16000, endpoints=True):
        stream = recognizer.stream(sample_rate, endpoints=endpoints)
        stream.accept(samples)
        return [segment.text for segment in stream.finish().segments]

    return say


@pytest.fixture
def serving(models):
    """Run a server within an event loop: ``async with serving(queue_seconds=1) as server``."""

    @asynccontextmanager
    async def serving(settings=None, **limits):
        settings = settings or Settings(port=0, limits=Limits(**limits))
        server = Server(settings, models)
        await server.start()
        try:
            async with asyncio.timeout(LONGEST_TEST_SECONDS):
                yield server
        finally:
            hurry = asyncio.Event()
            hurry.set()
            await server.drain(hurry)

    return serving


@pytest.fixture
def handled(monkeypatch):
    """The messages that sessions have been handed, in order."""
    messages, receive = [], Session.receive

    def note(session, message, outlet):
        messages.append(message)
        receive(session, message, outlet)

    monkeypatch.setattr(Session, "receive", note)
    return messages
