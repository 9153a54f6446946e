"""``onebest transcribe``: audio files -> text, shown while it is recognised."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from onebest.audio import BLOCK_SECONDS, LONG_BLOCK_SECONDS, STANDARD_INPUT, read_timed_blocks
from onebest.cli import Command
from onebest.errors import AudioError, ConfigError
from onebest.formats import FORMATS
from onebest.recognizer import Recognizer, Stream
from onebest.results import Result
from onebest.terminal import LiveLine

#: From this length on a file gets a progress bar.
LONG_FILE_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="WAV, FLAC, OGG, Opus or MP3 of any sample rate; - is standard input",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="plain text, one JSON object a file, or subtitles (default: what the ending of --output says, "
        "else plain)",
    )
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="the same as --format json"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="write to this file, or for several files into this folder, a file each",
    )
    add_model_arguments(parser)
    add_search_arguments(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads for the model (default: 1)")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that chooses the model."""
    parser.add_argument(
        "--model",
        type=_model,
        metavar="MODEL",
        help="the model's folder, or OWNER/NAME of a fetched one (default: what ships)",
    )


def _model(text: str) -> Path:
    if not text:  # would be the current folder
        raise argparse.ArgumentTypeError("'' names no model; name a folder, or leave the option out")
    return Path(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that choose the model, its latency and the search."""
    add_model_argument(parser)
    parser.add_argument(
        "--chunk-ms",
        type=int,
        metavar="MS",
        help="audio a step takes in; more is more accurate and later (default: the model's)",
    )
    add_beam_argument(parser)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments beside these that change what is recognised: see ``recognizer_options``."""
    parser.add_argument(
        "--left-context",
        type=int,
        metavar="FRAMES",
        help="frames of 40 ms before a chunk that the model looks back on (default: the model's)",
    )
    parser.add_argument(
        "--blank-penalty",
        type=float,
        default=0.0,
        metavar="NATS",
        help="leave out fewer words and make up more of them (default: 0)",
    )
    parser.add_argument(
        "--start-margin",
        type=float,
        metavar="NATS",
        help="how much surer than of silence a first word has to be; more makes fewer words of noise "
        "(default: the model's)",
    )
    add_hotword_argument(parser)


def recognizer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the arguments of a model and of the search mean to a ``Recognizer``."""
    names = ("chunk_ms", "left_context", "blank_penalty", "start_margin", "beam")
    return {name: getattr(arguments, name) for name in names}


def add_hotword_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that names hotwords."""
    parser.add_argument(
        "--hotword",
        action="append",
        default=[],
        metavar="PHRASE",
        help="a word or phrase to expect; may be given again",
    )


def add_beam_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that chooses the search."""
    parser.add_argument(
        "--beam",
        type=int,
        default=1,
        metavar="N",
        help="follow N texts through each chunk and keep the best; 4 is more accurate in more time (default: "
        "1, greedy search)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print or write what each file says; return 1 if one of them could not be read, or not to its end.

    Printed as plain text, each of several files is a line that starts with the file's name and a colon.
    """
    arguments.format = arguments.format or _implied_format(arguments)
    outputs = _outputs(arguments)
    recognizer = Recognizer(arguments.model, threads=arguments.threads, **recognizer_options(arguments))
    format_result, _ = FORMATS[arguments.format]
    status = 0
    for path, output in zip(arguments.files, outputs, strict=True):
        stream = recognizer.stream(hotwords=arguments.hotword)
        result, problem = _transcribe(stream, path, sys.stdout if output is None else sys.stderr)
        if problem is not None:
            print(f"onebest transcribe: {problem}", file=sys.stderr)
            status = 1
        if result is None:
            continue
        content = format_result(_printable(path), result)
        if output is None:
            has_name = len(arguments.files) > 1 and arguments.format == "plain"
            print((f"{_printable(path)}: " if has_name else "") + content, end="", flush=True)
        else:
            _write_whole(output, content)
    return status


def _implied_format(arguments: argparse.Namespace) -> str:
    """Return the format that the ending of the one file to write belongs to, else plain."""
    files, output = arguments.files, arguments.output
    is_file = output is not None and len(files) == 1 and not output.is_dir()
    ending = output.suffix.lower() if is_file else ""
    return next((name for name, (_, own) in FORMATS.items() if own == ending), "plain")


def _outputs(arguments: argparse.Namespace) -> list[Path | None]:
    """Return for each file the one to write to, or None where it is printed.

    Raises:
        ConfigError: two files would go to one place, a text to where its audio is, or several subtitles to
            standard output.
    """
    outputs = _name_outputs(arguments)
    for path, output in zip(arguments.files, outputs, strict=True):
        if output and output.is_file() and Path(path).is_file() and output.samefile(path):
            raise ConfigError(f"{path} would be overwritten by its text. Name another place with --output.")
    return outputs


def _name_outputs(arguments: argparse.Namespace) -> list[Path | None]:
    files, output = arguments.files, arguments.output
    if output is None:
        if len(files) > 1 and arguments.format in ("srt", "vtt"):
            raise ConfigError("Subtitles of several files need a file each. Name a folder with --output.")
        return [None] * len(files)
    if len(files) == 1 and not output.is_dir():
        return [output]
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file, but there are several to write. Name a folder with --output.")
    ending = FORMATS[arguments.format][1]
    stems = ["standard-input" if path == STANDARD_INPUT else Path(path).stem for path in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ConfigError(
            f"Several files would be written to {output / twice[0]}{ending}. Transcribe them one by one."
        )
    return [output / f"{stem}{ending}" for stem in stems]


def _write_whole(path: Path, content: str) -> None:
    """Write a file that is there complete or not at all; what is no file, as a pipe, is written to.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(content, "utf-8")
            return
        target = path.resolve()
        unfinished = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(content, "utf-8")
        os.replace(unfinished, target)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}). Name another place with --output.") from error


def _transcribe(stream: Stream, path: str, terminal: TextIO) -> tuple[Result | None, AudioError | None]:
    """Return what a file says as far as it can be read, None if not at all, and what is wrong with it."""
    seconds = BLOCK_SECONDS if terminal.isatty() else LONG_BLOCK_SECONDS
    is_heard, problem = False, None
    try:
        with LiveLine(terminal) as line:
            for block in read_timed_blocks(path, seconds):
                partial = stream.accept(block.samples)
                is_heard = True
                is_long = block.duration >= LONG_FILE_SECONDS
                line.show(partial.text, block.end / block.duration if is_long else None)
    except AudioError as error:
        problem = error
    return stream.finish() if is_heard else None, problem


def _printable(path: str) -> str:
    """Return a file's name with the bytes replaced that are no text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


command = Command("transcribe audio files", add_arguments, run)
