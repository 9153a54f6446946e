"""From joiner outputs to the planes of the lattice: log P(blank) and log P(next label) at each node.

A log-softmax over all nodes would be as large as the logits, twice with its gradient. Here a few frames
at a time are normalised, two or three values a node are kept, and the gradient is the one array of that size.

Axis legend: B utterances, T frames, U labels, V vocabulary, N nodes of a frame (U + 1, or fewer in a band).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onebest.errors import DataError

CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Logits normalised at a time. On the CPU 8 MiB fit the last cache and are worth waking the threads for: with
other work on the machine, four times smaller chunks took ten times as long. On a GPU launches decide.
"""
#: Log of a probability whose inverse float32 still holds; what has less gets a smaller gradient.
_SMALLEST = -80.0


def arc_planes(
    logits: Tensor, next_labels: Tensor, frame_lengths: Tensor, node_lengths: Tensor, *, blank: int = 0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of blank and of one label at each node; the log-softmax is never held in memory.

    Nodes past ``frame_lengths`` or ``node_lengths`` are not read: they get zero, and a gradient of zero.

    Args:
        logits: ``[B, T, N, V]``, unnormalised.
        next_labels: ``[B, T, N]``, the label to look up at each node, 0 to V-1.
        frame_lengths: ``[B]``, 1 to T.
        node_lengths: ``[B]``, 1 to N.
        blank: index of blank in V.

    Returns:
        blank ``[B, T, N]`` and label ``[B, T, N]``, float32 (float64 for float64 logits).

    Raises:
        DataError: a shape or a length that does not fit.
    """
    blank_plane, label_plane = _planes(logits, next_labels, frame_lengths, node_lengths, blank, False)
    return blank_plane, label_plane


def class_planes(
    logits: Tensor, next_labels: Tensor, frame_lengths: Tensor, node_lengths: Tensor, *, blank: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``arc_planes`` does, and the log-probability of all other labels as one, ``[B, T, N]``.

    It is a sum over them: of a node where the two have all but the last bit of the mass, what they leave of 1
    would be lost in rounding, and its gradient with it.
    """
    planes = _planes(logits, next_labels, frame_lengths, node_lengths, blank, True)
    blank_plane, label_plane, rest_plane = planes
    return blank_plane, label_plane, rest_plane


def _planes(
    logits: Tensor,
    next_labels: Tensor,
    frame_lengths: Tensor,
    node_lengths: Tensor,
    blank: int,
    with_rest: bool,
) -> tuple[Tensor, ...]:
    if logits.ndim != 4 or next_labels.shape != logits.shape[:3]:
        raise DataError(
            "expected logits [B, T, N, V] and next_labels [B, T, N], got "
            f"{list(logits.shape)} and {list(next_labels.shape)}"
        )
    check_lengths("frame_lengths", frame_lengths, logits.shape[0], 1, logits.shape[1])
    check_lengths("node_lengths", node_lengths, logits.shape[0], 1, logits.shape[2])
    extents = list(zip(frame_lengths.tolist(), node_lengths.tolist(), strict=True))
    planes: tuple[Tensor, ...] = _Planes.apply(logits, next_labels, extents, blank, with_rest)  # type: ignore[no-untyped-call]
    return planes


def check_lengths(name: str, lengths: Tensor, batch: int, low: int, high: int) -> None:
    """Make sure that ``lengths`` is ``[B]``, integral, and within ``low`` to ``high``.

    Raises:
        DataError: it is not.
    """
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise DataError(
            f"expected {name} as {batch} integers, one an utterance, "
            f"got shape {list(lengths.shape)} of {lengths.dtype}"
        )
    if batch and (int(lengths.min()) < low or int(lengths.max()) > high):
        raise DataError(
            f"expected {name} from {low} to {high}, got {lengths.tolist()}; "
            "leave out empty utterances, and pass lengths of the same padded arrays"
        )


def check_labels(labels: Tensor, label_lengths: Tensor, vocabulary: int, blank: int) -> Tensor:
    """Labels ``[B, U]`` with everything past ``label_lengths`` set to blank, so that it can index V.

    Raises:
        DataError: a label is blank or outside the vocabulary.
    """
    used = torch.arange(labels.shape[1], device=labels.device) < label_lengths.to(labels.device)[:, None]
    wrong = used & ((labels < 0) | (labels >= vocabulary) | (labels == blank))
    if bool(wrong.any()):
        raise DataError(
            f"expected labels from 0 to {vocabulary - 1} other than blank ({blank}), "
            f"got {sorted(set(labels[wrong].tolist()))}; tokenise with this model's vocabulary"
        )
    return labels.masked_fill(~used, blank).long()


class _Planes(torch.autograd.Function):
    """Log-softmax and look-up in one go, a chunk at a time; the gradient is the one array of size V."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        next_labels: Tensor,
        extents: list[tuple[int, int]],
        blank: int,
        with_rest: bool,
    ) -> tuple[Tensor, ...]:
        dtype = result_dtype(logits)
        planes = [logits.new_zeros(logits.shape[:3], dtype=dtype) for _ in range(3 if with_rest else 2)]
        for chunk in node_chunks(logits, extents):
            log_probs = torch.log_softmax(logits[chunk], -1, dtype=dtype)
            label = next_labels[chunk][..., None]
            planes[0][chunk] = log_probs[..., blank]
            planes[1][chunk] = log_probs.gather(-1, label)[..., 0]
            if with_rest:
                log_probs[..., blank] = -torch.inf
                planes[2][chunk] = log_probs.scatter_(-1, label, -torch.inf).logsumexp(-1)
        ctx.save_for_backward(logits, next_labels, *planes[2:])
        ctx.extents, ctx.blank = extents, blank
        return tuple(planes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_blank: Tensor, grad_label: Tensor, *grad_rest: Tensor) -> tuple[Any, ...]:
        logits, next_labels, *rest = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for utterance, (num_frames, num_nodes) in enumerate(ctx.extents):
            grad[utterance, num_frames:] = 0
            grad[utterance, :num_frames, num_nodes:] = 0
        total = -(grad_blank + grad_label)
        if rest:
            total -= grad_rest[0]
            of_rest = total + grad_rest[0] * rest[0].clamp(min=_SMALLEST).neg().exp()
        for chunk in node_chunks(logits, ctx.extents):
            target = grad[chunk]
            part = target if grad.dtype == total.dtype else torch.empty_like(target, dtype=total.dtype)
            torch.softmax(logits[chunk], -1, dtype=total.dtype, out=part)
            label = next_labels[chunk][..., None]
            if rest:
                named = torch.cat((torch.full_like(label, ctx.blank), label), -1)
                shares = part.gather(-1, named) * total[chunk][..., None]
                part.mul_(of_rest[chunk][..., None]).scatter_(-1, named, shares)
            else:
                part.mul_(total[chunk][..., None])
            part[..., ctx.blank] += grad_blank[chunk]
            part.scatter_add_(-1, label, grad_label[chunk][..., None])
            if part is not target:
                target.copy_(part)
        return grad, None, None, None, None


def node_chunks(logits: Tensor, extents: list[tuple[int, int]]) -> Iterator[tuple[int, slice, slice]]:
    """Index logits ``[B, T, N, V]`` a few frames of one utterance at a time, leaving out the padding."""
    limit = CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS["cuda"])
    for utterance, (num_frames, num_nodes) in enumerate(extents):
        step = max(1, limit // (num_nodes * logits.shape[3]))
        for start in range(0, num_frames, step):
            yield utterance, slice(start, min(start + step, num_frames)), slice(num_nodes)


def result_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of what is computed from ``tensor``: float32, or float64 if that is what came."""
    return torch.promote_types(tensor.dtype, torch.float32)
