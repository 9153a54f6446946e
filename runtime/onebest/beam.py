"""Beam search within a chunk: several texts are followed through its frames, and the best one stays.

Greedy search decides at every frame, this one behind the last frame of a chunk. Until then a few hypotheses
are kept, each with the mass of all its alignments that were followed (at most one token a frame). The best
one is the text for good, and the next chunk begins from it alone. So nothing that was said is ever revised,
and nothing comes later: the tokens of a chunk come out together in either search.

Axis legend: N streams, T encoder frames (40 ms), H hypotheses, J joiner width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onebest.hotwords import ROOT, Hotwords
from onebest.search import Emission, FloatArray, Network, SearchState, probability
from onebest.vocabulary import BLANK

#: Tokens that are less likely than this at a frame are not followed.
LEAST_LOG_PROB = math.log(0.005)
#: Frames that are joined at once with each hypothesis; those behind its next token are joined in vain.
_BLOCK_FRAMES = 16


class _Hypothesis(NamedTuple):
    """A text that a chunk may have.

    Attributes:
        emissions: its tokens, with the frames of the best alignment.
        state: of the search behind them.
        score: log-probability of all alignments.
        best: of the best alignment alone.
        logits: the model's at the frames that follow [T, V], to the end of the block.
        log_probs: the search's of the tokens at those frames [T, V]: with what blank and hotwords change.
        likeliest: the largest of these at each frame [T], the blank's left aside.
    """

    emissions: tuple[Emission, ...]
    state: SearchState
    score: float
    best: float
    logits: FloatArray
    log_probs: FloatArray
    likeliest: FloatArray

    def after(self, gain: float, frames: int) -> _Hypothesis:
        """Return it some frames later, in which nothing was said."""
        return self._replace(
            score=self.score + gain,
            best=self.best + gain,
            logits=self.logits[frames:],
            log_probs=self.log_probs[frames:],
            likeliest=self.likeliest[frames:],
        )


class _Extension(NamedTuple):
    """A hypothesis a frame later, the token that it has there, or the blank, and that frame's logits [V]."""

    hypothesis: _Hypothesis
    token: int
    logits: FloatArray

    @property
    def text(self) -> tuple[int, ...]:
        """All its tokens."""
        said = (emission.token for emission in self.hypothesis.emissions)
        return (*said, self.token) if self.token != BLANK else tuple(said)


