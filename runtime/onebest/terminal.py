"""A line of a terminal that is written over again and again: a bar, and the latest words."""

from __future__ import annotations

import os
import shutil
from types import TracebackType
from typing import TextIO

_BAR_CELLS = 20
_ERASE = "\r\x1b[K"


class LiveLine:
    """Shows progress in place while used as a context, and leaves nothing behind.

    It writes nothing at all where the output is no terminal.
    """

    def __init__(self, output: TextIO):
        self._output = output
        self._is_terminal = output.isatty()
        self._shown = ""

    def __enter__(self) -> LiveLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._write("")

    def show(self, text: str, done: float | None = None) -> None:
        """Show the end of a text that fits, behind a bar if ``done`` (0 to 1) is given."""
        if not self._is_terminal:
            return
        bar = "" if done is None else draw_bar(done) + " "
        room = self._count_columns() - 1
        line = (bar + _shorten(text, max(room - len(bar), 0)))[:room]
        if line != self._shown:
            self._write(line)

    def _count_columns(self) -> int:
        """Return the width of the terminal, which need not be where standard output goes."""
        try:
            columns = os.get_terminal_size(self._output.fileno()).columns
        except OSError:
            columns = 0
        return columns or shutil.get_terminal_size().columns

    def _write(self, line: str) -> None:
        self._shown = line
        self._output.write(_ERASE + line)
        self._output.flush()


def _shorten(text: str, room: int) -> str:
    return text if len(text) <= room else ("..." + text[len(text) - room + 3 :])[:room]


def draw_bar(done: float) -> str:
    """Return a bar of fixed width with the percentage behind it."""
    share = min(max(done, 0.0), 1.0)
    cells = round(share * _BAR_CELLS)
    return f"[{'#' * cells}{'.' * (_BAR_CELLS - cells)}] {share:4.0%}"
