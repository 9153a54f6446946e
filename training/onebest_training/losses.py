"""What a stage minimises: CTC, the transducer, and every kind of distillation, from a teacher or from itself.

docs/distillation.md has the formulas. All losses are a label (sums over what they run through, divided by the
labels of the batch), but for those of encoder outputs and of the CTC head's posteriors, which are a frame.

Axis legend: B batch, R references (labels of the utterances, or their N-best), T encoder frames, U labels,
S nodes of a frame, D encoder width, J joiner width, V vocabulary, M nodes taken together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onebest.errors import ConfigError
from onebest_training.band import banded_planes, ctc_viterbi
from onebest_training.batches import Batch
from onebest_training.config import LOSSES, SELF_LOSSES, StageConfig
from onebest_training.distillation import path_divergence
from onebest_training.frozen_teacher import FrozenTeacher
from onebest_training.lattice import transducer_loss_from_planes
from onebest_training.lattice_distillation import (
    collapsed_divergence,
    lattice_divergence,
    logit_divergence,
    sequence_divergence,
)
from onebest_training.outputs import Outputs, labels_fit
from onebest_training.references import LatticeNodes, References, hypotheses_of, path_nodes, references_of
from onebest_training.transducer import BLANK, Transducer


def compute_losses(
    model: Transducer,
    batch: Batch,
    stage: StageConfig,
    rng: np.random.Generator,
    teacher: FrozenTeacher | None = None,
) -> dict[str, Tensor]:
    """Return the weighted sum under "loss" and each part under its name in ``LossConfig``.

    Under "left_out" stands how many utterances have too many labels for an alignment; they count for nothing.

    Args:
        model: in training mode.
        batch: on the model's device.
        stage: chooses chunk sizes, losses and their weights.
        rng: draws chunk size, left context and start position, for each view of the utterances its own.
        teacher: the one that ``stage.loss`` names, on the model's device.

    Raises:
        ConfigError: a loss needs targets or a teacher, and there are none.
    """
    draws = [_draw(model, stage, rng) for _ in range(batch.views)]
    views = zip(batch.features.chunk(batch.views), batch.frame_lengths.chunk(batch.views), draws, strict=True)
    with torch.set_grad_enabled(stage.trains != "heads"):
        encoded = torch.cat([model.encoder(features, lengths, *draw) for features, lengths, draw in views])
    chunk, _, start, _ = draws[0]
    outputs = Outputs(model, batch, stage.loss, teacher, chunk, start, encoded)
    wanted = [name for name in LOSSES if getattr(stage.loss, name) and (chunk or name not in SELF_LOSSES)]
    losses = {name: _LOSSES[name](outputs) for name in wanted}
    losses["loss"] = torch.stack([getattr(stage.loss, name) * value for name, value in losses.items()]).sum()
    losses["left_out"] = (~labels_fit(batch)).sum().float()
    return losses


def ctc_loss(outputs: Outputs) -> Tensor:
    """Return the CTC loss of the utterances whose labels fit."""
    batch = outputs.batch
    total = functional.ctc_loss(
        outputs.ctc_log_probs.transpose(0, 1),
        batch.labels,
        batch.frame_lengths,
        batch.label_lengths,
        BLANK,
        reduction="sum",
        zero_infinity=True,
    )
    return total / outputs.label_count


def transducer_loss_of(outputs: Outputs) -> Tensor:
    """Return the transducer loss on the whole lattice or on a band; of N-best their weighted mean."""
    config = outputs.config
    losses = _sequence_losses(outputs.nodes, outputs.planes, config.fastemit, config.delay_penalty)
    return _weighted(losses, outputs.references) / outputs.label_count


def consistency_loss(outputs: Outputs) -> Tensor:
    """Return the divergence of the CTC head on each view from that on the other (arXiv 2410.05101)."""
    log_probs, views = outputs.ctc_log_probs, outputs.batch.views
    if views != 2:
        raise ConfigError("loss.consistency needs batches with two views of each utterance.")
    other = log_probs.detach().roll(len(log_probs) // views, 0)
    divergence = (other.exp() * (other - log_probs)).sum(2)
    return divergence.where(_valid_frames(outputs), 0.0).sum() / outputs.label_count


def self_distillation_loss(outputs: Outputs) -> Tensor:
    """Return the mean squared error of the chunked output against that at full context."""
    error = (outputs.encoded - outputs.whole).square().mean(2)
    return error[_valid_frames(outputs)].mean()


def self_ctc_loss(outputs: Outputs) -> Tensor:
    """Return the mean divergence of the chunked CTC posteriors from those at full context."""
    valid, temperature = _valid_frames(outputs), outputs.config.temperature
    with torch.no_grad():
        whole = outputs.model.ctc(outputs.whole)[valid]
    return logit_divergence(outputs.ctc_log_probs[valid], whole, temperature=temperature).mean()


def self_joiner_loss(outputs: Outputs) -> Tensor:
    """Return the divergence of the chunked joiner from that at full context on the latter's CTC path."""
    model, references = outputs.model, references_of(outputs.batch)
    lengths = references.frame_lengths, references.label_lengths
    with torch.no_grad():
        log_probs = model.ctc(outputs.whole).float().log_softmax(2)
        path = ctc_viterbi(log_probs, references.labels, *lengths)
        utterance, frame, label = path_nodes(path, *lengths, log_probs.shape[1])
        reached = frame + outputs.shift < references.frame_lengths[utterance]
        utterance, frame, label = utterance[reached], frame[reached], label[reached]
    predicted = model.predictor(model.predictor.contexts(references.labels))[utterance, label]
    with torch.no_grad():
        whole = model.joiner(model.projection(outputs.whole)[utterance, frame], predicted)
    chunked = model.joiner(outputs.projected[utterance, frame + outputs.shift], predicted)
    divergence = logit_divergence(chunked, whole, temperature=outputs.config.temperature)
    return (divergence * references.weights[utterance]).sum() / outputs.label_count


