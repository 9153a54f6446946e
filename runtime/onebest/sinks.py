"""Where a listener's text goes beside the screen: a file that is always complete, or another program."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Self, TextIO

from onebest.errors import ConfigError, DataError
from onebest.events import Event, FinalText, PartialText
from onebest.results import Word
from onebest.subtitles import format_srt, make_cues

#: A program that takes longer to end is worth a line on the terminal.
PATIENCE_SECONDS = 1.0
#: What a word takes whose time is not known.
WORD_SECONDS = 0.3
#: A text, how many entries are in the file before it, and when the next text begins -> its entries.
Format = Callable[[PartialText | FinalText, int, float], list[str]]


class TranscriptFile:
    """A file that holds all that was said so far, whenever the program ends: texts, subtitles or JSON lines.

    The partial text stands at its end, and each new one is written over it and over the final text before it,
    whose last subtitle has to end where the next one begins. As a context that an error ends before there was
    any text, it leaves no file, so that its name can be given again.

    Args:
        path: a file that does not exist yet; its ending, one of ``FORMATS``, says what goes in.

    Raises:
        ConfigError: the ending is another.
        DataError: there is such a file, or it cannot be made.
    """

    def __init__(self, path: Path):
        ending = path.suffix.lower()
        if ending not in FORMATS:
            raise ConfigError(f"{path}: expected a name that ends in {', '.join(FORMATS)}. Rename it.")
        self._path, self._format = path, FORMATS[ending]
        self._fixed_bytes = self._fixed_entries = 0
        self._last_final: FinalText | None = None
        self._open = b""  # what is written over: the last final text, and the partial one
        try:
            self._file: IO[bytes] = path.open("xb", buffering=0)
        except FileExistsError as error:
            raise DataError(f"{path} exists already. Name another file, or move that one away.") from error
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}. Name another file.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None and not self._fixed_bytes and not self._open:
            self._path.unlink(missing_ok=True)

    def show(self, event: Event) -> None:
        """Write the text of an event.

        Raises:
            DataError: the disk is full or gone; what was written before stays.
        """
        if not isinstance(event, (PartialText, FinalText)):
            return
        before = self._spell(self._last_final, 0, event.start if event.text else inf)
        fixed, content = "".join(before).encode(), "".join(self._spell(event, len(before), inf)).encode()
        try:
            self._write(fixed + content)
        except OSError as error:
            with suppress(OSError):
                self._write(self._open)  # there was room for it
            raise DataError(f"{self._path} cannot be written any more: {error}") from error
        self._open = fixed + content
        if isinstance(event, FinalText) and event.text:
            self._fixed_bytes += len(fixed)
            self._fixed_entries += len(before)
            self._last_final, self._open = event, content

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _spell(self, event: PartialText | FinalText | None, entries: int, until: float) -> list[str]:
        """Return the entries of a text behind so many that are not fixed yet."""
        if event is None or not event.text:
            return []
        return self._format(event, self._fixed_entries + entries, until)

    def _write(self, content: bytes) -> None:
        """Write behind what is fixed; a disk that is nearly full takes a part and complains of the rest."""
        self._file.seek(self._fixed_bytes)
        while content:
            content = content[self._file.write(content) :]
        self._file.truncate()


class CommandPipe:
    """A program that is started once and reads every final text as a line, in its own time.

    Ctrl-C does not reach it; it ends when its input does.

    Args:
        command: a line for the shell.
        errors: where its complaints go.
    """

    def __init__(self, command: str, errors: TextIO):
        self._command, self._errors = command, errors
        self._process = subprocess.Popen(
            command,
            shell=True,
            text=True,
            errors="backslashreplace",
            stdin=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        self._has_left = False
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self._writer = Thread(target=self._write, daemon=True)
        self._writer.start()

    def show(self, event: Event) -> None:
        """Pass a final text on; a program that is slow to read it holds nothing up.

        Raises:
            DataError: the program has ended.
        """
        if isinstance(event, FinalText):
            self._check()
            self._texts.put(event.text)

    def close(self) -> None:
        """End its input and wait until it has ended.

        Raises:
            DataError: the program had ended before, and ``show`` has not said so.
        """
        self._texts.put(None)
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            message = f"Waiting for the command {self._command!r} to end. Ctrl-C again does not wait for it."
            print(message, file=self._errors, flush=True)
            self._process.wait()
        self._writer.join()
        self._check()

    def _write(self) -> None:
        """Write the texts until there are no more, or nobody reads them."""
        assert self._process.stdin
        try:
            with self._process.stdin as program:
                while (text := self._texts.get()) is not None:
                    program.write(text + "\n")
                    program.flush()
        except BrokenPipeError:
            self._has_left = True

    def _check(self) -> None:
        """Say once that the program does not read any more."""
        if self._has_left:
            self._has_left = False
            raise DataError(f"The command {self._command!r} has ended. It gets no more text.")


def _to_text(event: PartialText | FinalText, entries: int, until: float) -> list[str]:
    return [event.text + "\n"]


def _to_subtitles(event: PartialText | FinalText, entries: int, until: float) -> list[str]:
    cues = make_cues(event.words or _guess_words(event), until)
    return [format_srt(number, cue) for number, cue in enumerate(cues, entries + 1)]


def _guess_words(event: PartialText | FinalText) -> list[Word]:
    """Return the words of a text that comes without them, as a server's partial ones do."""
    words = enumerate(event.text.split())
    starts = [(word, event.start + number * WORD_SECONDS) for number, word in words]
    return [Word(word, start, start + WORD_SECONDS, 0.0) for word, start in starts]


def _to_json_line(event: PartialText | FinalText, entries: int, until: float) -> list[str]:
    words = [
        {"word": word.text, "start": round(word.start, 2), "end": round(word.end, 2)} for word in event.words
    ]
    line = {
        "text": event.text,
        "start": round(event.start, 2),
        "end": round(event.end, 2),
        "is_final": isinstance(event, FinalText),
        "words": words,
    }
    return [json.dumps(line) + "\n"]


FORMATS: dict[str, Format] = {".txt": _to_text, ".srt": _to_subtitles, ".jsonl": _to_json_line}
