"""Signals that end a process, and what it does first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def stop_signals() -> list[signal.Signals]:
    """Return the signals to end; SIGHUP, of a terminal that closes, only if nohup lets it."""
    signals = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not on Windows
        signals.append(signal.SIGHUP)
    return signals


class _EndedError(BaseException):
    """A signal that ends the process."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def cleaned_up() -> Iterator[None]:
    """Leave the body as Ctrl-C does when a signal asks for the end, then end by that signal.

    A second one ends the process at once. What the process ignores it goes on ignoring.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        restore()
        raise _EndedError(number)

    def restore() -> None:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)

    taken = [number for number in stop_signals() if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    except _EndedError as ended:
        signal.raise_signal(ended.number)
    finally:
        restore()
