"""``onebest mic`` as a person runs it: a microphone in a sound server of its own, a terminal, signals."""

from __future__ import annotations

import difflib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import pyte
import pytest

from onebest import Recognizer
from onebest.cli import main
from onebest.commands.mic import _pass_on, _stopped_by_signals
from onebest.events import FinalText
from onebest.sinks import TranscriptFile

MIC = [sys.executable, "-c", "import sys; from onebest.cli import main; sys.exit(main())", "mic"]
WAIT_SECONDS = 60.0


@pytest.fixture
def start(sound_server):
    """Start ``onebest mic`` with arguments; whatever still runs at the end is killed."""
    started = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [*MIC, *map(str, arguments)],
            env=os.environ | sound_server.environment,
            stdin=subprocess.DEVNULL,
            text=True,
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def likeness(text, other):
    """Return the share of equal letters, which a word that is split or misspelt lowers only a little."""
    return difflib.SequenceMatcher(None, text, other, autojunk=False).ratio()


def test_devices_are_listed(start):
    output, errors = start("--list-devices").communicate(timeout=WAIT_SECONDS)
    assert re.search(r"^\* *\d+  default  \(ALSA, \d+ channels, 44100 Hz\)$", output, re.MULTILINE)
    assert errors == ""


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_standard_error_may_be_closed(sound_server, closed):
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *MIC, "--list-devices"],
        env=os.environ | sound_server.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0
    assert "default  (ALSA" in done.stdout


def test_plain_lines_a_file_and_a_program(start, sound_server, clip, tmp_path):
    """A signal in the middle of a sentence: all that was said until then is everywhere."""
    path, copy = tmp_path / "talk.jsonl", tmp_path / "copy"
    process = start("--latency", 320, "--device", "pulse", "--output", path, "--command", f"cat > '{copy}'")
    assert process.stderr.readline() == "Listening to pulse at 44100 Hz.\n"
    sound_server.play(clip)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, errors) == (0, "")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line["is_final"] for line in lines)
    assert output == copy.read_text() == "".join(line["text"] + "\n" for line in lines)
    offline = Recognizer(chunk_ms=320).transcribe(clip)
    assert likeness(output.replace("\n", " "), offline.text) > 0.7
    assert abs(lines[-1]["end"] - lines[0]["start"] - (offline.words[-1].end - offline.words[0].start)) < 1.0


def test_a_killed_process_leaves_all_that_was_said(start, sound_server, clip, tmp_path):
    path = tmp_path / "talk.srt"
    process = start("--latency", 320, "--output", path)
    assert process.stderr.readline().startswith("Listening")
    sound_server.play(clip)
    wait_for(path.read_text)
    process.kill()
    process.wait()
    cues = path.read_text().split("\n\n")
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n\w+", cues[0])
    assert cues[-1] == ""


def test_a_terminal_shows_text_while_it_is_said(start, sound_server, clip):
    """A pseudo-terminal of 90 columns, read by an emulator while a sample is played."""
    screen = pyte.Screen(90, 20)
    stream = pyte.Stream(screen)
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLUMNS": "90", "LINES": "20"}
    os.environ.update(environment)
    try:
        process = start("--latency", 320, stdout=theirs)
    finally:
        for name in environment:
            del os.environ[name]
    os.close(theirs)

    def read():
        try:
            while data := os.read(ours, 4096):
                stream.feed(data.decode("utf-8", "replace"))
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()

    def lines():
        return [line.rstrip() for line in screen.display if line.strip()]

    wait_for(lambda: len(lines()) == 2)
    assert lines()[0].startswith("Listening to default")
    assert re.search(r"-100 dB +0\.\d s behind +default$", lines()[1])
    player = threading.Thread(target=sound_server.play, args=[clip])
    player.start()
    wait_for(lambda: re.match(r"[a-z]+ [a-z]+", lines()[1]))
    assert len(lines()) == 3
    wait_for(lambda: not re.search("-100 dB", lines()[-1]))
    player.join()
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_SECONDS) == 0
    reader.join()
    os.close(ours)
    assert re.match(r"0:00:\d\d\.\d  [a-z]+ [a-z]+", lines()[1])
    assert not any("behind" in line for line in lines())


def test_a_sound_server_that_comes_back_is_told(start, sound_server):
    process = start()
    assert process.stderr.readline().startswith("Listening")
    sound_server.stop()
    try:
        assert process.stderr.readline() == "default is gone. Waiting for it.\n"
    finally:
        sound_server.start()
    assert process.stderr.readline() == "Listening to default again.\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_SECONDS) == 0


def test_a_program_that_ends_does_not_end_listening(start, sound_server, clip, tmp_path):
    path = tmp_path / "talk.txt"
    process = start("--latency", 320, "--command", "exit 3", "--output", path)
    assert process.stderr.readline().startswith("Listening")
    sound_server.play(clip)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=WAIT_SECONDS)
    assert "'exit 3' has ended" in errors
    assert process.returncode == 1
    assert output == path.read_text() != ""


class FakeListener:
    """Gives events; those that are due once it is stopped, too."""

    def __init__(self, *events):
        self.events, self.is_stopped = events, False

    def stop(self):
        self.is_stopped = True

    def __iter__(self):
        yield from self.events
        assert self.is_stopped
        yield FinalText("the last words", 1.0, 2.0, ())


def test_a_terminal_that_closes_takes_no_word_from_the_file(tmp_path):
    class Closed:
        def show(self, event):
            raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "talk.txt"
    with TranscriptFile(path) as file, pytest.raises(OSError):
        _pass_on(FakeListener(FinalText("the first", 0.0, 1.0, ())), [file, Closed()])
    assert path.read_text() == "the first\nthe last words\n"


@pytest.mark.parametrize(
    ("hangup", "number", "stops"),
    [
        (signal.SIG_DFL, signal.SIGHUP, True),
        (signal.SIG_IGN, signal.SIGHUP, False),
        (signal.SIG_IGN, signal.SIGTERM, True),
    ],
)
def test_a_signal_stops_but_under_nohup_not_that_of_a_terminal(hangup, number, stops):
    listener, before = FakeListener(), signal.signal(signal.SIGHUP, hangup)
    try:
        with _stopped_by_signals(listener):
            signal.raise_signal(number)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert listener.is_stopped is stops


def test_no_microphone_is_a_clear_error(tmp_path):
    """Without a sound server and, on most machines that test, without a sound card or PortAudio."""
    environment = os.environ | {"PULSE_SERVER": f"unix:{tmp_path / 'none'}", "HOME": str(tmp_path)}
    done = subprocess.run([*MIC, "--device", "nobody's"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"onebest mic: (Found no microphone|Recording needs PortAudio).*\n", done.stderr)


def test_the_same_file_can_be_named_again_once_the_device_is_right(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["mic", "--output", str(tmp_path / "talk.srt")]) == 1
    assert "sounddevice" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "talk.pdf"], r"ends in \.txt, \.srt, \.jsonl"),
        (["--output", __file__.replace(".py", ".txt") + "/talk.txt"], "cannot be written"),
        (["--latency", "30"], "30"),
        (["--server", "ws://127.0.0.1:9", "--beam", "4"], "own model and beam"),
        (["--server", "ws://127.0.0.1:9", "--model", "my-bundle"], "own model and beam"),
    ],
)
def test_wrong_arguments_are_told_before_the_device_opens(arguments, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["mic", *arguments]) == 1
    assert re.search(words, capfd.readouterr().err)
