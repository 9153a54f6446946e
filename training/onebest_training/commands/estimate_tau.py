"""``onebest estimate-tau``: how many frames later a student emits its tokens than its teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from onebest.cli import Command
from onebest.errors import DataError

if TYPE_CHECKING:
    from onebest_training.batches import Utterance
    from onebest_training.vocabulary import TextEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="the student")
    parser.add_argument("targets", type=Path, help="folder of the teacher's targets, from onebest targets")
    parser.add_argument("store", type=Path, help="features of the same cuts, from onebest prepare")
    parser.add_argument("--chunk-frames", type=int, default=16, help="chunk size in frames of 40 ms")
    parser.add_argument("--left-frames", type=int, default=128, help="frames of left context")
    parser.add_argument("--limit", type=int, default=400, metavar="N", help="take N cuts, spread over all")


def run(arguments: argparse.Namespace) -> int:
    """Decode with the student, match its tokens with the teacher's, print the median."""
    from statistics import median

    from onebest_training.checkpoint import load_model
    from onebest_training.decode import dev_batches, measure
    from onebest_training.delay import FRAME_MS, summarize

    model, tokens, _ = load_model(arguments.checkpoint)
    utterances = _utterances(arguments, tokens)
    chosen = utterances[:: -(-len(utterances) // arguments.limit)]
    chunk = arguments.chunk_frames
    delays = measure(model, dev_batches(chosen), tokens, [chunk], arguments.left_frames)[chunk].delays
    summary = summarize(delays)
    if summary is None:
        raise DataError(f"{arguments.checkpoint} recognises no token of the teacher's. Train it further.")
    print(
        f"tau: {median(delays):g} frames of {FRAME_MS} ms, the median of {len(delays)} tokens in "
        f"{len(chosen)} cuts, chunks of {chunk} frames\n"
        f"mean {summary.mean_ms:.0f} ms, p50 {summary.p50_ms:.0f} ms, p90 {summary.p90_ms:.0f} ms"
    )
    return 0


def _utterances(arguments: argparse.Namespace, tokens: TextEncoder) -> list[Utterance]:
    """Return the store's cuts that have a target, with the teacher's labels."""
    from onebest_training.batches import load_utterances
    from onebest_training.config import SourceConfig
    from onebest_training.features import FeatureStore

    source = SourceConfig(str(arguments.store), targets=str(arguments.targets), labels="teacher")
    utterances = load_utterances(FeatureStore(arguments.store), tokens, float("inf"), source)
    if not utterances:
        raise DataError(f"{arguments.targets} has no target for a cut of {arguments.store}.")
    return utterances


command = Command("measure how much later a student emits its tokens than its teacher", add_arguments, run)
