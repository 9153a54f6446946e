"""Greedy decoding of whole batches in torch, for the error rate on dev while training.

Axis legend: B batch, T encoder frames, D encoder width, J joiner width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from onebest_training.batches import Batch, Utterance, pad_batch
from onebest_training.transducer import BLANK, Transducer
from onebest_training.vocabulary import TextEncoder

#: Silence behind an utterance when it is measured, in 10 ms frames, like the runtime's.
TAIL_FRAMES = 50
_BATCH_SECONDS = 120.0


class ErrorCount(NamedTuple):
    """Word errors and reference words, of the transducer and of the CTC head."""

    transducer_errors: int
    ctc_errors: int
    words: int


def ctc_greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the labels of the best path of CTC logits [B, T, V]."""
    best = logits.argmax(2)
    texts = []
    for row, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length]).tolist()
        texts.append([label for label in merged if label != BLANK])
    return texts


def transducer_greedy(model: Transducer, encoded: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the labels that greedy search finds in encoder output [B, T, D], at most one a frame."""
    projected = model.projection(encoded)
    context = encoded.new_full((len(encoded), model.config.context_size), -1, dtype=torch.int64)
    context[:, -1] = BLANK
    predicted = model.predictor(context)
    labels: list[list[int]] = [[] for _ in range(len(encoded))]
    for frame in range(encoded.shape[1]):
        best = model.joiner(projected[:, frame], predicted).argmax(1)
        emits = (best != BLANK) & (frame < lengths)
        if not emits.any():
            continue
        context = torch.where(emits[:, None], torch.cat((context[:, 1:], best[:, None]), 1), context)
        predicted = model.predictor(context)
        for row in emits.nonzero()[:, 0].tolist():
            labels[row].append(int(best[row]))
    return labels


def dev_batches(utterances: list[Utterance]) -> list[Batch]:
    """Return utterances in batches of similar length, as they are, with the tail that the runtime adds."""
    ordered = sorted(utterances, key=lambda u: u.cut.duration)
    groups: list[list[Utterance]] = [[]]
    for utterance in ordered:
        if groups[-1] and utterance.cut.duration * (len(groups[-1]) + 1) > _BATCH_SECONDS:
            groups.append([])
        groups[-1].append(utterance)
    return [
        pad_batch([u.store.read(u.cut) for u in group], [TAIL_FRAMES] * len(group), group) for group in groups
    ]


@torch.inference_mode()
def count_errors(
    model: Transducer, batches: list[Batch], tokens: TextEncoder, chunk: int, left: int
) -> ErrorCount:
    """Decode batches with one chunk size and count word errors."""
    from kaldialign import edit_distance

    model.eval()
    total = ErrorCount(0, 0, 0)
    for batch in batches:
        device = next(model.parameters()).device
        lengths = batch.frame_lengths.to(device)
        encoded = model.encoder(batch.features.to(device), lengths, chunk, left).float()
        found = transducer_greedy(model, encoded, lengths), ctc_greedy(model.ctc(encoded), lengths)
        for text, *hypotheses in zip(batch.texts, *found, strict=True):
            words = text.split()
            errors = [int(edit_distance(words, tokens.decode(h).split())["total"]) for h in hypotheses]
            by_transducer, by_ctc = total.transducer_errors + errors[0], total.ctc_errors + errors[1]
            total = ErrorCount(by_transducer, by_ctc, total.words + len(words))
    return total
