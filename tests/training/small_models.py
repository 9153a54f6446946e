"""A tiny random transducer, a batch for it, and its outputs, shared by the tests of losses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onebest_training.batches import Batch
from onebest_training.config import BlockConfig, EncoderConfig, LossConfig, ModelConfig, StageConfig
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING
from onebest_training.frozen_teacher import FrozenTeacher
from onebest_training.losses import compute_losses
from onebest_training.transducer import Transducer

VOCABULARY = 7
LENGTHS, LABELS = [12, 9, 7], [[3, 1, 1, 5], [2, 6], [4]]


def make_model(seed: int = 0, width: int = 16, embedding_width: int = 0) -> Transducer:
    torch.manual_seed(seed)
    encoder = EncoderConfig(width, 2, 60, (BlockConfig(1, 24), BlockConfig(1, 16, 3)))
    return Transducer(ModelConfig(encoder, VOCABULARY, 2, 8, 12, embedding_width=embedding_width))


def make_batch(lengths: list[int] = LENGTHS, labels: list[list[int]] = LABELS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(lengths), SUBSAMPLING * max(lengths) + PAD_FRAMES, 80, generator=generator)
    most = max(map(len, labels))
    padded = torch.tensor([row + [0] * (most - len(row)) for row in labels], dtype=torch.int64)
    counts = torch.tensor([len(row) for row in labels])
    return Batch(features, torch.tensor(lengths), padded, counts, [""] * len(lengths))


def compute(
    model: Transducer, batch: Batch, stage: StageConfig, teacher: FrozenTeacher | None = None
) -> dict[str, Tensor]:
    model.zero_grad()
    return compute_losses(model, batch, stage, np.random.default_rng(0), teacher)


def stage_with(chunk: int = 4, trains: str = "all", **loss: float | str) -> StageConfig:
    weights = LossConfig(**{"ctc": 0.0, **loss})
    return StageConfig("a", 1, trains, chunk_frames=(chunk,), left_frames=(8,), loss=weights)


def encode(model: Transducer, batch: Batch, chunk: int = 4) -> Tensor:
    """What the model encodes in a stage of ``stage_with``; the draws are those of ``compute``."""
    rng, encoded = np.random.default_rng(0), []
    for features, lengths in zip(*(part.chunk(batch.views) for part in batch[:2]), strict=True):
        rng.choice((chunk,)), rng.choice((8,))
        start = int(rng.integers(len(model.encoder.positions)))
        encoded.append(model.encoder(features, lengths, chunk, 8, start))
    return torch.cat(encoded)


def gradients(model: Transducer, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def predict(model: Transducer, labels: list[int]) -> Tensor:
    """The predictor's output after each label, [U+1, J], one call a label."""
    history, nodes = [-1, 0], []
    for label in [*labels, 0]:
        nodes.append(model.predictor(torch.tensor(history)))
        history = [history[1], label]
    return torch.stack(nodes)


def lattice_of(model: Transducer, encoded: Tensor, labels: list[int]) -> Tensor:
    """Logits [T, U+1, V] of one utterance, from its encoder output [T, D]."""
    return model.joiner.out(torch.tanh(model.projection(encoded)[:, None] + predict(model, labels)))
