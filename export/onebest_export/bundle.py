"""All files of a bundle, written together or not at all."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onebest.bundle import load_bundle
from onebest.card import FORMAT, VERSION, check_new, write_card
from onebest.errors import ModelError
from onebest.frontend import SPEC
from onebest_export import verify
from onebest_export.deviation import Utterance
from onebest_export.graphs import OPSET, export_decoder, export_encoder, export_joiner, export_streams
from onebest_export.optimize import optimize
from onebest_export.precision import (
    PARTS,
    Choice,
    Component,
    choose_precision,
    products_of,
    quantize_graphs,
)
from onebest_export.quantize import quantize
from onebest_export.streams import share_weights
from onebest_export.verify import Difference, FloatArray
from onebest_training.checkpoint import Checkpoint
from onebest_training.config import ModelConfig
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING
from onebest_training.speech import make_folder
from onebest_training.strict import to_dict
from onebest_training.transducer import BLANK, Transducer
from onebest_training.vocabulary import TextEncoder


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        name: the model's name, for its card.
        chunk_frames: 40 ms frames a chunk that the metadata names.
        left_frames: frames of left context.
        right_frames: of right context: the last ones of a chunk, which come again with the next.
        int8: write int8 graphs, or float32 ones.
        notes: a JSON object for the card: ``training``, ``wer`` and whatever else is known.
        blank_penalty: taken off the blank's logit for good, in nats; more than 0 brings out words that greedy
            search would leave out, and some wrong ones with them.
        pause_ms: without a word, after which onebest's streams begin anew; 0 is never.
        start_margin: nats by which the first token of onebest's streams, and the first behind a pause, has to
            be likelier than the blank.
        language_model: of a model inside, see ``onebest_training.fusion``, whatever the card is to say.
        wer_budget: word error rate in percent that int8 may add on ``Speech.utterances``.
        report: measure every component's int8 alone, for the card.
    """

    name: str
    chunk_frames: int = 16
    left_frames: int = 128
    right_frames: int = 0
    int8: bool = True
    notes: dict[str, Any] | None = None
    blank_penalty: float = 0.0
    pause_ms: int = 0
    start_margin: float = 0.0
    language_model: dict[str, Any] | None = None
    wer_budget: float = 0.1
    report: bool = False


class Speech(NamedTuple):
    """Real speech to check an export on.

    Attributes:
        features: [N, F, 80], to verify the graphs on besides synthetic ones.
        utterances: with their texts; where there are any, they decide what int8 leaves in float32.
    """

    features: FloatArray | None = None
    utterances: Sequence[Utterance] = ()


NO_SPEECH = Speech()


class Export(NamedTuple):
    """What came of an export: how far the graphs are from torch, and the choice of precision, if measured."""

    difference: Difference
    choice: Choice | None


def write_bundle(
    model: Transducer,
    tokens: TextEncoder,
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    speech: Speech = NO_SPEECH,
) -> Export:
    """Export, verify and write a bundle; return how far its graphs are from torch and what int8 changes.

    Args:
        model: the averaged model in evaluation mode.
        tokens: its vocabulary.
        checkpoint: where it comes from; its configuration goes into the card.
        folder: must not exist yet.
        options: latency, precision, name.
        speech: to verify and to measure on.

    Raises:
        DataError: no folder can be made to write into.
        ModelError: the folder exists, the vocabulary is another model's, or the graphs differ from torch;
            nothing is written then.
    """
    check_new(folder)
    if len(tokens) != model.config.vocabulary_size:
        raise ModelError(
            f"the vocabulary has {len(tokens)} tokens, the model {model.config.vocabulary_size}; nothing was "
            "written. Take the vocabulary that the model was trained with."
        )
    if model.config.predictor != "stateless":
        raise ModelError(
            f"the predictor is {model.config.predictor!r}, a bundle holds a stateless one; nothing was "
            'written. Train with model.predictor = "stateless".'
        )
    model = _penalize_blank(model, options.blank_penalty)
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        work = Path(name)
        paths = _export_float(model, work, options)
        write_tokens(tokens, work / "tokens.txt")
        difference, choice = _compare(model, paths, options, speech.features), None
        verify.check_float(difference)
        if options.int8:
            choice, in_float = _choose(work, options, speech)
            (work / "int8").mkdir()
            paths = quantize_graphs(work, work / "int8", in_float)
            for path in paths:
                optimize(path)
            difference = _compare(model, paths, options, speech.features)
            verify.check_int8(difference)
            paths.append(_export_streams(model, work, options, in_float))
        parts = [*PARTS, "streams"] if options.int8 else PARTS
        files = {"tokens": work / "tokens.txt", **dict(zip(parts, paths, strict=True))}
        _assemble(files, make_card(model.config, checkpoint, options, choice), work / "bundle")
        verify.check_streams(load_bundle(work / "bundle"))
        (work / "bundle").rename(folder)
    return Export(difference, choice)


def _choose(work: Path, options: ExportOptions, speech: Speech) -> tuple[Choice | None, list[Component]]:
    if not speech.utterances:
        return None, []
    return choose_precision(work, speech.utterances, options.wer_budget, options.report)


def _export_streams(
    model: Transducer, work: Path, options: ExportOptions, in_float: Collection[Component]
) -> Path:
    """Write the encoder for several streams beside the int8 one, whose weights it uses; return its path."""
    path, target = work / "streams.onnx", work / "int8" / "streams.int8.onnx"
    export_streams(model, path, options.chunk_frames, options.left_frames, options.right_frames)
    quantize(path, path, in_float=products_of("encoder", in_float))
    optimize(path)
    share_weights(path, target, work / "int8" / "encoder.int8.onnx")
    return target


def _assemble(files: dict[str, Path], card: dict[str, Any], folder: Path) -> None:
    """Make a bundle's folder of its files by part and its card, which gets their hashes."""
    folder.mkdir()
    copies = {part: Path(shutil.copy(path, folder / path.name)) for part, path in files.items()}
    write_card(folder, card, copies)


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
        verify.compare(model, paths, chunk, left, given, options.right_frames)
        for chunk, left in latencies
        for given in (synthetic, features)
        if given is not None
    )


def _export_float(model: Transducer, work: Path, options: ExportOptions) -> list[Path]:
    paths = [work / f"{part}.onnx" for part in PARTS]
    export_encoder(model, paths[0], options.chunk_frames, options.left_frames, options.right_frames)
    export_decoder(model, paths[1])
    export_joiner(model, paths[2])
    return paths


def write_tokens(tokens: TextEncoder, path: Path) -> None:
    """Write ``tokens.txt``: a line "symbol id" for every token."""
    path.write_text("".join(f"{piece} {index}\n" for index, piece in enumerate(tokens.pieces())), "utf-8")


def make_card(
    config: ModelConfig, checkpoint: Checkpoint, options: ExportOptions, choice: Choice | None = None
) -> dict[str, Any]:
    """Return the card of a bundle, but for its files."""
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
        "opset": OPSET,
        "optimized": options.int8,
        "name": options.name,
        "front_end": SPEC.to_dict(),
        "architecture": {
            **to_dict(config),
            "chunk_frames": options.chunk_frames,
            "left_frames": options.left_frames,
            "right_frames": options.right_frames,
            "precision": "int8" if options.int8 else "float32",
            "blank_penalty": options.blank_penalty,
            "pause_ms": options.pause_ms,
            "start_margin": options.start_margin,
            **({"language_model": options.language_model} if options.language_model else {}),
        },
        **({"int8": choice.to_dict()} if choice else {}),
        "training": {**training, **notes.get("training", {})},
        "wer": notes.get("wer", {}),
    }