class BeamSearch:
    """The search and its settings.

    Args:
        network: the decoder and joiner.
        beam: hypotheses that are kept.
        chunk_frames: encoder frames of a chunk.
        speaks: whether each token id [V] is one to emit.
        blank_penalty: what the blank's logit is lowered by.
        start_margin: what the blank's logit is raised by until the first token comes.
        least: tokens with a lower log-probability at a frame are not followed.
    """

    def __init__(
        self,
        network: Network,
        beam: int,
        chunk_frames: int,
        speaks: npt.NDArray[np.bool_],
        blank_penalty: float = 0.0,
        start_margin: float = 0.0,
        least: float = LEAST_LOG_PROB,
    ):
        self._network, self._beam, self._chunk_frames = network, beam, chunk_frames
        is_silent = ~speaks
        is_silent[BLANK] = False
        self._silent = np.flatnonzero(is_silent)
        self._blank_penalty, self._start_margin, self._least = blank_penalty, start_margin, least

    def __call__(
        self,
        frames: FloatArray,
        states: Sequence[SearchState],
        hotwords: Sequence[Hotwords | None] | None = None,
    ) -> tuple[list[list[Emission]], list[SearchState]]:
        """Return the tokens of encoder frames [N, T, J], and the states behind them, as ``search`` does.

        The first frame is the first of a chunk.
        """
        parts = zip(frames, states, hotwords or [None] * len(states), strict=True)
        found = [self._search(*part) for part in parts]
        return [emissions for emissions, _ in found], [state for _, state in found]

    def _search(
        self, frames: FloatArray, state: SearchState, hotwords: Hotwords | None
    ) -> tuple[list[Emission], SearchState]:
        emissions: list[Emission] = []
        for chunk in range(0, len(frames), self._chunk_frames):
            hypotheses = [_Hypothesis((), state, 0.0, 0.0, frames[:0], frames[:0], frames[:0, 0])]
            end = min(chunk + self._chunk_frames, len(frames))
            for first in range(chunk, end, _BLOCK_FRAMES):
                block = frames[first : min(first + _BLOCK_FRAMES, end)]
                hypotheses = self._search_block(block, hypotheses, hotwords, first)
            best = max(hypotheses, key=lambda hypothesis: hypothesis.score)
            emissions += best.emissions
            state = best.state
        return emissions, state

    def _search_block(
        self, block: FloatArray, hypotheses: list[_Hypothesis], hotwords: Hotwords | None, first: int
    ) -> list[_Hypothesis]:
        """Return the hypotheses behind a block of frames, of which the first is number ``first``."""
        hypotheses, at = self._look_ahead(hypotheses, block, hotwords), 0
        while at < len(block):
            if passed := self._quiet_frames(hypotheses):
                hypotheses = [h.after(float(h.log_probs[:passed, BLANK].sum()), passed) for h in hypotheses]
                at += passed
                continue
            kept = self._extend(hypotheses)
            at += 1
            silent = [each.hypothesis for each in kept if each.token == BLANK]
            spoken = self._speak([each for each in kept if each.token != BLANK], hotwords, first + at - 1)
            hypotheses = silent + self._look_ahead(spoken, block[at:], hotwords)
        return hypotheses

    def _quiet_frames(self, hypotheses: Sequence[_Hypothesis]) -> int:
        """Return how many of the next frames have no likely token in any hypothesis."""
        likeliest = np.array([hypothesis.likeliest for hypothesis in hypotheses]).max(axis=0)
        loud = likeliest >= self._least
        return int(loud.argmax()) if loud.any() else len(loud)

    def _extend(self, hypotheses: Sequence[_Hypothesis]) -> list[_Extension]:
        """Return the best extensions by a frame; those of one text are one."""
        by_text: dict[tuple[int, ...], _Extension] = {}
        for extension in (each for hypothesis in hypotheses for each in self._extensions(hypothesis)):
            text = extension.text
            if other := by_text.get(text):
                together = float(np.logaddexp(extension.hypothesis.score, other.hypothesis.score))
                extension = max(extension, other, key=lambda each: each.hypothesis.best)
                extension = extension._replace(hypothesis=extension.hypothesis._replace(score=together))
            by_text[text] = extension
        return sorted(by_text.values(), key=lambda each: -each.hypothesis.score)[: self._beam]

    def _extensions(self, hypothesis: _Hypothesis) -> Iterator[_Extension]:
        log_probs = hypothesis.log_probs[0]
        likely = np.flatnonzero(log_probs >= self._least)
        likely = likely[np.argsort(-log_probs[likely], kind="stable")[: self._beam + 1]]
        for token in dict.fromkeys((BLANK, *likely.tolist())):
            yield _Extension(hypothesis.after(float(log_probs[token]), 1), token, hypothesis.logits[0])

    def _speak(
        self, extensions: Sequence[_Extension], hotwords: Hotwords | None, frame: int
    ) -> list[_Hypothesis]:
        """Return the hypotheses of extensions with their token said."""
        contexts = [(*each.hypothesis.state.context[1:], each.token) for each in extensions]
        if not contexts:
            return []
        predictions, spoken = self._network.predict(contexts), []
        for extension, context, prediction in zip(extensions, contexts, predictions, strict=True):
            hypothesis, token, logits = extension
            node = hotwords.move(hypothesis.state.node, token) if hotwords else ROOT
            emission = Emission(token, frame, probability(logits, token))
            state = SearchState(context, prediction, node)
            spoken.append(hypothesis._replace(emissions=(*hypothesis.emissions, emission), state=state))
        return spoken

    def _look_ahead(
        self, hypotheses: Sequence[_Hypothesis], frames: FloatArray, hotwords: Hotwords | None
    ) -> list[_Hypothesis]:
        """Return hypotheses with the log-probabilities of the frames [T, J] that follow."""
        if not hypotheses or not len(frames):
            return list(hypotheses)
        predictions = np.array([hypothesis.state.prediction for hypothesis in hypotheses])
        repeated = np.broadcast_to(frames, (len(hypotheses), *frames.shape)).reshape(-1, frames.shape[1])
        logits = self._network.join(repeated, predictions.repeat(len(frames), axis=0))
        logits = logits.reshape(len(hypotheses), len(frames), -1)
        scores = logits.copy()
        for hypothesis, rows in zip(hypotheses, scores, strict=True):
            rows[:, BLANK] += self._start_margin * hypothesis.state.is_start - self._blank_penalty
            if hotwords:
                rows += hotwords.bonus(hypothesis.state.node)
        scores[:, :, self._silent] = -np.inf
        scores -= scores.max(2, keepdims=True)
        scores -= np.log(np.sum(np.exp(scores), 2, keepdims=True))
        parts = zip(hypotheses, logits, scores, scores[:, :, BLANK + 1 :].max(2), strict=True)
        return [
            hypothesis._replace(logits=rows, log_probs=log_probs, likeliest=largest)
            for hypothesis, rows, log_probs, largest in parts
        ]