def path_loss(outputs: Outputs) -> Tensor:
    """Return the divergence from the teacher at the nodes of its best paths."""
    model, config = outputs.model, outputs.config
    targets = outputs.targets("path").best(config.hypotheses)
    if not len(targets.utterances):
        return _nothing(outputs)
    divergences = path_divergence(
        model.joiner,
        outputs.projected,
        model.predictor(model.predictor.contexts(targets.references)),
        targets,
        outputs.batch.frame_lengths,
        shift=outputs.shift,
        window=config.window if outputs.chunk else 1,
        temperature=config.temperature,
    )
    return (divergences * targets.weights()).sum() / outputs.label_count


def collapsed_loss(outputs: Outputs) -> Tensor:
    """Return the divergence from the teacher over blank, next label and the rest at the lattice's nodes."""
    nodes, shift = outputs.nodes, outputs.shift
    with torch.no_grad():
        teacher = nodes.class_planes(outputs.teacher_logits)
    frame = torch.arange(outputs.encoded.shape[1], device=outputs.encoded.device)
    place = torch.arange(nodes.width, device=frame.device)
    inside = (frame >= shift) & (frame < _common_lengths(outputs)[:, None])
    counts = inside[:, :, None] & (place < nodes.node_lengths[:, None, None])
    temperature, continues = outputs.config.temperature, nodes.next_labels[1]
    losses = collapsed_divergence(outputs.classes, teacher, counts, continues, temperature=temperature)
    return _weighted(losses, outputs.references) / outputs.label_count


def lattice_loss(outputs: Outputs) -> Tensor:
    """Return the divergence from the teacher over the whole vocabulary at the lattice's nodes."""
    shift, references = outputs.shift, outputs.references
    losses = lattice_divergence(
        outputs.logits[:, shift:],
        outputs.teacher_logits[:, shift:],
        (_common_lengths(outputs) - shift).clamp(min=0),
        outputs.nodes.node_lengths,
        temperature=outputs.config.temperature,
    )
    return _weighted(losses, references) / outputs.label_count


