"""A smaller model cut from a trained one, for a student to start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from onebest.errors import ConfigError
from onebest_training.checkpoint import Checkpoint, load_model, model_alone
from onebest_training.config import BlockConfig
from onebest_training.strict import to_dict


def prune(path: Path, keep: float) -> Checkpoint:
    """Return a checkpoint's averaged model with a part of the units of each feed-forward layer.

    The units stay whose weights in and out have the largest product of norms, in their order: |a| |b| bounds
    how much b GELU(a x) can move the residual stream.

    Args:
        path: of the checkpoint.
        keep: the part of units that stay, above 0 and at most 1; at least one a layer does.

    Raises:
        ConfigError: such a part cannot be kept.
        ModelError: the checkpoint cannot be read.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"{keep} of the units cannot be kept: name a part above 0 and at most 1.")
    model, _, checkpoint = load_model(path)
    encoder = model.encoder.config
    runs = tuple(replace(run, feed_forward=max(1, round(run.feed_forward * keep))) for run in encoder.blocks)
    average = dict(checkpoint.average)
    for index, run in enumerate(each for each in runs for _ in range(each.count)):
        _keep_units(average, f"encoder.blocks.{index}.", run)
    smaller = {**checkpoint.config["model"], "encoder": to_dict(replace(encoder, blocks=runs))}
    config = {**checkpoint.config, "model": smaller}
    return replace(model_alone(checkpoint), config=config, average=average)


def _keep_units(weights: dict[str, Tensor], block: str, run: BlockConfig) -> None:
    inwards, outwards = f"{block}feed_forward_in.", f"{block}feed_forward_out."
    size = weights[f"{inwards}weight"].float().norm(dim=1) * weights[f"{outwards}weight"].float().norm(dim=0)
    units = size.topk(run.feed_forward).indices.sort().values
    weights[f"{inwards}weight"] = weights[f"{inwards}weight"][units]
    weights[f"{inwards}bias"] = weights[f"{inwards}bias"][units]
    weights[f"{outwards}weight"] = weights[f"{outwards}weight"][:, units]
