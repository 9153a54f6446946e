"""``onebest export``: a checkpoint -> a model bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from onebest.cli import Command
from onebest.errors import ConfigError


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
    parser.add_argument("--notes", type=Path, help="JSON object to put into the card")
    parser.add_argument(
        "--check-audio", type=Path, help="a recording to verify on, instead of synthetic features"
    )


def run(arguments: argparse.Namespace) -> int:
    """Load the checkpoint, export it, verify it, write the bundle."""
    from onebest_export.bundle import ExportOptions, write_bundle
    from onebest_training.checkpoint import load_model

    if arguments.chunk_ms <= 0 or arguments.chunk_ms % 40 or arguments.left_ms < 0 or arguments.left_ms % 40:
        raise ConfigError("--chunk-ms and --left-ms must be multiples of 40, the length of an encoder frame.")
    notes = json.loads(arguments.notes.read_text("utf-8")) if arguments.notes else None
    options = ExportOptions(
        arguments.name or arguments.bundle.name,
        arguments.chunk_ms // 40,
        arguments.left_ms // 40,
        not arguments.float,
        notes,
    )
    model, tokens, checkpoint = load_model(arguments.checkpoint)
    features = _features(arguments.check_audio) if arguments.check_audio else None
    difference = write_bundle(model, tokens, checkpoint, arguments.bundle, options, features)
    size = sum(path.stat().st_size for path in arguments.bundle.iterdir()) / 1e6
    print(
        f"{arguments.bundle}: {size:.1f} MB; against torch, log-probabilities within {difference.log_prob:.2g}, "
        f"best tokens equal in {difference.agreement:.2%}"
    )
    return 0


def _features(path: Path):  # type: ignore[no-untyped-def]
    import numpy as np

    from onebest.audio import read_blocks
    from onebest.frontend import compute_features

    return compute_features(np.concatenate(list(read_blocks(str(path)))))[None]


command = Command("turn a checkpoint into a model bundle of ONNX graphs", add_arguments, run)
