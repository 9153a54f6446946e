"""The transducer loss: the sum over all alignments, its exact gradient, the occupancies and the best path.

A node (t, u) of the lattice says "frame t is being read and u labels are out". Two arcs leave it: blank
goes to (t+1, u), and label u+1 goes to (t, u+1). Every path ends with the blank of (T-1, U).

The nodes with the same t+u depend only on those with t+u-1, so one loop over these diagonals serves the
whole batch. The shorter loop over frames subtracts running sums of label scores; this one never does, so arcs
that are ruled out by -1e30 or -inf cost no precision elsewhere, and their gradient is exactly zero. The
recursion runs in float64: on arrays this small that takes no longer than float32.

Axis legend: B utterances, T frames, U labels, V vocabulary, D diagonals (T + U), N nodes of a frame (U + 1),
K kinds of arc (label, blank).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from onebest.errors import DataError
from onebest_training.planes import arc_planes, check_labels, check_lengths, result_dtype

IMPOSSIBLE = -1e30
"""The log-probability of an arc that no path may take; finite, so that no difference is ever NaN."""


def transducer_loss(
    logits: Tensor,
    labels: Tensor,
    frame_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of each utterance's labels, from unnormalised joiner outputs.

    Args:
        logits: ``[B, T, U+1, V]``, any float dtype; the gradient has the same.
        labels: ``[B, U]``, integers; those from ``label_lengths`` on are ignored.
        frame_lengths: ``[B]``, 1 to T.
        label_lengths: ``[B]``, 0 to U.
        blank: index of blank in V.
        fastemit: as in ``transducer_loss_from_planes``.
        delay_penalty: as in ``transducer_loss_from_planes``.

    Returns:
        ``[B]``, float32 (float64 for float64 logits).

    Raises:
        DataError: a shape, a length or a label that does not fit.
    """
    if logits.ndim != 4 or labels.ndim != 2 or logits.shape[2] != labels.shape[1] + 1:
        raise DataError(
            "expected logits [B, T, U+1, V] and labels [B, U], got "
            f"{list(logits.shape)} and {list(labels.shape)}; pass one node more than there are labels"
        )
    check_lengths("label_lengths", label_lengths, len(labels), 0, labels.shape[1])
    labels = check_labels(labels, label_lengths, logits.shape[3], blank)
    next_labels = pad(labels, (0, 1), value=blank)[:, None].expand(logits.shape[:3])
    blank_plane, label_plane = arc_planes(logits, next_labels, frame_lengths, label_lengths + 1, blank=blank)
    planes, lengths = (blank_plane, label_plane[:, :, :-1]), (frame_lengths, label_lengths)
    return transducer_loss_from_planes(*planes, *lengths, fastemit=fastemit, delay_penalty=delay_penalty)


