"""``onebest copy-latency``: a bundle -> the same bundle, its metadata naming another latency."""

from __future__ import annotations

import argparse
from pathlib import Path

from onebest.cli import Command
from onebest_export.commands.export import to_frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("copy", type=Path, help="folder to write")
    parser.add_argument("--chunk-ms", type=int, required=True, help="audio a step takes in, a multiple of 40")
    parser.add_argument("--left-ms", type=int, help="left context, a multiple of 40 (default: the bundle's)")


def run(arguments: argparse.Namespace) -> int:
    """Copy the bundle."""
    from onebest.signals import cleaned_up
    from onebest_export.latency import copy_at_latency, trailing_silence_ms

    chunk_frames = to_frames("--chunk-ms", arguments.chunk_ms)
    left_frames = None if arguments.left_ms is None else to_frames("--left-ms", arguments.left_ms)
    with cleaned_up():
        sizes = copy_at_latency(arguments.bundle, arguments.copy, chunk_frames, left_frames)
    silence = trailing_silence_ms(sizes) / 1000
    print(
        f"{arguments.copy}: {arguments.chunk_ms} ms a chunk; "
        f"other programs have to add {silence:.2f} s of silence after the last word"
    )
    return 0


command = Command("copy a bundle for other programs to run at another latency", add_arguments, run)
