"""Decoding of whole batches in torch, for error rate and emission delay on dev: greedy, or by beam search.

Axis legend: B batch, T encoder frames, D encoder width, J joiner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onebest_training.batches import Batch, pad_batch
from onebest_training.beam import SearchOptions, beam_search
from onebest_training.delay import TimedToken, matched_delays, reference_tokens
from onebest_training.language_model import LanguageModel
from onebest_training.transducer import BLANK, Transducer
from onebest_training.utterances import Utterance
from onebest_training.vocabulary import TextEncoder

#: Silence behind an utterance when it is measured, in 10 ms frames, like the runtime's.
TAIL_FRAMES = 50
_BATCH_SECONDS = 120.0
#: Finds the tokens of each utterance in encoder output [B, T, D] of so many frames [B].
Search = Callable[[Transducer, Tensor, Tensor], list[list[TimedToken]]]


class ErrorCount(NamedTuple):
    """Word errors and reference words, of the transducer and of the CTC head."""

    transducer_errors: int
    ctc_errors: int
    words: int


class Measured(NamedTuple):
    """Errors, and by how many 40 ms frames each recognised token came later than it was due."""

    errors: ErrorCount
    delays: list[int]


def ctc_greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the labels of the best path of CTC logits [B, T, V]."""
    best = logits.argmax(2)
    texts = []
    for row, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length]).tolist()
        texts.append([label for label in merged if label != BLANK])
    return texts


def transducer_greedy(model: Transducer, encoded: Tensor, lengths: Tensor) -> list[list[TimedToken]]:
    """Return the tokens that greedy search finds in encoder output [B, T, D], at most one a frame."""
    projected = model.projection(encoded)
    state = model.predictor.initial_state(len(encoded))
    predicted = model.predictor.read(state)
    tokens: list[list[TimedToken]] = [[] for _ in range(len(encoded))]
    for frame in range(encoded.shape[1]):
        best = model.joiner(projected[:, frame], predicted).argmax(1)
        emits = (best != BLANK) & (frame < lengths)
        if not emits.any():
            continue
        state[emits] = model.predictor.advance(state[emits], best[emits])
        predicted = model.predictor.read(state)
        for row in emits.nonzero()[:, 0].tolist():
            tokens[row].append(TimedToken(int(best[row]), frame))
    return tokens


def make_search(options: SearchOptions, language_model: LanguageModel | None = None) -> Search:
    """Return the beam search that makes targets, of which the best hypothesis counts."""

    def search(model: Transducer, encoded: Tensor, lengths: Tensor) -> list[list[TimedToken]]:
        found = beam_search(model, model.projection(encoded), lengths, options, language_model)
        return [
            [TimedToken(*pair) for pair in zip(best.labels, best.frames, strict=True)] for best, *_ in found
        ]

    return search


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
def measure(
    model: Transducer,
    batches: list[Batch],
    tokens: TextEncoder,
    chunks: Sequence[int],
    left: int,
    search: Search = transducer_greedy,
    right: int = 0,
) -> dict[int, Measured]:
    """Decode batches with each chunk size; count word errors and take emission delays.

    The delays are against ``reference_tokens``.
    """
    model.eval()
    device = next(model.parameters()).device
    measured = {chunk: Measured(ErrorCount(0, 0, 0), []) for chunk in chunks}
    for batch in (batch.to(device) for batch in batches):
        due = reference_tokens(model, batch)
        for chunk, (errors, delays) in measured.items():
            encoded = model.encoder(batch.features, batch.frame_lengths, chunk, left, right=right).float()
            found = search(model, encoded, batch.frame_lengths)
            by_ctc = ctc_greedy(model.ctc(encoded), batch.frame_lengths)
            labels = [[timed.token for timed in row] for row in found]
            counted = _count_errors(batch.texts, labels, by_ctc, tokens)
            delays.extend(d for pair in zip(due, found, strict=True) for d in matched_delays(*pair))
            total = ErrorCount(*map(sum, zip(errors, counted, strict=True)))
            measured[chunk] = Measured(total, delays)
    return measured


def _count_errors(
    texts: list[str], by_transducer: list[list[int]], by_ctc: list[list[int]], tokens: TextEncoder
) -> ErrorCount:
    """Count the words that have to change for the decoded labels to become the texts."""
    from kaldialign import edit_distance

    def errors(labels: list[list[int]]) -> int:
        pairs = zip(texts, labels, strict=True)
        return sum(int(edit_distance(t.split(), tokens.decode(row).split())["total"]) for t, row in pairs)

    return ErrorCount(errors(by_transducer), errors(by_ctc), sum(len(text.split()) for text in texts))
