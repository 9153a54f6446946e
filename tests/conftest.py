"""Fixtures of all tests: a microphone without a sound card."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sound_server import SoundServer, find_missing


@pytest.fixture(scope="session")
def sound_server(tmp_path_factory):
    """A sound server whose loudspeaker is the microphone of processes in its environment."""
    if missing := find_missing():
        pytest.skip(f"{', '.join(missing)} not installed: make sound")
    with SoundServer(tmp_path_factory.mktemp("sound")) as server:
        yield server


@pytest.fixture
def sound_environment(sound_server, monkeypatch):
    """This process, led to the sound server."""
    for name, value in sound_server.environment.items():
        monkeypatch.setenv(name, value)
    import sounddevice

    sounddevice._terminate()
    sounddevice._initialize()
    yield
    sounddevice._terminate()
    sounddevice._initialize()