def transducer_loss_from_planes(
    blank: Tensor,
    label: Tensor,
    frame_lengths: Tensor,
    label_lengths: Tensor,
    *,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of each utterance, from the log-probabilities of the lattice's arcs.

    Args:
        blank: ``[B, T, U+1]``, log P(blank) at each node.
        label: ``[B, T, U]``, log P(next label) at each node. Both may hold -inf or ``IMPOSSIBLE``.
        frame_lengths: ``[B]``, 1 to T.
        label_lengths: ``[B]``, 0 to U.
        fastemit: the gradients of label arcs are multiplied by 1 + this (Yu et al. 2021, "FastEmit").
        delay_penalty: c; label log-probabilities of frame t gain c ((T_b - 1) / 2 - t), so that early labels
            pay (Kang et al. 2022, "Delay-penalized transducer"). The loss includes it.

    Returns:
        ``[B]``, float32 (float64 for float64 planes); inf, with zero gradient, where no path is possible.

    Raises:
        DataError: a shape or a length that does not fit.
    """
    _check_planes(blank, label, frame_lengths, label_lengths)
    if delay_penalty:
        frame = torch.arange(blank.shape[1], device=blank.device)
        lead = (frame_lengths.to(blank.device)[:, None] - 1) / 2 - frame
        label = label + delay_penalty * lead[:, :, None].to(label.dtype)
    loss: Tensor = _LossFromPlanes.apply(blank, label, frame_lengths, label_lengths, fastemit)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def occupancies(
    blank: Tensor, label: Tensor, frame_lengths: Tensor, label_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior probability of each arc of the lattice: the shares of all paths that take it.

    Args and errors are those of ``transducer_loss_from_planes``.

    Returns:
        blank ``[B, T, U+1]`` and label ``[B, T, U]``, float64; their sum is the posterior of the node.
    """
    _check_planes(blank, label, frame_lengths, label_lengths)
    scores = _diagonals(blank, label, frame_lengths, label_lengths)
    _run_forward(scores, torch.logaddexp)
    return _run_backward(scores.softmax(2), frame_lengths, label_lengths, blank.shape[1])


@torch.no_grad()
def viterbi(blank: Tensor, label: Tensor, frame_lengths: Tensor, label_lengths: Tensor) -> Tensor:
    """The most probable path, which always ends with the blank of the last frame.

    Args and errors are those of ``transducer_loss_from_planes``.

    Returns:
        ``[B, U]``, int64: the frame that emits each label, never falling; 0 from ``label_lengths`` on.
    """
    _check_planes(blank, label, frame_lengths, label_lengths)
    scores = _diagonals(blank, label, frame_lengths, label_lengths)
    _run_forward(scores, torch.maximum)
    label_wins = scores[:, :, 0] > scores[:, :, 1]
    winners = torch.stack([label_wins, ~label_wins], 2).to(scores.dtype)
    _, emitted = _run_backward(winners, frame_lengths, label_lengths, blank.shape[1])
    return emitted.argmax(1)


class _LossFromPlanes(torch.autograd.Function):
    """The sum over all paths; its gradient is minus the share of the paths that take each arc."""

    @staticmethod
    def forward(
        ctx: Any, blank: Tensor, label: Tensor, frame_lengths: Tensor, label_lengths: Tensor, fastemit: float
    ) -> Tensor:
        scores = _diagonals(blank, label, frame_lengths, label_lengths)
        last = _run_forward(scores, torch.logaddexp)
        log_likelihood = last.gather(1, label_lengths.to(last.device)[:, None])[:, 0]
        possible = log_likelihood > IMPOSSIBLE / 2
        ctx.save_for_backward(scores, frame_lengths, label_lengths, possible | log_likelihood.isnan())
        ctx.fastemit, ctx.num_frames, ctx.dtypes = fastemit, blank.shape[1], (blank.dtype, label.dtype)
        loss = torch.where(log_likelihood <= IMPOSSIBLE / 2, torch.inf, -log_likelihood)
        return loss.to(result_dtype(blank))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        scores, frame_lengths, label_lengths, possible = ctx.saved_tensors
        blank, label = _run_backward(scores.softmax(2), frame_lengths, label_lengths, ctx.num_frames)
        scale = -(grad_loss * possible).to(blank.dtype)[:, None, None]
        grad_blank = (blank * scale).to(ctx.dtypes[0])
        grad_label = (label * (scale * (1 + ctx.fastemit))).to(ctx.dtypes[1])
        return grad_blank, grad_label, None, None, None


def _diagonals(blank: Tensor, label: Tensor, frame_lengths: Tensor, label_lengths: Tensor) -> Tensor:
    """Lay both planes out by diagonal: ``[D, B, K, N]``, the arcs INTO node u of diagonal d+1, float64.

    From its own end an utterance waits at u = U_b at no cost, so that all of them end on the last diagonal.
    """
    num_utterances, num_frames, num_nodes = blank.shape
    frame_lengths, label_lengths = frame_lengths.to(blank.device), label_lengths.to(blank.device)
    size = (num_frames + num_nodes - 1, num_utterances, 2, num_nodes)
    scores = torch.full(size, IMPOSSIBLE, dtype=torch.float64, device=blank.device)
    blank_view, label_view = _planes_of(scores, num_frames)
    frame = torch.arange(num_frames, device=blank.device)[:, None]
    node = torch.arange(num_nodes, device=blank.device)
    outside = (frame >= frame_lengths[:, None, None]) | (node > label_lengths[:, None, None])
    blank_view.copy_(blank.masked_fill(outside, IMPOSSIBLE).clamp(min=IMPOSSIBLE))
    label_view.copy_(label.masked_fill(outside[:, :, 1:], IMPOSSIBLE).clamp(min=IMPOSSIBLE))
    utterance = torch.arange(num_utterances, device=blank.device)
    ended = torch.arange(size[0], device=blank.device)[:, None] >= frame_lengths + label_lengths
    scores[:, utterance, 1, label_lengths] = scores[:, utterance, 1, label_lengths].masked_fill(ended, 0.0)
    return scores


def _planes_of(diagonals: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Views of ``[D, B, K, N]`` as the blank plane ``[B, T, N]`` and the label plane ``[B, T, N-1]``."""
    num_nodes = diagonals.shape[0] - num_frames + 1
    diagonal, utterance, kind, _ = diagonals.stride()
    strides = (utterance, diagonal, diagonal + 1)
    size = (diagonals.shape[1], num_frames)
    return (
        diagonals.as_strided((*size, num_nodes), strides, kind),
        diagonals.as_strided((*size, num_nodes - 1), strides, 1),
    )


def _run_forward(scores: Tensor, combine: Callable[..., Tensor]) -> Tensor:
    """Turn scores of arcs ``[D, B, K, N]``, in place, into scores of the paths that end with the arc.

    Returns:
        ``[B, N]``, the combined scores of the nodes on the last diagonal.
    """
    num_diagonals, num_utterances, _, num_nodes = scores.shape
    # The spare first column stands for u = -1, so that both sources of an arc are windows of one row.
    alpha = scores.new_full((num_diagonals + 1, num_utterances, num_nodes + 1), IMPOSSIBLE)
    alpha[0, :, 1] = 0
    sources, nodes = alpha.unfold(2, num_nodes, 1).unbind(), alpha[1:, :, 1:].unbind()
    by_label, by_blank = scores[:, :, 0].unbind(), scores[:, :, 1].unbind()
    for diagonal, arcs in enumerate(scores.unbind()):
        arcs.add_(sources[diagonal])
        combine(by_label[diagonal], by_blank[diagonal], out=nodes[diagonal])
    return alpha[-1, :, 1:]


def _run_backward(
    weights: Tensor, frame_lengths: Tensor, label_lengths: Tensor, num_frames: int
) -> tuple[Tensor, Tensor]:
    """Share one unit of mass, set down at the end, out over the arcs that lead there.

    Args:
        weights: ``[D, B, K, N]``, how the mass of a node divides between its two incoming arcs.
        frame_lengths: ``[B]``.
        label_lengths: ``[B]``.
        num_frames: T.

    Returns:
        The mass on blank ``[B, T, N]`` and on label arcs ``[B, T, N-1]``, float64.
    """
    num_diagonals, num_utterances, _, num_nodes = weights.shape
    mass = weights.new_zeros(num_diagonals + 1, num_utterances, 1, num_nodes)
    mass[-1, :, 0].scatter_(1, label_lengths.to(mass.device)[:, None], 1.0)
    # The spare last column stands for the label arc of u = N-1, which does not exist.
    flow = weights.new_zeros(num_diagonals, num_utterances, 2, num_nodes + 1)
    targets, arcs, weight = mass.unbind(), flow[..., :num_nodes].unbind(), weights.unbind()
    by_label, by_blank = flow[:, :, :1, 1:].unbind(), flow[:, :, 1:, :num_nodes].unbind()
    for diagonal in reversed(range(num_diagonals)):
        torch.mul(targets[diagonal + 1], weight[diagonal], out=arcs[diagonal])
        torch.add(by_label[diagonal], by_blank[diagonal], out=targets[diagonal])
    blank, label = _planes_of(flow, num_frames)
    ended = torch.arange(num_frames, device=mass.device) >= frame_lengths.to(mass.device)[:, None]
    return blank.masked_fill(ended[:, :, None], 0.0), label


def _check_planes(blank: Tensor, label: Tensor, frame_lengths: Tensor, label_lengths: Tensor) -> None:
    if blank.ndim != 3 or label.shape != (*blank.shape[:2], blank.shape[2] - 1):
        raise DataError(
            "expected planes blank [B, T, U+1] and label [B, T, U], got "
            f"{list(blank.shape)} and {list(label.shape)}; leave out the label plane's last node"
        )
    check_lengths("frame_lengths", frame_lengths, blank.shape[0], 1, blank.shape[1])
    check_lengths("label_lengths", label_lengths, blank.shape[0], 0, label.shape[2])