def sequence_loss(outputs: Outputs) -> Tensor:
    """Return the divergence from the teacher over the N-best hypotheses of stored targets."""
    targets = outputs.targets("sequence")
    if not len(targets.utterances):
        return _nothing(outputs)
    references = hypotheses_of(outputs.batch, targets)
    nodes = outputs.nodes_of(references)
    losses = _sequence_losses(nodes, nodes.planes(nodes.logits(outputs.model, outputs.projected)))
    fits = references.label_lengths == targets.reference_lengths
    scores = -losses[fits], targets.scores[fits], references.utterances[fits]
    divergences = sequence_divergence(*scores, temperature=outputs.config.temperature)
    return divergences.sum() / outputs.label_count


def embedding_loss(outputs: Outputs) -> Tensor:
    """Return the mean squared error of the predicted embeddings, which are normalised frame by frame."""
    head, delay = outputs.model.embedding, outputs.config.embedding_delay
    if head is None:
        raise ConfigError("loss.embedding needs a head. Set model.embedding_width to the teacher's width.")
    teacher, lengths = outputs.embeddings
    if teacher.shape[2] != head.out_features:
        raise ConfigError(
            f"model.embedding_width is {head.out_features}, but the embeddings have {teacher.shape[2]}."
        )
    wanted = functional.layer_norm(teacher, teacher.shape[2:])[:, : max(0, teacher.shape[1] - delay)]
    error: Tensor = (head(outputs.encoded[:, delay:]).float() - wanted).square().mean(2)
    frame = torch.arange(wanted.shape[1], device=wanted.device)
    valid = _valid_frames(outputs)[:, delay:] & (frame < lengths[:, None])
    return error.where(valid, 0.0).sum() / valid.sum().clamp(min=1)


_LOSSES: dict[str, Callable[[Outputs], Tensor]] = {
    "ctc": ctc_loss,
    "transducer": transducer_loss_of,
    "consistency": consistency_loss,
    "self_distillation": self_distillation_loss,
    "self_ctc": self_ctc_loss,
    "self_joiner": self_joiner_loss,
    "path": path_loss,
    "collapsed": collapsed_loss,
    "lattice": lattice_loss,
    "sequence": sequence_loss,
    "embedding": embedding_loss,
}


def _draw(model: Transducer, stage: StageConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return frames a chunk, of left context, the position of the first frame and frames of right context."""
    chunk, left = int(rng.choice(stage.chunk_frames)), int(rng.choice(stage.left_frames))
    return chunk, left, int(rng.integers(len(model.encoder.positions))), stage.right_frames


def _sequence_losses(
    nodes: LatticeNodes, planes: tuple[Tensor, Tensor], fastemit: float = 0.0, delay_penalty: float = 0.0
) -> Tensor:
    """Return the negative log-likelihood of each reference, [R], over the paths through the nodes."""
    references = nodes.references
    lattice = banded_planes(*planes, nodes.starts, references.labels.shape[1])
    lengths = references.frame_lengths, references.label_lengths
    return transducer_loss_from_planes(*lattice, *lengths, fastemit=fastemit, delay_penalty=delay_penalty)


def _common_lengths(outputs: Outputs) -> Tensor:
    """Return how many student frames, from ``shift`` on, have one of the teacher's to learn from, [R]."""
    references = outputs.references
    taught = outputs.embeddings.lengths[references.utterances] + outputs.shift
    return torch.minimum(references.frame_lengths, taught)


def _weighted(losses: Tensor, references: References) -> Tensor:
    return (losses.where(references.weights > 0, 0.0) * references.weights).sum()


def _nothing(outputs: Outputs) -> Tensor:
    """Return 0, with a gradient of 0: no utterance of the batch has a target."""
    return outputs.projected[:0].sum()


def _valid_frames(outputs: Outputs) -> Tensor:
    """Return which frames hold speech and not padding, [B, T]."""
    frame = torch.arange(outputs.encoded.shape[1], device=outputs.encoded.device)
    return frame < outputs.batch.frame_lengths[:, None]
