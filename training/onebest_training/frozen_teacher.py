"""A teacher that runs beside the student: a model or an encoder of ours, frozen, at full context.

It reads the student's features, or its own of the same cuts where it stands on a pre-trained encoder.

Axis legend: B batch, T encoder frames (40 ms), D teacher's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from onebest.errors import ConfigError, ModelError
from onebest_training.batches import Batch, TeacherInput
from onebest_training.checkpoint import load_model, read
from onebest_training.config import BlockConfig, EncoderConfig, LossConfig, TrainConfig
from onebest_training.encoder import Encoder
from onebest_training.features import FeatureStore
from onebest_training.transducer import Transducer
from onebest_training.whisper import heads_of


class Embeddings(NamedTuple):
    """A teacher's encoder frames, float32 [B, T, D], as many as the student has; those that count, [B]."""

    frames: Tensor
    lengths: Tensor


class FrozenTeacher(NamedTuple):
    """An encoder, and the transducer that it belongs to if there is one; neither gets a gradient.

    ``front_end`` is the digest of the pre-trained encoder whose frames it reads, empty if it is not known.
    """

    encoder: Encoder
    transducer: Transducer | None
    front_end: str = ""

    @torch.no_grad()
    def encode(self, batch: Batch) -> Embeddings:
        """Encode a batch at full context.

        Raises:
            ConfigError: the batch lacks what a pre-trained encoder reads.
        """
        if not self.encoder.config.pretrained:
            encoded = self.encoder(batch.features, batch.frame_lengths, 0, 0)
            return Embeddings(encoded.float(), batch.frame_lengths)
        own = stored_input(batch)
        return align(self.encoder(*own, 0, 0).float(), own.frame_lengths, batch)

    def check(self, loss: LossConfig, embedding_width: int, stores: Sequence[str]) -> None:
        """Make sure that the losses of a stage find what they need.

        Raises:
            ConfigError: a loss on posteriors, but this is an encoder alone; another embedding width; stores
                without what the encoder reads.
        """
        if self.encoder.config.pretrained:
            if not all(stores):
                raise ConfigError(
                    f"{loss.teacher} reads {self.encoder.config.pretrained}. Make stores of that with: "
                    "onebest prepare --front-end, and name them as teacher_store of each source."
                )
            for store in stores:
                FeatureStore(Path(store)).check_front_end(self.encoder.config, self.front_end)
        if (loss.collapsed or loss.lattice) and self.transducer is None:
            raise ConfigError(
                f"{loss.teacher} is an encoder; collapsed and lattice need a transducer. Name a checkpoint."
            )
        width = self.encoder.config.width
        if loss.embedding and embedding_width != width:
            raise ConfigError(
                f"model.embedding_width is {embedding_width}, but {loss.teacher} has embeddings of {width}."
            )


def stored_input(batch: Batch) -> TeacherInput:
    """Return what a teacher reads of a batch.

    Raises:
        ConfigError: there is nothing.
    """
    if batch.teacher is None:
        raise ConfigError(
            "a teacher reads other features than the student. Name a teacher_store of them at the sources."
        )
    return batch.teacher


def align(frames: Tensor, lengths: Tensor, batch: Batch) -> Embeddings:
    """Give frames [B, T', D] as many as the batch's student has; what is past either end does not count."""
    num_frames = int(batch.frame_lengths.max())
    padded = functional.pad(frames, (0, 0, 0, num_frames - frames.shape[1]))
    return Embeddings(padded, torch.minimum(lengths, batch.frame_lengths))


def load_teacher(path: Path, tokens_model: bytes, device: torch.device) -> FrozenTeacher:
    """Read a checkpoint of a model, or the weights of an encoder as ``onebest convert-encoder`` writes them.

    Args:
        path: of the file.
        tokens_model: the student's vocabulary, which a transducer must share.
        device: to run on.

    Raises:
        ModelError: the file cannot be read, or is neither.
        ConfigError: a transducer of another vocabulary.
    """
    content = _read(path)
    if "format" not in content:
        encoder = _encoder_of(content, path)
        teacher = FrozenTeacher(encoder.to(device).eval().requires_grad_(False), None)
    else:
        model, _, checkpoint = load_model(path)
        if checkpoint.tokens != tokens_model:
            raise ConfigError(f"{path} has another vocabulary. Train the student with the teacher's tokens.")
        model = model.to(device).requires_grad_(False)
        teacher = FrozenTeacher(model.encoder, model, checkpoint.front_end)
    return teacher


def _read(path: Path) -> dict[str, Any]:
    content = read(path, "a teacher", "Name a checkpoint, or what onebest convert-encoder wrote.")
    if not isinstance(content, dict):
        raise ModelError(f"{path}: neither a checkpoint nor the weights of an encoder.")
    return content


def _encoder_of(weights: dict[str, Tensor], path: Path) -> Encoder:
    """Build the encoder that these weights belong to; all sizes but the heads' are in their shapes."""
    blocks: list[BlockConfig] = []
    try:
        while (prefix := f"blocks.{len(blocks)}") + ".feed_forward_in.weight" in weights:
            kernel = weights.get(f"{prefix}.convolution.depthwise.weight")
            inner = len(weights[f"{prefix}.feed_forward_in.weight"])
            blocks.append(BlockConfig(1, inner, 0 if kernel is None else kernel.shape[2]))
        width = len(weights["norm.weight"])
        encoder = Encoder(EncoderConfig(width, heads_of(width), blocks=tuple(blocks)))
        encoder.load_state_dict({name: value.float() for name, value in weights.items()})
    except (KeyError, AttributeError, TypeError, RuntimeError, ConfigError) as error:
        raise ModelError(f"{path}: not the weights of a whole encoder ({error}).") from error
    return encoder


def load_teachers(config: TrainConfig, tokens_model: bytes, device: torch.device) -> dict[str, FrozenTeacher]:
    """Read every teacher that a run's stages name, by its path, and check that it serves their losses.

    Raises:
        ModelError: a teacher cannot be read.
        ConfigError: a teacher does not fit a stage, or a student has no head for embeddings.
    """
    teachers: dict[str, FrozenTeacher] = {}
    for loss in (stage.loss for stage in config.stages if stage.loss.teacher):
        if loss.teacher not in teachers:
            teachers[loss.teacher] = load_teacher(Path(loss.teacher), tokens_model, device)
        stores = [source.teacher_store for source in config.data.train]
        teachers[loss.teacher].check(loss, config.model.embedding_width, stores)
    return teachers
