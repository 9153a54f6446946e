"""What stands on the screen: a terminal is emulated and read."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pyte
import pytest
from rich.console import Console

from onebest import FinalText, Notice, PartialText, live_view
from onebest.live_view import LiveView, PlainView, format_clock, open_view


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 60 columns and 12 lines; ``terminal()`` draws anew, or not, and returns its lines."""
    monkeypatch.setattr(live_view, "REFRESHES_A_SECOND", 0.001)
    output, screen = io.StringIO(newline=""), pyte.Screen(60, 12)
    screen.set_mode(pyte.modes.LNM)
    stream = pyte.Stream(screen)
    console = Console(file=output, force_terminal=True, width=60, height=12, highlight=False)
    status = SimpleNamespace(level=-30.0, delay=0.25, device_name="Desk microphone")
    view = LiveView(status, console)

    def read(draw=True):
        if draw:
            view._live.refresh()
        stream.feed(output.getvalue())
        output.seek(0)
        output.truncate()
        return [line.rstrip() for line in screen.display if line.strip()]

    read.view, read.status, read.screen = view, status, screen
    yield read
    view.close()


def test_the_status_is_the_last_line(terminal):
    (line,) = terminal()
    assert line.split() == [line.split()[0], "-30", "dB", "0.2", "s", "behind", "Desk", "microphone"]


def test_the_meter_follows_the_level(terminal):
    def cells():
        terminal()
        row = terminal.screen.buffer[0]
        return sum(row[column].fg == row[0].fg for column in range(20))

    terminal.status.level = -15.0
    high = cells()
    terminal.status.level = -45.0
    assert cells() < high


def test_partials_change_in_place_and_finals_stay(terminal):
    terminal.view.show(PartialText("good mor", 0.5, 1.0))
    assert terminal()[0] == "good mor"
    terminal.view.show(PartialText("good morning", 0.5, 1.2))
    assert [line for line in terminal() if "good" in line] == ["good morning"]
    terminal.view.show(FinalText("good morning", 62.34, 63.0))
    terminal.view.show(Notice("dropped", "Dropped 1.0 s [bold]of[/bold] audio."))
    terminal.view.show(PartialText("how", 70.0, 70.2))
    first, second, third, status = terminal()
    assert [first, second, third] == [
        "0:01:02.3  good morning",
        "Dropped 1.0 s [bold]of[/bold] audio.",
        "how",
    ]
    assert "behind" in status


def test_a_partial_vanishes_at_once_with_its_final(terminal):
    terminal.view.show(PartialText("good mor", 0.5, 1.0))
    terminal()
    terminal.view.show(FinalText("good morning", 0.5, 1.0))
    first, status = terminal(draw=False)
    assert first == "0:00:00.5  good morning"
    assert "behind" in status


def test_closing_leaves_the_finals(terminal):
    terminal.view.show(FinalText("good morning", 0.5, 1.0))
    terminal.view.show(PartialText("how", 2.0, 2.2))
    terminal()
    terminal.view.close()
    assert terminal() == ["0:00:00.5  good morning"]


def test_a_long_partial_shows_its_end(terminal):
    terminal.view.show(PartialText(" ".join(f"word{n}" for n in range(100)), 0.0, 20.0))
    lines = terminal()
    assert len(lines) <= live_view.PARTIAL_LINES + 1
    assert lines[0].startswith("...")
    assert lines[-2].endswith("word99")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [8, 20, 30, 50, 80])
def test_the_status_is_one_line_of_any_terminal(encoding, width, monkeypatch):
    """The figures stay where the name of the device has no room, nor letters that the terminal knows."""
    monkeypatch.setattr(live_view, "REFRESHES_A_SECOND", 0.001)
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="")
    console = Console(file=output, force_terminal=True, width=width, height=12)
    name = "Mikrofon des Geräts für Gespräche, rückwärts, 48000 Hz, analoges Stereo"
    view = LiveView(SimpleNamespace(level=-30.0, delay=0.25, device_name=name), console)
    view.close()

    def draw():
        lines = console.render_lines(view, pad=False)
        written = ["".join(segment.text for segment in line).encode(encoding) for line in lines]
        assert all(len(line.decode(encoding)) <= width for line in written)
        return written

    (status,) = draw()
    assert width < 30 or b"-30 dB  0.2 s behind" in status
    view.show(PartialText("übel " * 50, 0.0, 20.0))
    assert draw()[-1] == status


def test_plain_lines():
    texts, notices = io.StringIO(), io.StringIO()
    view = PlainView(texts, notices)
    events = [Notice("listening", "Listening."), PartialText("go", 0.0, 0.1), FinalText("good", 0.0, 0.4)]
    for event in events:
        view.show(event)
    view.close()
    assert (texts.getvalue(), notices.getvalue()) == ("good\n", "Listening.\n")


def test_output_that_is_no_terminal_gets_plain_lines(capsys):
    assert isinstance(open_view(SimpleNamespace()), PlainView)


@pytest.mark.parametrize(
    ("seconds", "clock"), [(0.0, "0:00:00.0"), (59.96, "0:01:00.0"), (36610.2, "10:10:10.2")]
)
def test_clock(seconds, clock):
    assert format_clock(seconds) == clock
