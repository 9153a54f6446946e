"""``onebest transcribe``: audio files -> text, shown while it is recognised."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from onebest.audio import read_timed_blocks
from onebest.cli import Command
from onebest.errors import AudioError
from onebest.recognizer import Recognizer
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
    parser.add_argument("--json", action="store_true", help="print one JSON object a file, times in seconds")
    add_model_arguments(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads for the model (default: 1)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that choose the model and its latency."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model's folder (default: what ships)")
    parser.add_argument(
        "--chunk-ms",
        type=int,
        metavar="MS",
        help="audio a step takes in; more is more accurate and later (default: the model's)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what each file says, a line a file; return 1 if one of them could not be read.

    With several files each line starts with the file's name and a colon.
    """
    recognizer = Recognizer(arguments.model, chunk_ms=arguments.chunk_ms, threads=arguments.threads)
    status = 0
    for path in arguments.files:
        try:
            result = _transcribe(recognizer, path)
        except AudioError as error:
            print(f"onebest transcribe: {error}", file=sys.stderr)
            status = 1
            continue
        prefix = f"{_printable(path)}: " if len(arguments.files) > 1 else ""
        print(_to_json(path, result) if arguments.json else prefix + result.text, flush=True)
    return status


def _transcribe(recognizer: Recognizer, path: str) -> Result:
    stream = recognizer.stream()
    with LiveLine(sys.stdout) as line:
        for block in read_timed_blocks(path):
            partial = stream.accept(block.samples)
            is_long = block.duration >= LONG_FILE_SECONDS
            line.show(partial.text, block.end / block.duration if is_long else None)
        return stream.finish()


def _to_json(path: str, result: Result) -> str:
    tokens = [{"token": token, "start": round(start, 2)} for token, start, _ in result.tokens]
    return json.dumps(
        {
            "file": _printable(path),
            "duration": round(result.duration, 3),
            "text": result.text,
            "tokens": tokens,
        }
    )


def _printable(path: str) -> str:
    """Return a file's name with the bytes replaced that are no text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


command = Command("transcribe audio files", add_arguments, run)
