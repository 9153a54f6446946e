"""Checkpoints: all that a run needs to go on as if it had never stopped, and the model it stands for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebest.errors import ConfigError, ModelError
from onebest_training.config import ModelConfig, TrainConfig
from onebest_training.speech import replace_file, writing
from onebest_training.strict import from_dict, to_dict
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import TextEncoder

FORMAT = 1
#: Behind the name of a matrix of 8 bits, that of its rows' scales.
SCALE = "@scale"


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step of a stage, the next batch of a pass.

    Attributes:
        step: optimiser steps done in all.
        stage, stage_step: index of the stage and steps done in it.
        number, batch: index of the pass over the data and of the next batch in it.
        seconds: audio seen, with padding.
        wall_seconds: time spent training.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    number: int = 0
    batch: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0

    def after_step(self, number: int, batch: int, seconds: float, wall_seconds: float) -> Position:
        """Return the position one step on, which took so many seconds of audio and of time."""
        return replace(
            self,
            step=self.step + 1,
            stage_step=self.stage_step + 1,
            number=number,
            batch=batch,
            seconds=self.seconds + seconds,
            wall_seconds=self.wall_seconds + wall_seconds,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content; ``average`` is the model to use, ``weights`` the one to train on.

    ``front_end`` is the digest of the pre-trained encoder whose stored frames the model reads, empty where
    there is none or it is not known.
    """

    config: dict[str, Any]
    tokens: bytes
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]
    position: Position
    front_end: str = ""


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; a kill at any moment leaves the old file or the new one, never a part.

    Raises:
        DataError: it cannot be written, for instance because the disk is full.
    """
    content = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    write({"format": FORMAT, **content, "position": to_dict(checkpoint.position)}, path)


def write(content: dict[str, Any], path: Path) -> None:
    """Write what ``torch.load`` reads; a kill at any moment leaves the old file or the new one, never a part.

    Raises:
        DataError: it cannot be written, for instance because the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)  # into a file it would call a full disk a RuntimeError
    with writing(path):
        replace_file(path, buffer.getbuffer())


def read(path: Path, kind: str, advice: str) -> Any:
    """Read what ``write`` wrote.

    Args:
        path: of the file.
        kind: what it should be, for the message.
        advice: what to do if it is not, for the message.

    Raises:
        ModelError: there is no such file, it is damaged, or of another kind. What torch says of it is about
            its own options, and is not passed on.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever pickle and zip make of a damaged file
        reason = (isinstance(error, OSError) and error.strerror) or "damaged, or another kind of file"
        raise ModelError(f"{path}: cannot be read as {kind} ({reason}). {advice}") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ModelError: there is none, or it is damaged or of another format.
    """
    content = read(path, "a checkpoint", "Name one that onebest train wrote.")
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ModelError(f"{path}: not a checkpoint of this version of onebest (format {FORMAT}).")
    try:
        position = from_dict(Position, content.pop("position"), "position")
        average = _restored(content.pop("average"))
        return Checkpoint(**content, average=average, position=position)
    except (KeyError, TypeError, ConfigError) as error:
        raise ModelError(f"{path}: not a whole checkpoint ({error}).") from error


def load_model(path: Path) -> tuple[Transducer, TextEncoder, Checkpoint]:
    """Return the averaged model of a checkpoint, ready for use, its vocabulary and the checkpoint.

    Raises:
        ModelError: as ``load`` does, or the weights do not fit the configuration beside them, or one is not
            finite.
    """
    checkpoint = load(path)
    try:
        model = Transducer(from_dict(ModelConfig, checkpoint.config["model"], "model"))
        model.load_state_dict({name: value.float() for name, value in checkpoint.average.items()})
    except (KeyError, RuntimeError, ConfigError) as error:
        raise ModelError(f"{path}: the weights do not fit the configuration ({misfit(error)}).") from error
    if name := next((name for name, value in model.state_dict().items() if not value.isfinite().all()), None):
        raise ModelError(f"{path}: {name} is not finite. Name a checkpoint that is not damaged.")
    return model.eval(), TextEncoder(checkpoint.tokens), checkpoint


