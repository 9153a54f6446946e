"""``onebest prepare``: a manifest or a folder of speech -> a feature store."""

from __future__ import annotations

import argparse
from pathlib import Path

from onebest.cli import Command
from onebest.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("manifest", type=Path, help="lhotse cut manifest, or a folder like LibriSpeech's")
    parser.add_argument("store", type=Path, help="folder to write")
    parser.add_argument("--speed", type=float, default=1.0, help="change speed by this factor")
    parser.add_argument("--reverberation", help="lhotse recording manifest of room responses")
    parser.add_argument(
        "--front-end",
        default="",
        metavar="NAME",
        help="for a teacher: FAMILY:SOURCE of a pre-trained encoder whose output is stored, or 'samples' for "
        "one that trains along",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)


def run(arguments: argparse.Namespace) -> int:
    """Read the manifest, compute the features, write the store."""
    from rich.progress import Progress

    from onebest.cuts import read_cuts
    from onebest.signals import cleaned_up
    from onebest_training.features import SampleAugmentation, make_store

    if arguments.store.exists():
        raise DataError(f"{arguments.store} exists already. Remove it to make it again.")
    cuts = list(read_cuts(arguments.manifest))
    augmentation = SampleAugmentation(arguments.speed, arguments.reverberation, arguments.seed)
    with cleaned_up(), Progress() as progress:
        task = progress.add_task("features", total=sum(cut.duration for cut in cuts))
        make_store(
            cuts,
            arguments.store,
            augmentation,
            arguments.workers,
            lambda seconds: progress.advance(task, seconds),
            arguments.front_end,
        )
    return 0


command = Command("compute features of a speech corpus once, for training", add_arguments, run)
