"""When the tokens of an utterance are due: in a teacher's path, or in the model's own at full context.

Axis legend: B batch, T encoder frames (40 ms), U labels.
"""

from __future__ import annotations

import torch

from onebest.delay import DelaySummary, TimedToken, matched_delays, summarize
from onebest.results import FRAME_MS
from onebest_training.band import banded_planes, ctc_viterbi
from onebest_training.batches import Batch
from onebest_training.lattice import viterbi
from onebest_training.references import LatticeNodes, References, references_of, target_emissions
from onebest_training.transducer import Transducer

__all__ = ["FRAME_MS", "DelaySummary", "TimedToken", "matched_delays", "reference_tokens", "summarize"]
#: Nodes a frame in which a model's own path is sought, around that of its CTC head.
PATH_BAND = 16


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
