"""The transducer loss on a band of the lattice: a few nodes a frame around a path that is already known.

A path comes from a teacher, from an earlier model, or from a CTC head (``ctc_viterbi``), as the frame that
emits each label. ``band_starts`` turns it into the first node of the band at each frame, the joiner runs
at those T x S nodes alone, and ``banded_transducer_loss`` sums over the paths that stay inside. The sum
misses all other paths, so the loss is never below that of the whole lattice.

Axis legend: B utterances, T frames, U labels, V vocabulary, S nodes of a frame that are in the band (its
width), W states of a CTC lattice (2U + 1).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from onebest.errors import DataError
from onebest_training.lattice import IMPOSSIBLE, transducer_loss_from_planes
from onebest_training.planes import arc_planes, check_labels, check_lengths


def banded_transducer_loss(
    logits: Tensor,
    labels: Tensor,
    starts: Tensor,
    frame_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of each utterance's labels, over the paths inside the band.

    Args:
        logits: ``[B, T, S, V]``, unnormalised; node s of frame t is the lattice's node u = starts[t] + s.
        labels: ``[B, U]``, integers; those from ``label_lengths`` on are ignored.
        starts: ``[B, T]``, from ``band_starts``.
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
    _check_band(logits, labels, starts)
    width = logits.shape[2]
    check_lengths("label_lengths", label_lengths, len(labels), 0, labels.shape[1])
    labels = check_labels(labels, label_lengths, logits.shape[3], blank)
    next_labels, _ = band_labels(labels, starts, width, label_lengths)
    node_lengths = (label_lengths + 1).clamp(max=width)
    band_blank, band_label = arc_planes(logits, next_labels, frame_lengths, node_lengths, blank=blank)
    planes = banded_planes(band_blank, band_label, starts, labels.shape[1])
    lengths = frame_lengths, label_lengths
    return transducer_loss_from_planes(*planes, *lengths, fastemit=fastemit, delay_penalty=delay_penalty)


def band_starts(
    emission_frames: Tensor,
    frame_lengths: Tensor,
    label_lengths: Tensor,
    width: int,
    *,
    num_frames: int | None = None,
) -> Tensor:
    """The first node of the band at each frame, for a band with the path in its middle.

    A band of S nodes lets S - 1 labels out in one frame. Where the path has more, the surplus is put off to
    the frames after it (or brought forward, at the end). A path without such bursts is wholly inside.

    Args:
        emission_frames: ``[B, U]``, integers, the frame that emits each label; one that falls behind its
            predecessor counts as emitted together with it.
        frame_lengths: ``[B]``, 1 to T.
        label_lengths: ``[B]``, 0 to U.
        width: S.
        num_frames: T, if the arrays are padded to more than the longest utterance.

    Returns:
        ``[B, T]``, int64: 0 at the first frame, never falling, rising by at most S - 1 a frame, with node U_b
        in the band of the last frame. Past ``frame_lengths`` the last value is repeated.

    Raises:
        DataError: the band is too narrow for that many labels in that few frames, or a length does not fit.
    """
    num_utterances, num_labels = emission_frames.shape
    num_frames = int(frame_lengths.max()) if num_frames is None else num_frames
    check_lengths("frame_lengths", frame_lengths, num_utterances, 1, num_frames)
    check_lengths("label_lengths", label_lengths, num_utterances, 0, num_labels)
    device = emission_frames.device
    frame_lengths, label_lengths = frame_lengths.to(device), label_lengths.to(device)
    _check_width(width, frame_lengths, label_lengths)
    frames = _without_bursts(emission_frames.long(), frame_lengths, label_lengths, width - 1)
    used = torch.arange(num_labels, device=device) < label_lengths[:, None]
    frames = frames.masked_fill(~used, num_frames).contiguous()
    clock = torch.arange(num_frames, device=device).expand(num_utterances, -1).contiguous()
    last = torch.searchsorted(frames, clock, right=True)
    highest = (label_lengths[:, None] + 1 - width).clamp(min=0)
    return torch.minimum(_centre(last, width).clamp(min=0), highest)


def band_nodes(starts: Tensor, width: int, label_lengths: Tensor) -> Tensor:
    """The node u at each place of the band, ``[B, T, S]``, int64; places past U_b repeat U_b.

    Args:
        starts: ``[B, T]``.
        width: S.
        label_lengths: ``[B]``.
    """
    nodes = starts[:, :, None] + torch.arange(width, device=starts.device)
    return torch.minimum(nodes, label_lengths.to(starts.device)[:, None, None])


def band_labels(labels: Tensor, starts: Tensor, width: int, label_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The label that comes next at each place of the band.

    Args:
        labels: ``[B, U]``.
        starts: ``[B, T]``.
        width: S.
        label_lengths: ``[B]``, 0 to U.

    Returns:
        labels ``[B, T, S]``, int64, 0 where none is left, and a mask ``[B, T, S]`` that is true where one is.
    """
    nodes = band_nodes(starts, width, label_lengths)
    left = nodes < label_lengths.to(starts.device)[:, None, None]
    padded = pad(labels.to(starts.device).long(), (0, 1))
    found = padded.gather(1, nodes.flatten(1)).view_as(nodes)
    return found.masked_fill(~left, 0), left


