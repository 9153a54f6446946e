"""``onebest convert-encoder``: a Whisper encoder of CTranslate2 or transformers -> first weights for ours."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from onebest.cli import Command
from onebest.errors import ModelError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model",
        nargs="+",
        type=Path,
        help="model.bin of CTranslate2, or its parts in order, or a folder of CTranslate2 or transformers",
    )
    parser.add_argument(
        "--speech", type=Path, required=True, help="manifest of speech to fit the feature map on"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how much of it")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> int:
    """Rename the weights, fit the feature map, write both."""

    from onebest.cuts import load_cuts, read_cuts, sort_cuts
    from onebest.frontend import NUM_BINS
    from onebest_training.checkpoint import write
    from onebest_training.speech import require_writable
    from onebest_training.strict import require
    from onebest_training.whisper import fit_feature_map, read_whisper

    require_writable(arguments.output)
    require(arguments.minutes > 0, f"--minutes above 0, not {arguments.minutes}")
    weights = read_whisper(arguments.model)
    if (bins := weights["stem.conv1.weight"].shape[1]) != NUM_BINS:
        raise ModelError(
            f"{arguments.model[0]}: reads {bins} mel bins, but our features have {NUM_BINS}. Take a Whisper "
            "with as many."
        )
    cuts = sort_cuts(read_cuts(arguments.speech))
    recordings = sorted({cut.recording.id for cut in cuts})
    random.Random(0).shuffle(recordings)
    order = {name: index for index, name in enumerate(recordings)}
    utterances, seconds = [], 0.0
    for cut, samples in load_cuts(sorted(cuts, key=lambda cut: (order[cut.recording.id], cut.start))):
        if seconds > 60 * arguments.minutes:
            break
        utterances.append(samples)
        seconds += cut.duration
    weights["stem.map.weight"], weights["stem.map.bias"], explained = fit_feature_map(utterances)
    write(weights, arguments.output)
    print(
        f"{arguments.output}: {sum(w.numel() for w in weights.values()):,} weights; "
        f"the feature map explains {explained:.3f} of the variance on {seconds / 60:.0f} minutes"
    )
    return 0


command = Command("turn a Whisper encoder into first weights of an encoder of ours", add_arguments, run)
