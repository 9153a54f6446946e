"""``onebest export``: a checkpoint -> a model bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebest.cli import Command
from onebest.errors import ConfigError

if TYPE_CHECKING:
    from onebest_export.verify import FloatArray

FRAME_MS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="folder to write")
    parser.add_argument("--name", help="the model's name; the folder's when not given")
    parser.add_argument(
        "--chunk-ms", type=int, default=640, help="latency that the metadata names, a multiple of 40"
    )
    parser.add_argument("--left-ms", type=int, default=5120, help="left context, a multiple of 40")
    parser.add_argument("--float", action="store_true", help="float32 graphs instead of int8")
    parser.add_argument(
        "--blank-penalty",
        type=float,
        default=0.0,
        help="take this off the blank's logit, where dev shows words left out",
    )
    parser.add_argument("--notes", type=Path, help="JSON object to put into the card")
    parser.add_argument(
        "--check-audio",
        type=Path,
        nargs="+",
        default=[],
        help="recordings to verify on, besides synthetic features",
    )


def run(arguments: argparse.Namespace) -> int:
    """Load the checkpoint, export it, verify it, write the bundle."""
    from onebest_export.bundle import ExportOptions, write_bundle
    from onebest_training.checkpoint import load_model

    options = ExportOptions(
        arguments.name or arguments.bundle.resolve().name,
        _frames("--chunk-ms", arguments.chunk_ms),
        _frames("--left-ms", arguments.left_ms),
        not arguments.float,
        _notes(arguments.notes),
        arguments.blank_penalty,
    )
    features = _features(arguments.check_audio) if arguments.check_audio else None
    model, tokens, checkpoint = load_model(arguments.checkpoint)
    difference = write_bundle(model, tokens, checkpoint, arguments.bundle, options, features)
    size = sum(path.stat().st_size for path in arguments.bundle.iterdir()) / 1e6
    print(
        f"{arguments.bundle}: {size:.1f} MB; "
        f"against torch, log-probabilities within {difference.log_prob:.2g}, "
        f"encoder outputs within {difference.encoder_error:.2%}, tokens equal in {difference.agreement:.2%}"
    )
    return 0


def _frames(name: str, milliseconds: int) -> int:
    if milliseconds < FRAME_MS or milliseconds % FRAME_MS:
        raise ConfigError(
            f"{name} is {milliseconds}. It must be a multiple of {FRAME_MS}, the length of an encoder frame."
        )
    return milliseconds // FRAME_MS


def _notes(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        notes = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(notes, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(notes).__name__}.")
    return notes


def _features(paths: list[Path]) -> FloatArray:
    """Return the features of recordings one after the other, [1, F, 80]."""
    import numpy as np

    from onebest.audio import read_blocks
    from onebest.frontend import compute_features

    return compute_features(np.concatenate([block for path in paths for block in read_blocks(path)]))[None]


command = Command("turn a checkpoint into a model bundle of ONNX graphs", add_arguments, run)
