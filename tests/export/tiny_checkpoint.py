"""A tiny transducer with random weights, saved as training saves one; it speaks every few frames."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onebest_training.checkpoint import Checkpoint, Position, save
from onebest_training.config import (
    BlockConfig,
    DataConfig,
    EncoderConfig,
    ModelConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import train_vocabulary

VOCABULARY = 40
ENCODER = EncoderConfig(
    width=32,
    heads=2,
    position_period=60,
    blocks=(BlockConfig(1, 64), BlockConfig(1, 48, 5), BlockConfig(1, 48, 3)),
)
MODEL = ModelConfig(
    encoder=ENCODER, vocabulary_size=VOCABULARY, context_size=2, predictor_width=16, joiner_width=24
)
TEXTS = ["the cat sat on the mat", "a dog's day at the sea", "they sing and then they hide"] * 20


def make_model(config: ModelConfig = MODEL, seed: int = 3) -> Transducer:
    """Return a model whose attention, convolutions and positions all matter to its tokens."""
    torch.manual_seed(seed)
    model = Transducer(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight += 0.2 * torch.randn_like(module.weight)
                module.bias += 0.2 * torch.randn_like(module.bias)
        for block in model.encoder.blocks:
            block.attention.qkv.weight *= 3
            block.attention.out.weight *= 2
        model.projection.weight *= 2
        model.predictor.projection.weight *= 2
        model.joiner.out.weight *= 6
        model.joiner.out.bias[0] += 4
    return model


def make_checkpoint(folder: Path, model: Transducer) -> Checkpoint:
    """Return the checkpoint of a run that ended with this model."""
    train_vocabulary(TEXTS, folder / "tokens.model", model.config.vocabulary_size)
    config = TrainConfig(
        model=model.config,
        data=DataConfig(train=(SourceConfig("store"),), dev="dev", tokens=str(folder / "tokens.model")),
        stages=(StageConfig("transducer", 120),),
    )
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    position = Position(step=120, seconds=7200.0, wall_seconds=1800.0)
    tokens = (folder / "tokens.model").read_bytes()
    return Checkpoint(asdict(config), tokens, weights, weights, {}, position)


def write_checkpoint(folder: Path, model: Transducer | None = None) -> Path:
    """Write the checkpoint and return its path."""
    path = folder / "checkpoint.pt"
    save(make_checkpoint(folder, model or make_model()), path)
    return path


def make_features(streams: int, frames: int, seed: int = 0) -> np.ndarray:
    """Return log-mel-like features [N, F, 80] that change all the time, each stream its own."""
    rng = np.random.default_rng(seed)
    slow = rng.normal(size=(streams, frames // 8 + 2, 80)).repeat(8, 1)[:, :frames] * 2
    return (slow + rng.normal(size=(streams, frames, 80)) - 7).astype(np.float32)
