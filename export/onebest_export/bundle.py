"""All files of a bundle, written together or not at all."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onebest.card import FORMAT, VERSION, hash_file
from onebest.errors import ModelError
from onebest.frontend import SPEC
from onebest_export import verify
from onebest_export.graphs import export_decoder, export_encoder, export_joiner
from onebest_export.quantize import quantize
from onebest_export.verify import Difference, FloatArray
from onebest_training.checkpoint import Checkpoint
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING
from onebest_training.transducer import BLANK, Transducer
from onebest_training.vocabulary import TextEncoder

_PARTS = ("encoder", "decoder", "joiner")
#: The joiner's only matrix follows a tanh. It is run for one frame or many, which must give the same tokens.
TANH_BOUND = 1.0


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        name: the model's name, for its card.
        chunk_frames: 40 ms frames a chunk that the metadata names.
        left_frames: frames of left context.
        int8: write int8 graphs, or float32 ones.
        notes: a JSON object for the card: ``training``, ``wer`` and whatever else is known.
        blank_penalty: taken off the blank's logit for good, in nats; more than 0 brings out words that greedy
            search would leave out, and some wrong ones with them.
    """

    name: str
    chunk_frames: int = 16
    left_frames: int = 128
    int8: bool = True
    notes: dict[str, Any] | None = None
    blank_penalty: float = 0.0


def write_bundle(
    model: Transducer,
    tokens: TextEncoder,
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    features: FloatArray | None = None,
) -> Difference:
    """Export, verify and write a bundle; return how far the shipped graphs are from torch.

    Args:
        model: the averaged model in evaluation mode.
        tokens: its vocabulary.
        checkpoint: where it comes from; its configuration goes into the card.
        folder: must not exist yet.
        options: latency, precision, name.
        features: of real speech, [N, F, 80], to verify on besides synthetic ones.

    Raises:
        ModelError: the folder exists, the vocabulary is another model's, or the graphs differ from torch;
            nothing is written then.
    """
    if folder.exists():
        raise ModelError(f"{folder} exists already. Name another folder, or remove it first.")
    if len(tokens) != model.config.vocabulary_size:
        raise ModelError(
            f"the vocabulary has {len(tokens)} tokens, the model {model.config.vocabulary_size}; nothing was "
            "written. Take the vocabulary that the model was trained with."
        )
    model = _penalize_blank(model, options.blank_penalty)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        work = Path(name)
        paths = _export_float(model, work, options)
        difference = _compare(model, paths, options, features)
        verify.check_float(difference)
        if options.int8:
            paths = _quantize_all(paths)
            difference = _compare(model, paths, options, features)
            verify.check_int8(difference)
        complete = work / "bundle"
        complete.mkdir()
        for path in paths:
            shutil.copy(path, complete / path.name)
        write_tokens(tokens, complete / "tokens.txt")
        card = make_card(
            checkpoint,
            options,
            {p: complete / path.name for p, path in zip(_PARTS, paths, strict=True)}
            | {"tokens": complete / "tokens.txt"},
        )
        (complete / "card.json").write_text(json.dumps(card, indent=2) + "\n", "utf-8")
        complete.rename(folder)
    return difference


def _penalize_blank(model: Transducer, penalty: float) -> Transducer:
    if not penalty:
        return model
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.joiner.out.bias[BLANK] -= penalty
    return changed


def _compare(
    model: Transducer, paths: list[Path], options: ExportOptions, features: FloatArray | None
) -> Difference:
    """Compare on all features, at the metadata's latency and at one with less context than chunk."""
    frames = SUBSAMPLING * options.chunk_frames * verify.CHUNKS + PAD_FRAMES
    synthetic = verify.synthetic_features(frames, verify.STREAMS)
    latencies = (
        (options.chunk_frames, options.left_frames),
        (options.chunk_frames + 1, options.chunk_frames),
    )
    return verify.worst(
        verify.compare(model, paths, chunk, left, given)
        for chunk, left in latencies
        for given in (synthetic, features)
        if given is not None
    )


def _export_float(model: Transducer, work: Path, options: ExportOptions) -> list[Path]:
    paths = [work / f"{part}.onnx" for part in _PARTS]
    export_encoder(model, paths[0], options.chunk_frames, options.left_frames)
    export_decoder(model, paths[1])
    export_joiner(model, paths[2])
    return paths


def _quantize_all(paths: list[Path]) -> list[Path]:
    smaller = [path.with_suffix(".int8.onnx") for path in paths]
    for part, source, target in zip(_PARTS, paths, smaller, strict=True):
        quantize(source, target, TANH_BOUND if part == "joiner" else None)
    return smaller


def write_tokens(tokens: TextEncoder, path: Path) -> None:
    """Write ``tokens.txt``: a line "symbol id" for every token."""
    path.write_text("".join(f"{piece} {index}\n" for index, piece in enumerate(tokens.pieces())), "utf-8")


def make_card(checkpoint: Checkpoint, options: ExportOptions, files: dict[str, Path]) -> dict[str, Any]:
    """Return the card of a bundle with these files."""
    position = checkpoint.position
    training = {
        "steps": position.step,
        "audio_hours": round(position.seconds / 3600, 1),
        "wall_hours": round(position.wall_seconds / 3600, 2),
        "config": checkpoint.config,
    }
    notes = options.notes or {}
    return {
        **notes,
        "format": FORMAT,
        "version": VERSION,
        "name": options.name,
        "files": {part: {"file": path.name, "sha256": hash_file(path)} for part, path in files.items()},
        "front_end": SPEC.to_dict(),
        "architecture": {
            **checkpoint.config["model"],
            "chunk_frames": options.chunk_frames,
            "left_frames": options.left_frames,
            "precision": "int8" if options.int8 else "float32",
            "blank_penalty": options.blank_penalty,
        },
        "training": {**training, **notes.get("training", {})},
        "wer": notes.get("wer", {}),
    }
