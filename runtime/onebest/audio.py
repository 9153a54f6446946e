"""Audio files of any format, rate and channel count -> blocks of mono float32 samples at 16 kHz."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from onebest.errors import AudioError
from onebest.samples import Resampler, check_samples

FloatArray = npt.NDArray[np.float32]

STANDARD_INPUT = "-"
#: Of a file that is called so soundfile wants to be told the rate; by its content it may have one.
_HEADERLESS = ".raw"
#: Short blocks, for a text that is seen to grow, and long ones, for one that is not.
BLOCK_SECONDS, LONG_BLOCK_SECONDS = 0.32, 5.12
#: What libsndfile notes of a WAV file that has another number of bytes than its header says.
_PROMISED = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
#: From here on a header only says that its program wrote to a pipe and could not know.
_UNKNOWN_BYTES = 0x7FFF0000


@dataclass(frozen=True)
class Block:
    """Some audio of a file.

    Attributes:
        samples: mono float32 [S] at 16 kHz.
        end: seconds of the file up to and with this block.
        duration: seconds of the whole file as its header says, or 0 if it does not.
    """

    samples: FloatArray
    end: float
    duration: float


def read_blocks(path: str | Path, seconds: float = BLOCK_SECONDS) -> Iterator[FloatArray]:
    """Give the samples of a file in blocks [S]: 16 kHz, the mean of the channels.

    Args:
        path: a file that libsndfile reads (WAV, FLAC, OGG, Opus, MP3 and others); ``-`` is standard input,
            which is read whole, as any other pipe is.
        seconds: the length of a block.

    Raises:
        AudioError: the file is missing, unreadable or empty, or holds NaN; the message names it.
    """
    return (block.samples for block in read_timed_blocks(path, seconds))


def read_timed_blocks(path: str | Path, seconds: float = BLOCK_SECONDS) -> Iterator[Block]:
    """Give the blocks that ``read_blocks`` gives, each with its place in the file.

    Raises:
        AudioError: as ``read_blocks``; behind the blocks that hold what could be read.
    """
    end = 0.0
    try:
        with _open(path) as file:
            for block in _resampled(file, _name(path), seconds):
                yield block
                end = block.end
    except (soundfile.LibsndfileError, OSError) as error:
        if end:
            raise AudioError(
                f"{_name(path)}: can be read for {end:.2f} s only ({_reason(error)}). Was it copied whole?"
            ) from error
        raise AudioError(
            f"{_name(path)}: cannot be read as audio ({_reason(error)}). "
            "Expected a WAV, FLAC, OGG, Opus or MP3 file."
        ) from error


class _ForwardFile(soundfile.SoundFile):
    """A file that is only read onwards.

    soundfile seeks after every read of a file that it may seek in. In an MP3 file that loses the bits which a
    frame borrows from the frame before, and with them a little of the sound at every block.
    """

    def seekable(self) -> bool:
        return False


def _open(path: str | Path) -> soundfile.SoundFile:
    if str(path) == STANDARD_INPUT:
        if sys.stdin is None:
            raise AudioError("standard input is closed. Name an audio file.")
        return _ForwardFile(io.BytesIO(sys.stdin.buffer.read()))
    file = Path(path)
    is_folder = os.path.isdir(path)  # to pathlib no name at all is the folder it is in
    if is_folder or not os.path.exists(path):
        problem = "is a folder" if is_folder else "no such file"
        raise AudioError(f"{_name(path)}: {problem}. Name an audio file.")
    if file.is_file() and not file.stat().st_size:
        raise AudioError(f"{path}: is empty (0 bytes). Check how it was recorded or copied.")
    if not file.is_file() or file.suffix.lower() == _HEADERLESS:
        return _ForwardFile(io.BytesIO(file.read_bytes()))
    # As bytes a name need not be text; only Windows wants it so.
    name = os.fsencode(path) if os.name == "posix" else str(path)
    return _ForwardFile(name)  # type: ignore[arg-type]


def _resampled(file: soundfile.SoundFile, name: str, seconds: float) -> Iterator[Block]:
    rate, read = file.samplerate, 0
    duration = file.frames / rate if 0 < file.frames < 2**62 else 0.0
    resampler = _make_resampler(rate, name)
    for block in _read(file, round(rate * seconds), round(rate * BLOCK_SECONDS)):
        try:
            mono = check_samples(block.mean(axis=1))
        except AudioError as error:
            raise AudioError(f"{name}, in the block at {read / rate:.2f} s: {error}") from error
        read += len(block)
        yield Block(resampler.accept(mono), read / rate, duration)
    if not read:
        raise AudioError(f"{name}: holds no audio (0 samples). Check how it was recorded or copied.")
    yield Block(resampler.finish(), read / rate, duration)
    promised, found = map(int, match.groups()) if (match := _PROMISED.search(file.extra_info)) else (0, 0)
    if found < promised < _UNKNOWN_BYTES:
        raise AudioError(
            f"{name}: holds {read / rate:.2f} s, {100 * found / promised:.0f} % of what its header says. Was "
            "it copied whole?"
        )


def _read(file: soundfile.SoundFile, size: int, step: int) -> Iterator[FloatArray]:
    """Give samples [S, C] in blocks of a size, read in steps: an error comes behind all but the last step."""
    steps: list[FloatArray] = []
    problem, is_over = None, False
    while not is_over:
        try:
            samples = np.asarray(file.read(step, dtype="float32", always_2d=True), np.float32)
            steps += [samples] if len(samples) else []
            is_over = not len(samples)
        except soundfile.LibsndfileError as error:
            problem, is_over = error, True
        if steps and (is_over or sum(map(len, steps)) >= size):
            yield np.concatenate(steps)
            steps = []
    if problem is not None:
        raise problem


def _make_resampler(rate: int, name: str) -> Resampler:
    try:
        return Resampler(rate)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error


def _name(path: str | Path) -> str:
    return "standard input" if str(path) == STANDARD_INPUT else str(path) or "''"


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", None) or error).strip().rstrip(".")
