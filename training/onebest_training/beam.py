"""Modified beam search for transducers: at most one label a frame, hypotheses of the same labels added up.

All hypotheses of all utterances of a batch go through the joiner together. A language model can steer the
search by shallow fusion, among the labels: whether one is emitted is the transducer's to say.

Axis legend: B utterances, T frames, J joiner width, H hypotheses of all utterances, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from onebest_training.language_model import LanguageModel, fuse
from onebest_training.strict import require
from onebest_training.transducer import BLANK, Transducer


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        beam: hypotheses that are kept of an utterance; 1 is greedy search.
        language_model_weight: of log P(label | labels before) beside the transducer's.
    """

    beam: int = 4
    language_model_weight: float = 0.0

    def __post_init__(self) -> None:
        require(self.beam > 0, "a beam above 0")
        require(0 <= self.language_model_weight < math.inf, "a language_model_weight of 0 or more")


class Hypothesis(NamedTuple):
    """A result: labels, the frame of each on the best path found, and the log-probability.

    The log-probability is that of all paths found, with the language model's share in the labels' part of it.
    """

    labels: tuple[int, ...]
    frames: tuple[int, ...]
    score: float


class _Extension(NamedTuple):
    """A hypothesis after a frame: that of row ``row``, with ``label`` behind it unless that is the blank."""

    row: int
    label: int
    score: float
    best: float


@torch.inference_mode()
def beam_search(
    model: Transducer,
    projected: Tensor,
    lengths: Tensor,
    options: SearchOptions,
    language_model: LanguageModel | None = None,
) -> list[list[Hypothesis]]:
    """Return the best hypotheses of each utterance, at most ``options.beam``, the best first.

    Args:
        model: supplies predictor and joiner.
        projected: the encoder's output after ``model.projection``, [B, T, J].
        lengths: valid frames, [B].
        options: beam and fusion.
        language_model: of the same tokens, or None.
    """
    search = _Search(model, projected, options, language_model)
    for frame in range(int(lengths.max())):
        search.step(frame, (lengths > frame).tolist())
    return search.results()


class _Search:
    """The hypotheses of all utterances, a row each: labels, frames and scores as lists, states as tensors."""

    def __init__(
        self,
        model: Transducer,
        projected: Tensor,
        options: SearchOptions,
        language_model: LanguageModel | None,
    ):
        self._model, self._projected, self._beam = model, projected, options.beam
        self._weight = options.language_model_weight
        self._language_model = language_model if self._weight else None
        count = len(projected)
        self._utterances = list(range(count))
        self._found = [Hypothesis((), (), 0.0) for _ in range(count)]
        #: Score of the best single path to a hypothesis; it decides whose frames are kept.
        self._best = [0.0] * count
        self._state = model.predictor.initial_state(count)
        self._predicted = model.predictor.read(self._state)
        if self._language_model is not None:
            self._lm_state = self._language_model.initial_state(count)
            self._lm_log_probs = self._language_model.read(self._lm_state)

    def step(self, frame: int, active: list[bool]) -> None:
        """Go on by one frame with the utterances that are not over."""
        rows = [row for row, utterance in enumerate(self._utterances) if active[utterance]]
        at = torch.tensor([self._utterances[row] for row in rows], device=self._projected.device)
        logits = self._model.joiner(self._projected[at, frame], self._predicted[rows])
        log_probs = logits.double().log_softmax(1)
        if self._language_model is not None:
            log_probs = fuse(log_probs, self._weight * self._lm_log_probs[rows])
        extensions: list[list[_Extension]] = [[] for _ in active]
        for row, utterance in enumerate(self._utterances):
            if not active[utterance]:
                extensions[utterance].append(_Extension(row, BLANK, self._found[row].score, self._best[row]))
        top = log_probs.topk(min(self._beam + 1, log_probs.shape[1]), 1)
        blanks = log_probs[:, BLANK].tolist()
        for row, blank, scores, labels in zip(
            rows, blanks, top.values.tolist(), top.indices.tolist(), strict=True
        ):
            for label, score in [
                (BLANK, blank),
                *((n, s) for n, s in zip(labels, scores, strict=True) if n != BLANK),
            ]:
                extensions[self._utterances[row]].append(
                    _Extension(row, label, self._found[row].score + score, self._best[row] + score)
                )
        self._take([self._merge(of_utterance) for of_utterance in extensions], frame)

    def _merge(self, extensions: list[_Extension]) -> list[_Extension]:
        """Add up those with the same labels, keep the best; the better single path lends its frames."""
        merged: dict[tuple[int, ...], _Extension] = {}
        for new in extensions:
            labels = self._found[new.row].labels + ((new.label,) if new.label != BLANK else ())
            if old := merged.get(labels):
                new = (new if new.best > old.best else old)._replace(score=_log_add(old.score, new.score))
            merged[labels] = new
        return sorted(merged.values(), key=lambda e: -e.score)[: self._beam]

    def _take(self, kept: list[list[_Extension]], frame: int) -> None:
        chosen = [(utterance, extension) for utterance, of in enumerate(kept) for extension in of]
        rows = torch.tensor([extension.row for _, extension in chosen])
        labels = torch.tensor([extension.label for _, extension in chosen], device=self._state.device)
        emits = labels != BLANK
        found = []
        for _, extension in chosen:
            before = self._found[extension.row]
            tail = ((extension.label,), (frame,)) if extension.label != BLANK else ((), ())
            found.append(Hypothesis(before.labels + tail[0], before.frames + tail[1], extension.score))
        self._utterances, self._found = [utterance for utterance, _ in chosen], found
        self._best = [extension.best for _, extension in chosen]
        self._state, self._predicted = self._state[rows], self._predicted[rows]
        if self._language_model is not None:
            self._lm_state, self._lm_log_probs = self._lm_state[rows], self._lm_log_probs[rows]
        if emits.any():
            self._advance(emits, labels[emits])

    def _advance(self, emits: Tensor, labels: Tensor) -> None:
        predictor, model = self._model.predictor, self._language_model
        state = predictor.advance(self._state[emits], labels)
        self._state[emits], self._predicted[emits] = state, predictor.read(state)
        if model is not None:
            state = model.advance(self._lm_state[emits], labels)
            self._lm_state[emits], self._lm_log_probs[emits] = state, model.read(state)

    def results(self) -> list[list[Hypothesis]]:
        """Return the hypotheses by utterance, the best first."""
        found: list[list[Hypothesis]] = [[] for _ in range(len(self._projected))]
        for utterance, hypothesis in zip(self._utterances, self._found, strict=True):
            found[utterance].append(hypothesis)
        return found


def _log_add(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high + math.log1p(math.exp(low - high))