def misfit(error: Exception) -> str:
    """Return the first of the weights that do not fit, which torch lists in lines under a heading."""
    heading, *weights = str(error).splitlines()
    first, *others = (weights or [heading])[0].strip().rstrip(".").split('", "')
    return first + '"' if others else first


def model_alone(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint without what only its run needs: enough to measure, export and start from."""
    return replace(checkpoint, weights={}, optimizer={})


def save_half(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint's averaged model alone, in half precision: enough to export it."""
    half = {name: value.half() for name, value in checkpoint.average.items()}
    save(replace(model_alone(checkpoint), average=half), path)


def save_int8(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint's averaged model alone: matrices in 8 bits with a scale a row, the rest in half.

    A weight is off by at most 1/254 of the largest of its row, as in a model exported in int8: enough to
    export such a one and to train on. ``load`` gives matrices of floats again.
    """
    kept: dict[str, Tensor] = {}
    for name, value in checkpoint.average.items():
        if value.ndim < 2 or not value.is_floating_point():
            kept[name] = value.half() if value.is_floating_point() else value
            continue
        largest = value.float().abs().amax(tuple(range(1, value.ndim)), keepdim=True)
        scale = (largest / 127).clamp_min(1e-12)
        kept |= {name: (value.float() / scale).round().to(torch.int8), name + SCALE: scale}
    save(replace(model_alone(checkpoint), average=kept), path)


def _restored(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as they were before ``save_int8``, but for its rounding."""
    return {
        name: value.float() * average[name + SCALE] if name + SCALE in average else value
        for name, value in average.items()
        if not name.endswith(SCALE)
    }


def average_models(paths: Sequence[Path]) -> Checkpoint:
    """Return the mean of checkpoints' averaged models, with the configuration and position of the last one.

    A head that predicts embeddings, which helps training alone, is left out unless all have it.

    Raises:
        ModelError: one cannot be read, or its model or vocabulary is not the last one's.
    """
    found = [load(path) for path in paths]
    models = [_model_at_work(checkpoint, path) for checkpoint, path in zip(found, paths, strict=True)]
    if len({checkpoint.config["model"].get("embedding_width", 0) for checkpoint in found}) > 1:
        found = [_without_embedding(checkpoint) for checkpoint in found]
    last = found[-1]
    for path, checkpoint, model in zip(paths, found, models, strict=True):
        shapes = [{n: value.shape for n, value in each.average.items()} for each in (checkpoint, last)]
        if checkpoint.tokens != last.tokens or shapes[0] != shapes[1] or model != models[-1]:
            raise ModelError(f"{path}: its model or vocabulary is not that of {paths[-1]}.")
    average = {
        name: torch.stack([checkpoint.average[name].double() for checkpoint in found]).mean(0).float()
        for name in last.average
    }
    return replace(model_alone(last), average=average)


def _model_at_work(checkpoint: Checkpoint, path: Path) -> ModelConfig:
    """Return the configuration of a checkpoint's model without what counts in training alone.

    Raises:
        ModelError: there is none, or it is of another version of onebest.
    """
    try:
        model = from_dict(ModelConfig, checkpoint.config["model"], "model")
    except (KeyError, ConfigError) as error:
        raise ModelError(f"{path}: not a whole checkpoint ({error}).") from error
    return replace(model, embedding_width=0, encoder=replace(model.encoder, dropout=0.0, layer_drop=0.0))


def of_embedding(name: str) -> bool:
    """Whether a weight is of the head for a teacher's embeddings, which runs of one model may have or not."""
    return name.startswith("embedding.")


def _without_embedding(checkpoint: Checkpoint) -> Checkpoint:
    model = {**checkpoint.config["model"], "embedding_width": 0}
    average = {name: value for name, value in checkpoint.average.items() if not of_embedding(name)}
    return replace(checkpoint, config={**checkpoint.config, "model": model}, average=average)


def run_config(checkpoint: Checkpoint, path: Path) -> TrainConfig:
    """Return the configuration of the run that wrote a checkpoint.

    Raises:
        ConfigError: it is of another version of onebest.
    """
    return from_dict(TrainConfig, checkpoint.config, f"{path}: config")
