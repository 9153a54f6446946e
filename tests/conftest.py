"""Fixtures of all tests: a microphone without a sound card."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))

from sound_server import SoundServer, find_missing

SAMPLES = Path(__file__).parents[1] / "samples"
SAMPLE_RATE = 16000


@pytest.fixture(scope="session")
def sound_server(tmp_path_factory):
    """A sound server whose loudspeaker is the microphone of processes in its environment."""
    if missing := find_missing():
        pytest.skip(f"{', '.join(missing)} not installed: make system")
    with SoundServer(tmp_path_factory.mktemp("sound")) as server:
        yield server


@pytest.fixture
def end_by_signal(monkeypatch):
    """Asks this process to end as a service manager does; what then ends it by SIGTERM ends in SystemExit."""

    def ended(number):
        raise SystemExit(-number)

    monkeypatch.setattr("signal.raise_signal", ended)
    return lambda: os.kill(os.getpid(), signal.SIGTERM)


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


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A recording to play: the first four seconds of a sample, a dozen words."""
    return _cut(tmp_path_factory, "librispeech-2412-153954-0000", 0.0, 4.0)


@pytest.fixture(scope="session")
def concern(tmp_path_factory):
    """Another: I must admit I was more than a little concerned myself."""
    return _cut(tmp_path_factory, "librispeech-251-137823-0022", 3.4, 7.2)


def _cut(tmp_path_factory, name, start, end):
    first, last = (round(seconds * SAMPLE_RATE) for seconds in (start, end))
    samples, _ = soundfile.read(SAMPLES / f"{name}.flac", start=first, stop=last, dtype="float32")
    path = tmp_path_factory.mktemp("clip") / f"{name}.wav"
    soundfile.write(path, samples, SAMPLE_RATE)
    return path
