"""A listener's events on a terminal: finals as lines with times; below them, the partial and a status.

``LiveView`` needs rich, which is imported when it is made. ``PlainView`` is for output that is no terminal.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, TextIO

from onebest.events import Event, FinalText, Notice, PartialText

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

METER_CELLS, LOWEST_METER_LEVEL = 20, -60.0
REFRESHES_A_SECOND = 10
#: Lines of partial text at most: the newest words count.
PARTIAL_LINES = 3


class Status(Protocol):
    """What the status line shows."""

    @property
    def level(self) -> float:
        """How loud it is, in dB below full scale."""
        ...

    @property
    def delay(self) -> float:
        """Seconds behind real time."""
        ...

    @property
    def device_name(self) -> str:
        """What is recorded."""
        ...


class PlainView:
    """Final texts as lines of one output, notices as lines of another."""

    def __init__(self, texts: TextIO, notices: TextIO):
        self._texts, self._notices = texts, notices

    def show(self, event: Event) -> None:
        """Print an event."""
        if isinstance(event, FinalText):
            print(event.text, file=self._texts, flush=True)
        elif isinstance(event, Notice):
            print(event.message, file=self._notices, flush=True)

    def close(self) -> None:
        """Do nothing: every line is out."""


class LiveView:
    """A terminal's last lines, drawn ten times a second until ``close``.

    Args:
        status: what to show in the status line.
        console: where to draw; None is standard output.
    """

    def __init__(self, status: Status, console: Console | None = None):
        from rich.console import Console
        from rich.live import Live

        self._status = status
        self._console = console or Console(highlight=False)
        self._partial = ""
        self._live = Live(
            self,  # is drawn anew below each final text, where what was drawn last would still be its partial
            console=self._console,
            refresh_per_second=REFRESHES_A_SECOND,
            transient=True,
            redirect_stderr=False,
        )
        self._live.start()

    def show(self, event: Event) -> None:
        """Show an event."""
        from rich.text import Text

        if isinstance(event, PartialText):
            self._partial = event.text
        elif isinstance(event, FinalText):
            self._partial = ""
            clock = f"{format_clock(event.start)}  "
            self._console.print(Text.assemble((clock, "dim"), self._spell(event.text)))
        else:
            self._console.print(Text(self._spell(event.message), "yellow"))

    def close(self) -> None:
        """Take the partial text and the status away; the finals stay."""
        self._live.stop()

    def __rich__(self) -> RenderableType:
        """Return what stands below the final texts at this moment."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        # In a narrow terminal the name gives way, then the meter, and the figures stay.
        status = Table.grid(padding=(0, 2))
        for is_figure in (False, True, True, False):
            status.add_column(no_wrap=is_figure)
        loudness = 1 - self._status.level / LOWEST_METER_LEVEL
        status.add_row(
            ProgressBar(1.0, min(max(loudness, 0.0), 1.0), METER_CELLS),
            Text(f"{self._status.level:4.0f} dB", overflow="crop"),
            Text(f"{self._status.delay:.1f} s behind", overflow="crop"),
            Text(self._spell(self._status.device_name), "dim", no_wrap=True, overflow="crop"),
        )
        if not self._partial:
            return status
        return Group(Text(self._cut(self._spell(self._partial)), "italic"), status)

    def _cut(self, text: str) -> str:
        room = max(self._console.width * PARTIAL_LINES - 20, 20)
        return text if len(text) <= room else "..." + text[len(text) - room + 3 :]

    def _spell(self, text: str) -> str:
        """Return a text as it will be written: what stands for letters that the terminal lacks takes room."""
        encoding = self._console.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)


def open_view(status: Status) -> LiveView | PlainView:
    """Return a live view where standard output is a terminal, and a plain one elsewhere."""
    return LiveView(status) if sys.stdout.isatty() else PlainView(sys.stdout, sys.stderr)


def format_clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds, 0:01:02.3."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"
