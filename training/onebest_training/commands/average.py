"""``onebest average``: several checkpoints of one model -> one with the mean of their weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from onebest.cli import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoints", nargs="+", type=Path, help="of one run with keep_steps, or of several")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="write weights of 16 bits, half the size")
    precision.add_argument(
        "--int8", action="store_true", help="write matrices of 8 bits, a quarter of the size"
    )


def run(arguments: argparse.Namespace) -> int:
    """Average and write."""
    from onebest_training.checkpoint import average_models, save, save_half, save_int8
    from onebest_training.speech import require_writable

    require_writable(arguments.output)
    write = save_half if arguments.half else save_int8 if arguments.int8 else save
    write(average_models(arguments.checkpoints), arguments.output)
    print(f"{arguments.output}: the mean of {len(arguments.checkpoints)}")
    return 0


command = Command("average the weights of checkpoints", add_arguments, run)
