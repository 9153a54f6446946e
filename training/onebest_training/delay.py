"""Emission delay: how much later a student brings out its tokens than a teacher's path, or its own, has them.

Axis legend: B batch, T encoder frames (40 ms), U labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from onebest_training.band import banded_planes, ctc_viterbi
from onebest_training.batches import Batch
from onebest_training.lattice import viterbi
from onebest_training.references import LatticeNodes, References, references_of, target_emissions
from onebest_training.transducer import Transducer

FRAME_MS = 40
#: Nodes a frame in which a model's own path is sought, around that of its CTC head.
PATH_BAND = 16


class TimedToken(NamedTuple):
    """A token and the encoder frame that emits it."""

    token: int
    frame: int


class DelaySummary(NamedTuple):
    """Emission delay over many tokens, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p90_ms: float


def matched_delays(reference: Sequence[TimedToken], hypothesis: Sequence[TimedToken]) -> list[int]:
    """Return by how many frames each token of the hypothesis is later than in the reference.

    Tokens are matched by edit distance; what is inserted, deleted or substituted has no delay.
    """
    from kaldialign import align

    none, delays = -1, []
    timed, found = iter(reference), iter(hypothesis)
    for expected, came in align([t.token for t in reference], [t.token for t in hypothesis], none):
        due = next(timed).frame if expected != none else 0
        at = next(found).frame if came != none else 0
        if expected == came:
            delays.append(at - due)
    return delays


def summarize(delays: Sequence[int]) -> DelaySummary | None:
    """Return mean, median and 90th percentile of delays in frames; None if there are none."""
    if not delays:
        return None
    times = FRAME_MS * np.array(delays)
    return DelaySummary(float(times.mean()), float(np.median(times)), float(np.percentile(times, 90)))


@torch.no_grad()
def reference_tokens(model: Transducer, batch: Batch) -> list[list[TimedToken]]:
    """Return when each token of each reference is due.

    That is when the targets' best path has it; for an utterance without targets, or whose targets have other
    tokens, when the best path of the model's own full-context mode has it.

    Args:
        model: in evaluation mode.
        batch: on the model's device.

    Returns:
        The tokens of each utterance; none for one whose labels fit no alignment.
    """
    references = references_of(batch)
    frames, known = torch.zeros_like(references.labels), torch.zeros_like(references.utterances).bool()
    if batch.targets is not None:
        frames, known = target_emissions(references, batch.targets.best(1))
    if not bool(known.all()):
        frames = frames.where(known[:, None], _own_path(model, batch, references))
    rows = zip(references.labels.tolist(), frames.tolist(), references.label_lengths.tolist(), strict=True)
    return [
        [TimedToken(*pair) for pair in zip(labels[:length], times[:length], strict=True)]
        for labels, times, length in rows
    ]


def _own_path(model: Transducer, batch: Batch, references: References) -> torch.Tensor:
    """Return the frames [B, U] in which the full-context mode's best path emits the labels."""
    encoded = model.encoder(batch.features, batch.frame_lengths, 0, 0).float()
    lengths = references.frame_lengths, references.label_lengths
    around = ctc_viterbi(model.ctc(encoded).log_softmax(2), references.labels, *lengths)
    nodes = LatticeNodes(references, PATH_BAND, around, encoded.shape[1])
    planes = nodes.planes(nodes.logits(model, model.projection(encoded)))
    return viterbi(*banded_planes(*planes, nodes.starts, references.labels.shape[1]), *lengths)
