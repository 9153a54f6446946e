"""Samples of many cuts, past recordings and cuts that cannot be used: each of them is named and counted.

Files are written whole or not at all, by one process at a time.

Axis legend: S samples.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from onebest.cuts import Cut, load_cuts, sort_cuts, spoken_text
from onebest.errors import ConfigError, DataError
from onebest.frontend import FloatArray
from onebest.normalize import normalize_text

log = logging.getLogger(__name__)
UNREADABLE = "audio that cannot be read"


def in_order(cuts: Iterable[Cut]) -> list[Cut]:
    """Return cuts by recording and start, each with audio and a name of its own.

    Raises:
        DataError: a cut has no recording, or two have the same name.
    """
    todo, seen = sort_cuts(cuts), set()
    for cut in todo:
        if cut.id in seen:
            raise DataError(f"cut {cut.id} is there twice. Give each cut a name of its own.")
        seen.add(cut.id)
    return todo


def load_usable(cuts: Iterable[Cut], left_out: Counter[str]) -> Iterator[tuple[Cut, FloatArray]]:
    """Give the cuts that can be read with their samples [S] at 16 kHz; name the others in the log.

    Args:
        cuts: by recording, as ``load_cuts`` wants them; neighbours share the decoding of theirs.
        left_out: counts the others, by cause.
    """
    todo = list(cuts)
    while todo:
        done = 0
        try:
            for cut, samples in load_cuts(todo):
                done += 1
                yield cut, samples
            return
        except DataError as error:
            log.warning("cut %s left out: %s", todo[done].id, error)
            left_out[UNREADABLE] += 1
            todo = todo[done + 1 :]


def cut_text(cut: Cut) -> str:
    """Return the normalised text of all segments of a cut, empty if it has none."""
    return normalize_text(spoken_text(cut))


def log_left_out(left_out: Mapping[str, int], total: int) -> None:
    """Log how many of ``total`` cuts were left out, a line for each cause."""
    for cause, count in sorted(left_out.items()):
        log.warning("%d of %d cuts left out: %s", count, total, cause)


def require_writable(path: Path) -> None:
    """Refuse to begin what will be written to a file that cannot be written.

    Raises:
        DataError: its folder does not exist, it is a folder itself, or it may not be written.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder to write into. Make it first.")
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name a file to write.")
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise DataError(f"{place} may not be written. Name another place, or change its permissions.")


def make_folder(path: Path) -> None:
    """Make a folder to write into, where there is none yet.

    Raises:
        DataError: it cannot be made, for instance because a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: no folder can be made there ({error.strerror}). Name another.") from error


KEPT = "What is done is kept: make room and call again."
BEGUN_ANEW = "Make room and call again."


@contextmanager
def writing(path: Path, advice: str = KEPT) -> Iterator[None]:
    """Turn what the system says when a file cannot be written (a full disk) into an error that names it.

    Raises:
        DataError: the body raised an ``OSError``; the message ends with the advice.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}). {advice}") from error


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never a part.

    Raises:
        OSError: it cannot be written; what was written of it no longer takes up the disk.
    """
    if path.exists() and not path.is_file():  # as a pipe, whose place nothing takes
        path.write_bytes(content)
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        if partial.is_file():
            partial.unlink()
        raise


def alone_in(folder: Path) -> AbstractContextManager[Path]:
    """Keep other processes from writing into a folder, which is made where there is none; see ``_alone``.

    Raises:
        DataError: another process writes into it, or it cannot be written into.
    """
    make_folder(folder)
    return _alone(folder, folder / "lock")


def alone_with(path: Path) -> AbstractContextManager[Path]:
    """Keep other processes from working on a file that is to be written; see ``_alone``.

    Raises:
        DataError: another process does, or nothing can be written beside it.
    """
    return _alone(path, path.with_name(path.name + ".lock"))


@contextmanager
def _alone(place: Path, lock: Path) -> Iterator[Path]:
    """Hold a lock, which is a file that is gone at the end; a kill leaves it there, but nobody held up.

    A file system without locks keeps nobody out.
    """
    with writing(lock):
        lock.touch()
    if sys.platform == "win32":  # has other locks, and removes no file that is open
        yield lock
        lock.unlink(missing_ok=True)
        return
    with open(lock, "ab") as file:
        if _is_held(file) or not os.fstat(file.fileno()).st_nlink:  # gone: its process has just ended
            raise DataError(f"{place}: another process writes it. Wait for its end, or name another place.")
        try:
            yield lock
        finally:
            lock.unlink(missing_ok=True)


def _is_held(file: IO[bytes]) -> bool:
    """Lock a file, or say that another process has; those that load batches do not inherit the lock."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Name the extra to install where the body imports what is not there.

    Raises:
        ConfigError: a module was not found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}. Install what this needs: pip install 'onebest[{name}]'") from error
