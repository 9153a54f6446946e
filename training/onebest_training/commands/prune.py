"""``onebest prune``: a trained model -> a smaller one for a student to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from onebest.cli import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="of the trained model")
    parser.add_argument(
        "--keep", type=float, default=0.5, metavar="PART", help="of the feed-forward units (default: 0.5)"
    )
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")


def run(arguments: argparse.Namespace) -> int:
    """Cut and write."""
    from onebest_training.checkpoint import save
    from onebest_training.prune import prune
    from onebest_training.speech import require_writable

    require_writable(arguments.output)
    smaller = prune(arguments.checkpoint, arguments.keep)
    save(smaller, arguments.output)
    weights = sum(value.numel() for value in smaller.average.values())
    print(f"{arguments.output}: {weights:,} weights. Train it as initial_model, with its model.encoder.")
    return 0


command = Command("cut a smaller model from a trained one", add_arguments, run)
