"""``onebest estimate-tau``: how many frames later a student emits its tokens than its teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from onebest.cli import Command
from onebest.errors import DataError

if TYPE_CHECKING:
    from onebest_training.features import FeatureStore
    from onebest_training.utterances import Utterance
    from onebest_training.vocabulary import TextEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="the student")
    parser.add_argument("targets", type=Path, help="folder of the teacher's targets, from onebest targets")
    parser.add_argument("store", type=Path, help="features of the same cuts, from onebest prepare")
    parser.add_argument("--chunk-frames", type=int, default=16, help="chunk size in frames of 40 ms")
    parser.add_argument("--left-frames", type=int, default=128, help="frames of left context")
    parser.add_argument(
        "--right-frames", type=int, default=0, help="frames of right context, a part of the chunk"
    )
    parser.add_argument("--limit", type=int, default=400, metavar="N", help="take N cuts, spread over all")


def run(arguments: argparse.Namespace) -> int:
    """Decode with the student, match its tokens with the teacher's, print the median."""
    from statistics import median_low

    from onebest_training.delay import FRAME_MS, summarize

    chunk = arguments.chunk_frames
    places = arguments.checkpoint, arguments.targets, arguments.store
    contexts = arguments.left_frames, arguments.right_frames
    delays, count = measure_delays(*places, chunk, contexts, arguments.limit)
    summary = summarize(delays)
    if summary is None:
        raise DataError(f"{arguments.checkpoint} recognises no token of the teacher's. Train it further.")
    print(
        f"tau: {median_low(delays)} frames of {FRAME_MS} ms, the median of {len(delays)} tokens in "
        f"{count} cuts, chunks of {chunk} frames\n"
        f"mean {summary.mean_ms:.0f} ms, p50 {summary.p50_ms:.0f} ms, p90 {summary.p90_ms:.0f} ms"
    )
    return 0


def measure_delays(
    checkpoint: Path,
    targets: Path,
    store: Path,
    chunk_frames: int,
    contexts: tuple[int, int] = (128, 0),
    limit: int = 400,
) -> tuple[list[int], int]:
    """Return by how many frames a student is later than its teacher at each token, and of how many cuts.

    Args:
        checkpoint: the student.
        targets: the teacher's.
        store: features of the same cuts.
        chunk_frames: frames a chunk; 0 for full context.
        contexts: frames of left and of right context.
        limit: cuts to take, spread over all.

    Raises:
        ConfigError: a number is below 0, the limit is 0, the right context is no part of a chunk, or the
            store is of another front end.
        DataError: the targets have no cut of the store.
    """
    from onebest_training.checkpoint import load_model
    from onebest_training.decode import dev_batches, measure
    from onebest_training.features import FeatureStore
    from onebest_training.strict import require

    require(limit > 0, f"a limit above 0, not {limit}")
    left, right = contexts
    require(min(chunk_frames, left, right) >= 0, "frames of a chunk and of its contexts of 0 or more")
    require(right < chunk_frames or right == 0, f"right context below a chunk, not {right} frames")
    model, tokens, saved = load_model(checkpoint)
    features = FeatureStore(store)
    features.check_front_end(model.config.encoder, saved.front_end)
    utterances = _utterances(targets, features, tokens)
    chosen = utterances[:: -(-len(utterances) // limit)]
    measured = measure(model, dev_batches(chosen), tokens, [chunk_frames], left, right=right)
    return measured[chunk_frames].delays, len(chosen)


def _utterances(targets: Path, store: FeatureStore, tokens: TextEncoder) -> list[Utterance]:
    """Return the store's cuts that have a target, with the teacher's labels."""
    from onebest_training.config import SourceConfig
    from onebest_training.utterances import load_utterances

    source = SourceConfig(str(store.folder), targets=str(targets), labels="teacher")
    utterances = load_utterances(store, tokens, float("inf"), source)
    if not utterances:
        raise DataError(f"{targets} has no target for a cut of {store.folder}.")
    return utterances


command = Command("measure how much later a student emits its tokens than its teacher", add_arguments, run)