def banded_planes(
    band_blank: Tensor, band_label: Tensor, starts: Tensor, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Put the values of a band in their places in the whole lattice; everywhere else is ``IMPOSSIBLE``.

    Args:
        band_blank: ``[B, T, S]``.
        band_label: ``[B, T, S]``; label arcs out of the lattice's last node are dropped.
        starts: ``[B, T]``.
        num_labels: U of the lattice.

    Returns:
        blank ``[B, T, U+1]`` and label ``[B, T, U]``; gradients flow back to the band.

    Raises:
        DataError: the shapes do not fit each other.
    """
    if band_blank.ndim != 3 or band_label.shape != band_blank.shape or starts.shape != band_blank.shape[:2]:
        raise DataError(
            "expected band_blank and band_label [B, T, S] and starts [B, T], got "
            f"{list(band_blank.shape)}, {list(band_label.shape)} and {list(starts.shape)}"
        )
    width = band_blank.shape[2]
    if starts.numel() and (int(starts.min()) < 0 or int(starts.max()) > num_labels):
        raise DataError(
            f"expected starts from 0 to {num_labels}, got {int(starts.min())} to {int(starts.max())}"
        )
    nodes = starts[:, :, None] + torch.arange(width, device=starts.device)
    # Places of the band past the last node share one spare column, which is cut off again.
    nodes = nodes.clamp(max=num_labels + 1)
    outside = band_blank.new_full((*starts.shape, num_labels + 2), IMPOSSIBLE)
    blank = outside.scatter(2, nodes, band_blank)[:, :, : num_labels + 1]
    label = outside.to(band_label.dtype).scatter(2, nodes, band_label)[:, :, :num_labels]
    return blank, label


@torch.no_grad()
def ctc_viterbi(
    log_probs: Tensor, labels: Tensor, frame_lengths: Tensor, label_lengths: Tensor, *, blank: int = 0
) -> Tensor:
    """Align labels with the outputs of a CTC head.

    An utterance whose labels do not fit in its frames (CTC needs one for each label and one between equal
    neighbours), or have no path of non-zero probability, gets them spread evenly over the frames instead.

    Args:
        log_probs: ``[B, T, V]``.
        labels: ``[B, U]``, integers; those from ``label_lengths`` on are ignored.
        frame_lengths: ``[B]``, 1 to T.
        label_lengths: ``[B]``, 0 to U.
        blank: index of blank in V.

    Returns:
        ``[B, U]``, int64: the first frame of each label on the best path, never falling; 0 from
        ``label_lengths`` on.

    Raises:
        DataError: a shape, a length or a label that does not fit.
    """
    if log_probs.ndim != 3 or labels.ndim != 2:
        raise DataError(
            "expected log_probs [B, T, V] and labels [B, U], got "
            f"{list(log_probs.shape)} and {list(labels.shape)}"
        )
    check_lengths("frame_lengths", frame_lengths, len(log_probs), 1, log_probs.shape[1])
    check_lengths("label_lengths", label_lengths, len(log_probs), 0, labels.shape[1])
    device = log_probs.device
    frame_lengths, label_lengths = frame_lengths.to(device), label_lengths.to(device)
    labels = check_labels(labels.to(device), label_lengths, log_probs.shape[2], blank)
    states, possible = _ctc_best_states(log_probs, labels, frame_lengths, label_lengths, blank)
    label = torch.arange(labels.shape[1], device=device).expand_as(labels)
    aligned = torch.searchsorted(states, (2 * label + 1).contiguous())
    spread = ((2 * label + 1) * frame_lengths[:, None]) // (2 * label_lengths[:, None]).clamp(min=1)
    emission_frames = torch.where(possible[:, None], aligned, spread)
    return emission_frames.masked_fill(label >= label_lengths[:, None], 0)


def _ctc_best_states(
    log_probs: Tensor, labels: Tensor, frame_lengths: Tensor, label_lengths: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """The best path through the states blank, label 1, blank, label 2, ..., blank.

    Returns:
        the state at each frame ``[B, T]``, 2U + 1 past the end, and whether there is a path ``[B]``.
    """
    totals, ways = _ctc_forward(log_probs, labels, blank)
    utterance = torch.arange(len(labels), device=labels.device)
    ends = torch.stack([2 * label_lengths, (2 * label_lengths - 1).clamp(min=0)], 1)
    final, which = totals[frame_lengths - 1, utterance].gather(1, ends).max(1)
    state = ends[utterance, which]
    states = torch.empty(log_probs.shape[:2], dtype=torch.int64, device=labels.device)
    for frame in reversed(range(log_probs.shape[1])):
        states[:, frame] = state
        step = ways[frame][utterance, state] - 2
        state = torch.where(frame < frame_lengths, state + step, state).clamp(min=0)
    ended = torch.arange(log_probs.shape[1], device=labels.device) >= frame_lengths[:, None]
    return states.masked_fill(ended, totals.shape[2]), final > IMPOSSIBLE / 2


def _ctc_forward(log_probs: Tensor, labels: Tensor, blank: int) -> tuple[Tensor, list[Tensor]]:
    """Best scores ``[T, B, W]`` of the paths into each state, and at each frame the way they came ``[B, W]``.

    A way is 0 from two states before (over a blank between unequal labels), 1 from the one before, 2 to stay.
    """
    tokens = torch.full((len(labels), 2 * labels.shape[1] + 1), blank, device=labels.device)
    tokens[:, 1::2] = labels
    scores = log_probs.float().gather(2, tokens[:, None].expand(-1, log_probs.shape[1], -1))
    may_skip = (tokens != blank) & (tokens != pad(tokens, (2, 0), value=blank)[:, :-2])
    barrier = scores.new_zeros(len(tokens), tokens.shape[1], 3)
    barrier[:, :, 0].masked_fill_(~may_skip, IMPOSSIBLE)
    # Two spare columns in front: a path enters from the second, into state 0 or over it into state 1.
    best = scores.new_full((len(tokens), tokens.shape[1] + 2), IMPOSSIBLE)
    best[:, 1] = 0
    totals, ways = [], []
    for score in scores.clamp(min=IMPOSSIBLE).unbind(1):
        total, way = (best.unfold(1, 3, 1) + barrier).max(2)
        best = pad(total + score, (2, 0), value=IMPOSSIBLE)
        totals.append(best[:, 2:])
        ways.append(way)
    return torch.stack(totals), ways


def _centre(last: Tensor, width: int) -> Tensor:
    """The start of a band of ``width`` around a path, from the last node of the path at each frame."""
    first = pad(last, (1, 0))[:, :-1]
    centred = (first + last) // 2 - (width - 1) // 2
    return torch.minimum(torch.maximum(centred, last - width + 1), first)


def _without_bursts(frames: Tensor, frame_lengths: Tensor, label_lengths: Tensor, most: int) -> Tensor:
    """The path ``[B, U]`` put in order, with at most ``most`` labels in one frame; the rest stays."""
    num_labels = frames.shape[1]
    if not num_labels:
        return frames
    most = max(most, 1)
    frames = torch.minimum(frames.clamp(min=0), frame_lengths[:, None] - 1).cummax(1).values
    label = torch.arange(num_labels, device=frames.device)
    # Label u comes at least one frame after label u - most: a running maximum over every most-th label.
    turn = label // most
    rows = pad(frames - turn, (0, -num_labels % most)).view(len(frames), -1, most)
    delayed = rows.cummax(1).values.flatten(1)[:, :num_labels] + turn
    latest = frame_lengths[:, None] - 1 - (label_lengths[:, None] - 1 - label) // most
    return torch.minimum(delayed, latest)


def _check_band(logits: Tensor, labels: Tensor, starts: Tensor) -> None:
    if logits.ndim != 4 or starts.shape != logits.shape[:2] or labels.ndim != 2:
        raise DataError(
            "expected logits [B, T, S, V], starts [B, T] and labels [B, U], got "
            f"{list(logits.shape)}, {list(starts.shape)} and {list(labels.shape)}"
        )


def _check_width(width: int, frame_lengths: Tensor, label_lengths: Tensor) -> None:
    narrow = frame_lengths * (width - 1) < label_lengths
    if width < 1 or bool(narrow.any()):
        needed = int((label_lengths / frame_lengths).ceil().max()) + 1
        raise DataError(
            f"expected a band of at least {needed} nodes, got a width of {width}, which lets {width - 1} "
            "labels out in a frame; widen the band or leave out utterances with more labels than frames"
        )
