"""Distillation over the nodes of a lattice, and over whole hypotheses.

The nodes are those of a whole lattice or of a band; a teacher's values stand at the same places.

Axis legend: B utterances, T frames, N nodes of a frame (U + 1, or fewer in a band), V vocabulary,
P hypotheses of all utterances, M nodes taken together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onebest.errors import DataError
from onebest_training.distillation import grouped_log_softmax
from onebest_training.lattice import IMPOSSIBLE
from onebest_training.planes import node_chunks, result_dtype

Planes = tuple[Tensor, Tensor, Tensor]
"""log P of blank, of the next label and of all other labels as one at each node, [B, T, N] each."""


def lattice_divergence(
    student: Tensor, teacher: Tensor, frame_lengths: Tensor, node_lengths: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL(P_T || P_S) over the whole vocabulary, summed over the nodes of each utterance's lattice.

    The log-softmax is never held in memory; of arrays as large as the logits there is the gradient alone.

    Args:
        student: logits, [B, T, N, V].
        teacher: logits, [B, T, N, V]; they get no gradient.
        frame_lengths: the frames that count, [B], 0 to T.
        node_lengths: the nodes that count, [B], 0 to N.
        temperature: both logits are divided by it.

    Returns:
        [B], float32 (float64 for float64 logits).

    Raises:
        DataError: the shapes differ.
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise DataError(
            "expected logits [B, T, N, V] of student and teacher at the same nodes, got "
            f"{list(student.shape)} and {list(teacher.shape)}"
        )
    extents = list(zip(frame_lengths.tolist(), node_lengths.tolist(), strict=True))
    found: Tensor = _LatticeDivergence.apply(student, teacher, extents, temperature)  # type: ignore[no-untyped-call]
    return found


def collapsed_divergence(
    student: Planes, teacher: Planes, counts: Tensor, continues: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL(P_T || P_S) over blank, the next label and all others as one, summed over each utterance's nodes.

    Panchapagesan et al. 2020 (arXiv 2011.06110). A node with no label left has blank and the others alone.

    Args:
        student: its planes; where there is no next label, those of the others are of all but the blank.
        teacher: its planes; they should have no gradient.
        counts: which nodes count, [B, T, N].
        continues: which nodes have a next label, [B, T, N].
        temperature: the three probabilities are raised to its inverse and normalised.

    Returns:
        [B], of the planes' dtype.
    """
    log_student = _collapse(student, continues, temperature)
    log_teacher = _collapse(teacher, continues, temperature)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(3)
    return divergence.where(counts, 0.0).sum((1, 2))


def sequence_divergence(
    student: Tensor, teacher: Tensor, utterances: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL between teacher and student over the hypotheses of each utterance, by their log-probabilities.

    L = sum over i of Q_T(i) (log Q_T(i) - log Q_S(i)) with Q = softmax of log P(y_i | x) over the N-best; an
    utterance with a single hypothesis gives 0. It needs no alignment, and so no shift.

    Args:
        student: log P(y_i | x) over all alignments, [P].
        teacher: its scores, [P].
        utterances: whose hypothesis each is, [P].
        temperature: both scores are divided by it.

    Returns:
        [P], the share of each hypothesis; sum them.
    """
    log_student = grouped_log_softmax(student / temperature, utterances)
    log_teacher = grouped_log_softmax(teacher.to(student.dtype) / temperature, utterances)
    return log_teacher.exp() * (log_teacher - log_student)


def logit_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(P_T || P_S) of logits [M, V] over the whole vocabulary, [M]."""
    dtype = result_dtype(student)
    log_student = (student / temperature).log_softmax(1, dtype=dtype)
    log_teacher = (teacher / temperature).log_softmax(1, dtype=dtype)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(1)


class _LatticeDivergence(torch.autograd.Function):
    """The gradient of KL with respect to logits is (P_S - P_T) / temperature, known with the value."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, extents: list[tuple[int, int]], temperature: float
    ) -> Tensor:
        dtype, grad = result_dtype(student), torch.zeros_like(student)
        total = student.new_zeros(len(student), dtype=dtype)
        for chunk in node_chunks(student, extents):
            log_student = torch.log_softmax(student[chunk] / temperature, -1, dtype=dtype)
            log_teacher = torch.log_softmax(teacher[chunk] / temperature, -1, dtype=dtype)
            probs = log_teacher.exp()
            total[chunk[0]] += (probs * (log_teacher - log_student)).sum()
            grad[chunk] = (log_student.exp_() - probs) / temperature
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total[:, None, None, None].to(grad.dtype), None, None, None


def _collapse(planes: Planes, continues: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of blank, next label and rest, [B, T, N, 3]."""
    blank, label, rest = planes
    classes = torch.stack((blank, label.where(continues, IMPOSSIBLE), rest), 3)
    return (classes / temperature).log_softmax(3)
