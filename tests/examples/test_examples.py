"""Each example is run as its first lines say, on a microphone that plays a sample."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onebest import FinalText, Notice, PartialText

EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT_SECONDS = 60.0


@pytest.fixture
def run(sound_server):
    """Start an example; the function returns its process. What still runs at the end is killed."""
    started = []

    def run(name, *arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / name, *map(str, arguments)],
            env=os.environ | sound_server.environment | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_for(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def test_every_example_is_tested():
    text = Path(__file__).read_text("utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}"' not in text] == []


def test_meeting_captions(run, sound_server, clip, tmp_path):
    """Ctrl-C comes right behind the last word, and the whole sentence is there."""
    process = run("meeting_captions.py", tmp_path / "meeting.srt")
    assert process.stdout.readline().startswith("(Listening to default")
    sound_server.play(clip)
    process.send_signal(signal.SIGINT)
    (line,) = process.stdout.read().splitlines()
    assert process.wait(WAIT_SECONDS) == 0
    assert len(line.split()) > 7
    cues = (tmp_path / "meeting.srt").read_text().strip().split("\n\n")
    assert " ".join(cue.split("\n", 2)[2] for cue in cues).replace("\n", " ") == line
    for number, cue in enumerate(cues, 1):
        assert re.match(rf"{number}\n00:00:\d\d,\d\d\d --> 00:00:\d\d,\d\d\d\n[a-z]", cue)


def test_voice_commands(run, sound_server, concern):
    process = run("voice_commands.py", " Little  concerned=echo worried", "lights on = echo light")
    assert process.stdout.readline() == "Say: little concerned, lights on\n"
    sound_server.play(concern)
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_SECONDS) == 0
    assert lines == ["> little concerned\n", "worried\n"]
    assert process.stdout.read() == ""


def test_a_command_without_a_phrase_is_refused():
    command = [sys.executable, EXAMPLES / "voice_commands.py", "lights on"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected PHRASE=COMMAND, got lights on" in done.stderr


def test_a_phrase_is_heard_once_for_each_time_it_is_said():
    hear_phrases = load("voice_commands").hear_phrases
    events = [
        Notice("listening", "lights on"),
        PartialText("please lights", 0.0, 1.0),
        PartialText("please lights on", 0.0, 1.0),
        PartialText("please lights on and", 0.0, 1.0),
        PartialText("please lights on and go lights on", 0.0, 1.0),
        FinalText("please lights on and go lights on highlights only", 0.0, 1.0),
        FinalText("Lights on go", 2.0, 3.0),
    ]
    assert list(hear_phrases(events, ["go", "lights on"])) == [
        "lights on",
        "go",
        "lights on",
        "lights on",
        "go",
    ]


@pytest.fixture
def display():
    """A screen that nobody sees, by its name."""
    if not shutil.which("Xvfb") or not shutil.which("xdotool"):
        pytest.skip("Xvfb or xdotool not installed: make system")
    pytest.importorskip("tkinter", reason="tkinter not installed: make system")
    ours, theirs = os.pipe()
    command = ["Xvfb", "-displayfd", str(theirs), "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[theirs], stderr=subprocess.DEVNULL)
    os.close(theirs)
    with os.fdopen(ours) as names:
        name = f":{names.readline().strip()}"
    try:
        assert name != ":", "Xvfb does not start"
        yield name
    finally:
        server.terminate()
        server.wait()


def test_caption_window(run, sound_server, display):
    """The window stands there, and Escape closes it."""
    process = run("caption_window.py", DISPLAY=display)

    def xdotool(*arguments):
        environment = os.environ | {"DISPLAY": display}
        return subprocess.run(["xdotool", *arguments], env=environment, capture_output=True, text=True).stdout

    window = wait_for(lambda: xdotool("search", "--onlyvisible", "--name", "onebest captions")).split()[0]
    xdotool("windowfocus", "--sync", window, "key", "Escape")
    assert process.wait(WAIT_SECONDS) == 0


@pytest.mark.usefixtures("sound_environment")
def test_the_caption_window_shows_what_is_said(sound_server, clip, display, monkeypatch):
    import onebest

    monkeypatch.setenv("DISPLAY", display)
    window = load("caption_window").CaptionWindow(onebest.listen(latency_ms=320))
    player = threading.Thread(target=sound_server.play, args=[clip])
    shown = []

    def watch():
        text = window.caption["text"]
        if text.startswith("Listening") and not player.ident:
            player.start()
        if text and text not in shown:
            shown.append(text)
        window.destroy() if len(text.split()) > 7 else window.after(20, watch)

    window.after(int(WAIT_SECONDS * 1000), window.destroy)
    watch()
    window.mainloop()
    player.join()
    assert len(shown) >= 3
    assert all(len(text) <= 120 for text in shown)
    assert len(shown[-1].split()) > 7
