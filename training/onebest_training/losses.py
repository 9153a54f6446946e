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
from onebest_training.config import StageConfig
from onebest_training.lattice import transducer_loss
from onebest_training.transducer import BLANK, Transducer


def compute_losses(
    model: Transducer, batch: Batch, stage: StageConfig, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Return the weighted sum under "loss" and each part, a label (or a frame, for self-distillation).

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
    weights, losses = stage.loss, {}
    log_probs = model.ctc(encoded).float().log_softmax(2) if weights.ctc or weights.transducer else None
    if weights.ctc and log_probs is not None:
        losses["ctc"] = ctc_loss(log_probs, batch)
    if weights.transducer and log_probs is not None:
        losses["transducer"] = transducer_term(model, encoded, log_probs.detach(), batch, stage)
    if weights.self_distillation and chunk:
        with torch.no_grad():
            whole = model.encoder(batch.features, batch.frame_lengths, 0, 0, start)
        valid = torch.arange(encoded.shape[1], device=encoded.device) < batch.frame_lengths[:, None]
        losses["self_distillation"] = (encoded - whole).square().mean(2)[valid].mean()
    losses["loss"] = torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
    return losses


def ctc_loss(log_probs: Tensor, batch: Batch) -> Tensor:
    """Return the CTC loss a label of log-probabilities [B, T, V]."""
    total = functional.ctc_loss(
        log_probs.transpose(0, 1),
        batch.labels,
        batch.frame_lengths,
        batch.label_lengths,
        BLANK,
        reduction="sum",
        zero_infinity=True,
    )
    return total / batch.label_lengths.sum()


def transducer_term(
    model: Transducer, encoded: Tensor, log_probs: Tensor, batch: Batch, stage: StageConfig
) -> Tensor:
    """Return the transducer loss a label, on the whole lattice or on a band around the CTC head's best path.

    Args:
        model: supplies projection, predictor and joiner.
        encoded: [B, T, D].
        log_probs: the CTC head's, without gradient, [B, T, V].
        batch: references and lengths.
        stage: its loss names the band's width, FastEmit's scale and the delay penalty.
    """
    weights = stage.loss
    options = {"fastemit": weights.fastemit, "delay_penalty": weights.delay_penalty}
    projected = model.projection(encoded)[:, :, None]
    predicted = model.predictor(model.predictor.contexts(batch.labels))
    lengths = (batch.frame_lengths, batch.label_lengths)
    if not weights.band:
        logits = model.joiner(projected, predicted[:, None])
        return transducer_loss(logits, batch.labels, *lengths, **options).sum() / batch.label_lengths.sum()
    path = ctc_viterbi(log_probs, batch.labels, *lengths)
    starts = band_starts(path, *lengths, weights.band, num_frames=encoded.shape[1])
    nodes = band_nodes(starts, weights.band, batch.label_lengths)
    around = predicted[torch.arange(len(nodes), device=nodes.device)[:, None, None], nodes]
    losses = banded_transducer_loss(
        model.joiner(projected, around), batch.labels, starts, *lengths, **options
    )
    return losses.sum() / batch.label_lengths.sum()
