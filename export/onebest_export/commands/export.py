"""``onebest export``: a checkpoint -> a model bundle."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebest.card import check_new
from onebest.cli import Command
from onebest.errors import ConfigError, DataError

if TYPE_CHECKING:
    from onebest_export.deviation import Utterance
    from onebest_export.precision import Choice
    from onebest_export.verify import FloatArray

FRAME_MS = 40
#: Of an option in milliseconds.
LONGEST_MS = 60_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="folder to write")
    parser.add_argument("--name", help="the model's name; the folder's when not given")
    parser.add_argument(
        "--chunk-ms", type=int, default=640, help="latency that the metadata names, a multiple of 40"
    )
    parser.add_argument("--left-ms", type=int, default=5120, help="left context, a multiple of 40")
    parser.add_argument(
        "--right-ms",
        type=int,
        default=240,
        help="right context, a multiple of 40 or 0: the end of a chunk, which the next one brings out",
    )
    parser.add_argument("--float", action="store_true", help="float32 graphs instead of int8")
    parser.add_argument(
        "--blank-penalty",
        type=float,
        default=0.0,
        help="take this off the blank's logit, where dev shows words left out",
    )
    parser.add_argument(
        "--pause-ms",
        type=int,
        default=1000,
        help="without a word, after which onebest hears what comes next as a new utterance; a multiple of "
        "40, or 0 for never",
    )
    parser.add_argument(
        "--start-margin",
        type=float,
        default=1.0,
        help="nats by which the first token, and the first behind a pause, has to be likelier than the blank "
        "in onebest, so that noise is no word; 0 for none",
    )
    parser.add_argument(
        "--language-model",
        type=Path,
        metavar="FILE",
        help="put this model from onebest train-lm --context into the decoder, where it leads greedy search",
    )
    parser.add_argument(
        "--language-model-weight",
        type=float,
        default=0.5,
        help="what it counts (default: 0.5)",
    )
    parser.add_argument(
        "--internal-weight",
        type=float,
        default=0.4,
        help="what the joiner's own view of the language counts less in return (default: 0.4)",
    )
    parser.add_argument("--notes", type=Path, help="JSON object to put into the card")
    parser.add_argument(
        "--check-audio",
        type=Path,
        nargs="+",
        default=[],
        help="recordings to verify on, besides synthetic features",
    )
    parser.add_argument(
        "--dev", type=Path, metavar="MANIFEST", help="speech with texts to measure int8 on, as for evaluate"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="measure on N cuts, spread over the manifest")
    parser.add_argument(
        "--wer-budget",
        type=float,
        default=0.1,
        help="percent that int8 may add to the word error rate on --dev; where it adds more, what errs most "
        "stays in float32 (default: 0.1)",
    )
    parser.add_argument("--report", action="store_true", help="measure each component's int8 alone, too")


def run(arguments: argparse.Namespace) -> int:
    """Load the checkpoint, export it, verify it, write the bundle."""
    from onebest.signals import cleaned_up
    from onebest_export.bundle import ExportOptions, Speech, write_bundle
    from onebest_training.checkpoint import load_model
    from onebest_training.fusion import FusionWeights, describe, with_language_model
    from onebest_training.language_model import load_language_model

    if arguments.report and not arguments.dev:
        raise ConfigError("--report measures on speech. Name some with --dev.")
    _check_numbers(arguments)
    chunk, right = to_frames("--chunk-ms", arguments.chunk_ms), arguments.right_ms
    if right and to_frames("--right-ms", right) >= chunk:
        raise ConfigError(f"--right-ms is {right}. It must be less than --chunk-ms, {arguments.chunk_ms}.")
    options = ExportOptions(
        arguments.name or arguments.bundle.resolve().name,
        chunk,
        to_frames("--left-ms", arguments.left_ms),
        right // FRAME_MS,
        not arguments.float,
        _notes(arguments.notes),
        arguments.blank_penalty,
        to_frames("--pause-ms", arguments.pause_ms) * FRAME_MS if arguments.pause_ms else 0,
        arguments.start_margin,
        wer_budget=arguments.wer_budget,
        report=arguments.report,
    )
    check_new(arguments.bundle)
    model, tokens, checkpoint = load_model(arguments.checkpoint)
    if arguments.language_model:
        language_model = load_language_model(arguments.language_model, tokens)
        weights = FusionWeights(arguments.language_model_weight, arguments.internal_weight)
        model = with_language_model(model, language_model, weights)
        options = replace(options, language_model=describe(language_model, weights))
    speech = Speech(
        _features(arguments.check_audio, chunk) if arguments.check_audio else None,
        _utterances(arguments.dev, arguments.limit) if arguments.dev else (),
    )
    with cleaned_up():
        difference, choice = write_bundle(model, tokens, checkpoint, arguments.bundle, options, speech)
    size = sum(path.stat().st_size for path in arguments.bundle.iterdir()) / 1e6
    print(
        f"{arguments.bundle}: {size:.1f} MB; "
        f"against torch, log-probabilities within {difference.log_prob:.2g}, "
        f"encoder outputs within {difference.encoder_error:.2%}, tokens equal in {difference.agreement:.2%}"
    )
    if choice:
        print(format_choice(choice))
    return 0


def format_choice(choice: Choice) -> str:
    """Return what int8 changed as lines of text."""
    rows = {**{f"{name} alone": found for name, found in choice.alone.items()}, "as written": choice.chosen}
    width = max(map(len, rows))
    lines = [
        f"{'int8':{width}}  {'logit error':>11}  {'tokens equal':>12}  {'WER %':>6}",
        f"{'none':{width}}  {0:11.4f}  {1:12.2%}  {choice.wer:6.2f}",
    ]
    lines += [
        f"{name:{width}}  {found.logit_error:11.4f}  {found.agreement:12.2%}  {found.wer:6.2f}"
        for name, found in rows.items()
    ]
    return "\n".join([*lines, f"left in float32: {', '.join(choice.in_float) or 'no component'}"])


def to_frames(name: str, milliseconds: int) -> int:
    """Return the encoder frames of an option in milliseconds.

    Raises:
        ConfigError: it is no positive multiple of a frame, or more than a minute.
    """
    if milliseconds < FRAME_MS or milliseconds % FRAME_MS:
        raise ConfigError(
            f"{name} is {milliseconds}. It must be a multiple of {FRAME_MS}, the length of an encoder frame."
        )
    if milliseconds > LONGEST_MS:
        raise ConfigError(f"{name} is {milliseconds}. It must be {LONGEST_MS} at most.")
    return milliseconds // FRAME_MS


def _check_numbers(arguments: argparse.Namespace) -> None:
    if not math.isfinite(arguments.blank_penalty):
        raise ConfigError(f"--blank-penalty is {arguments.blank_penalty}. It must be a finite number.")
    for option in ("start_margin", "wer_budget"):
        if not 0 <= (number := getattr(arguments, option)) < math.inf:
            name = "--" + option.replace("_", "-")
            raise ConfigError(f"{name} is {number}. It must be a finite number of 0 or more.")
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit is {arguments.limit}. It must be 1 or more.")


def _notes(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        notes = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(notes, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(notes).__name__}.")
    for key in ("training", "wer"):
        if not isinstance(notes.get(key, {}), dict):
            raise ConfigError(f"{path}: {key!r} is {notes[key]!r}, expected a JSON object.")
    return notes


def _features(paths: list[Path], chunk_frames: int) -> FloatArray:
    """Return the features of recordings one after the other, [1, F, 80].

    Raises:
        ConfigError: together they are shorter than a chunk.
    """
    import numpy as np

    from onebest.audio import read_blocks
    from onebest.frontend import SAMPLE_RATE, compute_features
    from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING

    samples = np.concatenate([block for path in paths for block in read_blocks(path)])
    if len(features := compute_features(samples)) < SUBSAMPLING * chunk_frames + PAD_FRAMES:
        raise ConfigError(
            f"--check-audio is {len(samples) / SAMPLE_RATE:.2f} s of audio, less than a chunk. Name more."
        )
    return features[None]


def _utterances(manifest: Path, limit: int | None) -> list[Utterance]:
    from onebest.cuts import read_cuts
    from onebest_export.deviation import read_utterances

    cuts = list(read_cuts(manifest))
    step = max(len(cuts) // limit, 1) if limit else 1
    utterances = read_utterances(cuts[::step][:limit])
    if not utterances:
        raise DataError(f"{manifest}: no cut with text. Name speech with texts to measure on.")
    return utterances


command = Command("turn a checkpoint into a model bundle of ONNX graphs", add_arguments, run)
