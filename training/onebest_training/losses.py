"""What a stage minimises: CTC, the transducer on a band around the CTC head's path, and self-distillation.

Axis legend: B batch, T encoder frames, U labels, S nodes of a band, D encoder width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onebest_training.band import band_nodes, band_starts, banded_transducer_loss, ctc_viterbi
from onebest_training.batches import Batch
from onebest_training.config import LossConfig, StageConfig
from onebest_training.lattice import transducer_loss
from onebest_training.transducer import BLANK, Transducer


def compute_losses(
    model: Transducer, batch: Batch, stage: StageConfig, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Return the weighted sum under "loss" and each part, a label (or a value, for self-distillation).

    Under "left_out" stands how many utterances have too many labels for an alignment; they count for nothing.

    Args:
        model: in training mode.
        batch: on the model's device.
        stage: chooses chunk sizes, losses and their weights.
        rng: draws chunk size, left context and start position.
    """
    chunk, left = int(rng.choice(stage.chunk_frames)), int(rng.choice(stage.left_frames))
    start = int(rng.integers(len(model.encoder.positions)))
    with torch.set_grad_enabled(stage.trains != "heads"):
        encoded = model.encoder(batch.features, batch.frame_lengths, chunk, left, start)
    weights, losses, fits = stage.loss, {}, labels_fit(batch)
    if weights.ctc or weights.transducer:
        log_probs = model.ctc(encoded).float().log_softmax(2)
        if weights.ctc:
            losses["ctc"] = ctc_loss(log_probs, batch, fits)
        if weights.transducer:
            losses["transducer"] = transducer_loss_of(model, encoded, log_probs.detach(), batch, weights)
    if weights.self_distillation and chunk:
        with torch.no_grad():
            whole = model.encoder(batch.features, batch.frame_lengths, 0, 0, start)
        losses["self_distillation"] = self_distillation_loss(encoded, whole, batch.frame_lengths)
    losses["loss"] = torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
    losses["left_out"] = (~fits).sum().float()
    return losses


def labels_fit(batch: Batch) -> Tensor:
    """Return for which utterances an alignment with CTC's rules exists, [B].

    CTC needs a frame for each label and one more between equal neighbours. A band of two nodes or more needs
    less. The others would lose infinitely much, so they count for nothing.
    """
    labels, place = batch.labels, torch.arange(batch.labels.shape[1], device=batch.labels.device)
    repeated = (labels[:, 1:] == labels[:, :-1]) & (place[1:] < batch.label_lengths[:, None])
    return batch.label_lengths + repeated.sum(1) <= batch.frame_lengths


def ctc_loss(log_probs: Tensor, batch: Batch, fits: Tensor) -> Tensor:
    """Return the CTC loss a label of log-probabilities [B, T, V], over the utterances [B] that fit."""
    total = functional.ctc_loss(
        log_probs.transpose(0, 1),
        batch.labels,
        batch.frame_lengths,
        batch.label_lengths,
        BLANK,
        reduction="sum",
        zero_infinity=True,
    )
    return total / _label_count(batch, fits)


def transducer_loss_of(
    model: Transducer, encoded: Tensor, log_probs: Tensor, batch: Batch, loss: LossConfig
) -> Tensor:
    """Return the transducer loss a label, on the whole lattice or on a band around the CTC head's best path.

    Args:
        model: supplies projection, predictor and joiner.
        encoded: [B, T, D].
        log_probs: the CTC head's, without gradient, [B, T, V].
        batch: references and lengths.
        loss: names the band's width, FastEmit's scale and the delay penalty.
    """
    fits = labels_fit(batch)
    frame_lengths, label_lengths = batch.frame_lengths, batch.label_lengths * fits
    projected = model.projection(encoded)[:, :, None]
    predicted = model.predictor(model.predictor.contexts(batch.labels))
    if loss.band:
        path = ctc_viterbi(log_probs, batch.labels, frame_lengths, label_lengths)
        starts = band_starts(path, frame_lengths, label_lengths, loss.band, num_frames=encoded.shape[1])
        nodes = band_nodes(starts, loss.band, label_lengths)
        around = predicted[torch.arange(len(nodes), device=nodes.device)[:, None, None], nodes]
        losses = banded_transducer_loss(
            model.joiner(projected, around),
            batch.labels,
            starts,
            frame_lengths,
            label_lengths,
            fastemit=loss.fastemit,
            delay_penalty=loss.delay_penalty,
        )
    else:
        losses = transducer_loss(
            model.joiner(projected, predicted[:, None]),
            batch.labels,
            frame_lengths,
            label_lengths,
            fastemit=loss.fastemit,
            delay_penalty=loss.delay_penalty,
        )
    return losses.where(fits, 0.0).sum() / _label_count(batch, fits)


def self_distillation_loss(encoded: Tensor, whole: Tensor, frame_lengths: Tensor) -> Tensor:
    """Return the mean squared error of chunked output [B, T, D] against that at full context."""
    valid = torch.arange(encoded.shape[1], device=encoded.device) < frame_lengths[:, None]
    return (encoded - whole).square().mean(2)[valid].mean()


def _label_count(batch: Batch, fits: Tensor) -> Tensor:
    return (batch.label_lengths * fits).sum().clamp(min=1)
