"""Distillation on a teacher's best paths: stored targets as tensors, and the divergence at the paths' nodes.

Of the student's lattice only the nodes on the path are evaluated: T + U of T x (U + 1).

Axis legend: B utterances of a batch, P paths (an utterance may have several, or none), N nodes of a path,
U labels, T student frames, J joiner width, V vocabulary, K classes kept at a node, M nodes taken together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from onebest.errors import DataError
from onebest.frontend import FloatArray
from onebest_training.lattice import IMPOSSIBLE
from onebest_training.planes import result_dtype
from onebest_training.targets import BLANK, IntArray, TeacherPath

Join = Callable[[Tensor, Tensor], Tensor]
"""A joiner: two tensors [M, J] to logits [M, V]."""


class TargetBatch(NamedTuple):
    """The paths of a batch, padded to one length.

    Attributes:
        utterances: the utterance of each path, its row in the batch, [P].
        ranks: place among the hypotheses of its utterance, 0 for the best, [P].
        scores: log-probability of the hypothesis, float32 [P].
        lengths: nodes of each path, [P].
        frames, labels: t and u of each node, [P, N].
        top_ids: the classes that the teacher finds most likely, [P, N, K].
        top_log_probs: their log-probabilities, float32 [P, N, K].
        rest_log_probs: log of the mass of all other classes, float32 [P, N].
        references: the labels of each path, [P, U], 0 behind them.
        reference_lengths: [P].
        emission_frames: t of each label, [P, U].
    """

    utterances: Tensor
    ranks: Tensor
    scores: Tensor
    lengths: Tensor
    frames: Tensor
    labels: Tensor
    top_ids: Tensor
    top_log_probs: Tensor
    rest_log_probs: Tensor
    references: Tensor
    reference_lengths: Tensor
    emission_frames: Tensor

    def to(self, device: torch.device) -> TargetBatch:
        """Return the paths on a device."""
        return TargetBatch(*(part.to(device) for part in self))

    def best(self, count: int) -> TargetBatch:
        """Return the paths of the best hypotheses, at most ``count`` of an utterance."""
        chosen = self.ranks < count
        return TargetBatch(*(part[chosen] for part in self))

    def weights(self) -> Tensor:
        """Return the softmax of the scores over the hypotheses of each utterance, float32 [P]."""
        return grouped_log_softmax(self.scores, self.utterances).exp()


def grouped_log_softmax(scores: Tensor, groups: Tensor) -> Tensor:
    """Return the log-softmax of scores [P] within each group; ``groups`` [P] numbers them from 0."""
    count = int(groups.max()) + 1 if len(groups) else 0
    highest = (
        scores.detach().new_full((count,), IMPOSSIBLE).scatter_reduce(0, groups, scores.detach(), "amax")
    )
    shifted = scores - highest[groups]
    total = shifted.new_zeros(count).index_add(0, groups, shifted.exp())
    return shifted - total.log()[groups]


def collate_paths(hypotheses: Sequence[Sequence[TeacherPath]]) -> TargetBatch:
    """Put the paths of a batch together; of paths with more classes than others have, the first are kept.

    Args:
        hypotheses: of each utterance, the best first; none for one without a target.
    """
    rows = [(row, rank, path) for row, paths in enumerate(hypotheses) for rank, path in enumerate(paths)]
    paths = [path for _, _, path in rows]
    kept = min((path.top_ids.shape[1] for path in paths), default=0)
    classes = [_keep_classes(path, kept) for path in paths]
    emits = [path.tokens != BLANK for path in paths]
    references = [path.tokens[emitted] for path, emitted in zip(paths, emits, strict=True)]
    return TargetBatch(
        torch.tensor([row for row, _, _ in rows], dtype=torch.int64),
        torch.tensor([rank for _, rank, _ in rows], dtype=torch.int64),
        torch.tensor([path.score for path in paths], dtype=torch.float32),
        torch.tensor([len(path.frames) for path in paths], dtype=torch.int64),
        _stack([path.frames for path in paths]),
        _stack([path.labels for path in paths]),
        _stack([path.top_ids[:, :kept] for path in paths], (kept,)),
        _stack([top for top, _ in classes], (kept,)).float(),
        _stack([rest for _, rest in classes]).float(),
        _stack(references),
        torch.tensor([len(reference) for reference in references], dtype=torch.int64),
        _stack([path.frames[emitted] for path, emitted in zip(paths, emits, strict=True)]),
    )


def _keep_classes(path: TeacherPath, kept: int) -> tuple[FloatArray, FloatArray]:
    """Return the log-probabilities [N, K] of the first classes, and those [N] of the rest with the others."""
    top = path.top_log_probs.astype(np.float32)
    dropped = np.concatenate((path.rest_log_prob.astype(np.float32)[:, None], top[:, kept:]), 1)
    return top[:, :kept], np.logaddexp.reduce(dropped, 1)


def _stack(arrays: Sequence[IntArray | FloatArray], inner: tuple[int, ...] = ()) -> Tensor:
    """Stack arrays [N, *inner] of several lengths, zeros behind each; integers become int64."""
    if not arrays:
        return torch.zeros((0, 0, *inner), dtype=torch.int64)
    stacked = np.zeros((len(arrays), max(map(len, arrays)), *inner), arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    tensor = torch.from_numpy(stacked)
    return tensor if tensor.is_floating_point() else tensor.long()


def path_divergence(
    join: Join,
    projected: Tensor,
    predicted: Tensor,
    targets: TargetBatch,
    frame_lengths: Tensor,
    *,
    shift: int = 0,
    window: int = 1,
    temperature: float = 1.0,
) -> Tensor:
    """Divergence of the student from the teacher, summed over the nodes of each path.

    L = sum over (t, u) in the path of the least KL(P_T(. | t, u) || P_S(. | t + s, u)) over the shifts s from
    ``shift - window + 1`` to ``shift`` that lead to a frame of the student's; a node without such a shift
    counts for nothing. With a window of 1 that is Yang, Li and Woodland 2022 (arXiv 2110.03334): shift 0 for
    a student with full context, above 0 for a streaming one, which emits later than its teacher.

    Args:
        join: the student's joiner; it is called once a shift.
        projected: the student's encoder output, [B, T, J].
        predicted: the student's predictor after each label of each path's reference, [P, U+1, J].
        targets: the paths.
        frame_lengths: valid student frames, [B]; they need not be as many as the teacher's.
        shift: tau, in frames of 40 ms.
        window: number of shifts, at least 1.
        temperature: as in ``node_divergence``.

    Returns:
        [P], float32 (float64 for float64 inputs).

    Raises:
        DataError: the targets name classes beyond the student's vocabulary.
    """
    shifts = range(shift - window + 1, shift + 1)
    place = torch.arange(targets.frames.shape[1], device=targets.frames.device)
    ends = frame_lengths[targets.utterances][:, None]
    reachable = (targets.frames + shifts[0] < ends) & (targets.frames + shift >= 0)
    path, node = (reachable & (place < targets.lengths[:, None])).nonzero(as_tuple=True)
    utterance, after = targets.utterances[path], predicted[path, targets.labels[path, node]]
    kept = targets.top_ids[path, node], targets.top_log_probs[path, node], targets.rest_log_probs[path, node]
    divergences = []
    for step in shifts:
        frame = targets.frames[path, node] + step
        inside = (frame >= 0) & (frame < frame_lengths[utterance])
        logits = join(projected[utterance, frame.clamp(0, projected.shape[1] - 1)], after)
        divergence = node_divergence(logits, *kept, temperature=temperature)
        divergences.append(divergence.masked_fill(~inside, torch.inf))
    least = torch.stack(divergences).amin(0) if window > 1 else divergences[0]
    return least.new_zeros(len(targets.utterances)).index_add(0, path, least)


def node_divergence(
    logits: Tensor,
    top_ids: Tensor,
    top_log_probs: Tensor,
    rest_log_probs: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """KL(P_T || P_S) over K + 1 classes: those that the teacher's targets name, and all others as one.

    Both distributions are first brought to these classes, then raised to the power 1 / temperature and
    normalised, so the divergence is zero where the student has the teacher's probabilities.

    Args:
        logits: the student's, unnormalised, [M, V].
        top_ids: [M, K].
        top_log_probs: [M, K].
        rest_log_probs: [M].
        temperature: above 0.

    Returns:
        [M], float32 (float64 for float64 logits).

    Raises:
        DataError: a class is beyond the vocabulary.
    """
    vocabulary, kept = logits.shape[1], top_ids.shape[1]
    if top_ids.numel() and int(top_ids.max()) >= vocabulary:
        raise DataError(
            f"the targets name class {int(top_ids.max())}, but the student's vocabulary has {vocabulary}; "
            "make targets with a teacher of the same vocabulary"
        )
    student = logits.log_softmax(1, dtype=result_dtype(logits))
    named, teacher = student.gather(1, top_ids), top_log_probs.to(student.dtype)
    if kept < vocabulary:
        others = student.scatter(1, top_ids, IMPOSSIBLE).logsumexp(1, keepdim=True)
        named = torch.cat((named, others), 1)
        teacher = torch.cat((teacher, rest_log_probs.to(student.dtype)[:, None]), 1)
    probs = (teacher / temperature).softmax(1)
    cross_entropy: Tensor = -(probs * (named / temperature).log_softmax(1)).sum(1)
    return cross_entropy + torch.xlogy(probs, probs).sum(1)
