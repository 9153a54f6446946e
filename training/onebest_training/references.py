"""The label sequences whose lattices a loss runs through, and the nodes of these lattices that it looks at.

Axis legend: B utterances, R references (an utterance has one, or its N-best), T frames, U labels, S nodes of
a frame, J joiner width, V vocabulary, M nodes taken together.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from onebest_training.band import band_labels, band_nodes, band_starts
from onebest_training.batches import Batch
from onebest_training.distillation import TargetBatch
from onebest_training.planes import arc_planes, class_planes
from onebest_training.transducer import Transducer


class References(NamedTuple):
    """Label sequences of a batch's utterances.

    Attributes:
        utterances: whose labels they are, [R].
        labels: [R, U], 0 behind them.
        label_lengths: [R]; 0 where the labels fit no alignment.
        frame_lengths: of the utterances, [R].
        weights: how much each counts, [R]; an utterance's add up to 1, but for those that do not fit.
    """

    utterances: Tensor
    labels: Tensor
    label_lengths: Tensor
    frame_lengths: Tensor
    weights: Tensor


def alignable(labels: Tensor, label_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """Return for which labels [B, U] an alignment with CTC's rules exists, [B].

    CTC needs a frame for each label and one more between equal neighbours. A band of two nodes or more needs
    less. The others would lose infinitely much, so they count for nothing.
    """
    place = torch.arange(labels.shape[1], device=labels.device)
    repeated = (labels[:, 1:] == labels[:, :-1]) & (place[1:] < label_lengths[:, None])
    return label_lengths + repeated.sum(1) <= frame_lengths


def references_of(batch: Batch) -> References:
    """Return the labels of each utterance."""
    every = torch.arange(len(batch.labels), device=batch.labels.device)
    return _references(batch, every, batch.labels, batch.label_lengths, torch.ones_like(every).float())


def hypotheses_of(batch: Batch, targets: TargetBatch) -> References:
    """Return the targets' hypotheses of each utterance, weighted by the softmax of their scores."""
    found = targets.utterances, targets.references, targets.reference_lengths
    return _references(batch, *found, targets.weights())


def with_hypotheses(batch: Batch, targets: TargetBatch) -> References:
    """Return the hypotheses of the utterances that have targets, then the labels of the others."""
    hypotheses, own = hypotheses_of(batch, targets), references_of(batch)
    others = ~torch.isin(own.utterances, targets.utterances)
    most = max(hypotheses.labels.shape[1], own.labels.shape[1])
    first, second = (
        part._replace(labels=pad(part.labels, (0, most - part.labels.shape[1]))) for part in (hypotheses, own)
    )
    return References(*(torch.cat((a, b[others])) for a, b in zip(first, second, strict=True)))


def _references(
    batch: Batch, utterances: Tensor, labels: Tensor, label_lengths: Tensor, weights: Tensor
) -> References:
    frame_lengths = batch.frame_lengths[utterances]
    fits = alignable(labels, label_lengths, frame_lengths)
    return References(utterances, labels, label_lengths * fits, frame_lengths, weights * fits)


def target_emissions(references: References, targets: TargetBatch) -> tuple[Tensor, Tensor]:
    """Return the frames [R, U] in which the targets' paths emit the labels, and for which references, [R].

    A path counts for a reference of the same utterance with the same labels.
    """
    size = references.labels.shape[1]
    if not len(targets.utterances):
        return torch.zeros_like(references.labels), torch.zeros_like(references.utterances).bool()
    width = min(size, targets.references.shape[1])
    past = torch.arange(width, device=references.labels.device) >= references.label_lengths[:, None]
    equal = references.labels[:, None, :width] == targets.references[:, :width]
    same = (equal | past[:, None]).all(2)
    same &= references.utterances[:, None] == targets.utterances
    same &= references.label_lengths[:, None] == targets.reference_lengths
    frames = pad(targets.emission_frames[:, :width], (0, size - width))
    return frames[same.int().argmax(1)], same.any(1)


class LatticeNodes:
    """The nodes of each reference's lattice at which joiners are evaluated: S of each frame, or all U + 1.

    Args:
        references: R of them.
        width: S, or 0 for the whole lattice.
        emission_frames: the path that the band follows, [R, U]; not used for the whole lattice.
        num_frames: T.
    """

    def __init__(self, references: References, width: int, emission_frames: Tensor | None, num_frames: int):
        self.references, self.is_band = references, emission_frames is not None
        if emission_frames is None:
            self.width = references.labels.shape[1] + 1
            self.starts = references.labels.new_zeros(len(references.labels), num_frames)
        else:
            lengths = references.frame_lengths, references.label_lengths
            self.width = width
            self.starts = band_starts(emission_frames, *lengths, width, num_frames=num_frames)

    @cached_property
    def next_labels(self) -> tuple[Tensor, Tensor]:
        """The label that comes next at each node, [R, T, S], and whether there is one."""
        return band_labels(self.references.labels, self.starts, self.width, self.references.label_lengths)

    @property
    def node_lengths(self) -> Tensor:
        """How many nodes of a frame count, [R]."""
        return (self.references.label_lengths + 1).clamp(max=self.width)

    def logits(self, model: Transducer, projected: Tensor) -> Tensor:
        """Return a model's logits [R, T, S, V] at the nodes, from its encoder's output [B, T, J]."""
        predicted = model.predictor(model.predictor.contexts(self.references.labels))
        if self.is_band:
            nodes = band_nodes(self.starts, self.width, self.references.label_lengths)
            around = predicted[torch.arange(len(nodes), device=nodes.device)[:, None, None], nodes]
        else:
            around = predicted[:, None]
        logits: Tensor = model.joiner(projected[self.references.utterances][:, :, None], around)
        return logits

    def planes(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return log P(blank) and log P(next label) at the nodes, [R, T, S] each."""
        lengths = self.references.frame_lengths, self.node_lengths
        return arc_planes(logits, self.next_labels[0], *lengths)

    def class_planes(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same, and the log-probability of all other labels as one, [R, T, S] each."""
        lengths = self.references.frame_lengths, self.node_lengths
        return class_planes(logits, self.next_labels[0], *lengths)


def path_nodes(
    emission_frames: Tensor, frame_lengths: Tensor, label_lengths: Tensor, num_frames: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return utterance, t and u, [M] each, of all nodes of the paths that emit labels [B, U] in these frames.

    Each utterance has T + U of them: every frame with the labels out after it, and every label's own node.
    """
    frame = torch.arange(num_frames, device=emission_frames.device).expand(len(emission_frames), -1)
    label = torch.arange(emission_frames.shape[1], device=emission_frames.device).expand_as(emission_frames)
    emits = label < label_lengths[:, None]
    out = ((emission_frames[:, None] <= frame[:, :, None]) & emits[:, None]).sum(2)
    counts = torch.cat((frame < frame_lengths[:, None], emits), 1)
    frames, labels = torch.cat((frame, emission_frames), 1), torch.cat((out, label), 1)
    utterance, _ = counts.nonzero(as_tuple=True)
    return utterance, frames[counts], labels[counts]
