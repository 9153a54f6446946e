"""Greedy transducer search, many streams at once: encoder frames in, tokens out, at most one a frame.

The state between two calls is a value. The search asks a ``Network`` for its two small steps and knows
nothing else of the model.

Axis legend: N streams, T encoder frames (40 ms), R rows, J joiner width, P decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from onebest.hotwords import ROOT, Hotwords
from onebest.vocabulary import BLANK

FloatArray = npt.NDArray[np.float32]
Context = tuple[int, ...]


class Network(Protocol):
    """What the search needs of a model."""

    @property
    def frames_a_join(self) -> int:
        """Frames of a stream to join in one call; those behind a token are joined in vain."""
        ...

    def predict(self, contexts: Sequence[Context]) -> FloatArray:
        """Return the decoder's outputs [R, P], each for R last tokens, the newest at the end."""
        ...

    def join(self, frames: FloatArray, predictions: FloatArray) -> FloatArray:
        """Return the logits [R, V] of frames [R, J], each with its prediction [R, P]."""
        ...


class SearchState(NamedTuple):
    """What the search remembers of one stream.

    Attributes:
        context: the last tokens.
        prediction: what the decoder says of them [P].
        node: where the stream is in its hotwords.
    """

    context: Context
    prediction: FloatArray
    node: int = ROOT

    @property
    def is_start(self) -> bool:
        """Whether no token has come yet."""
        return max(self.context) <= BLANK


class Emission(NamedTuple):
    """A token, the frame it came at, counted from the first frame of the call, and its probability."""

    token: int
    frame: int
    confidence: float


def probability(logits: FloatArray, token: int) -> float:
    """Return the model's probability of a token, from its logits [V] as they are before any change."""
    weights = np.exp(logits - logits.max())
    return float(weights[token] / weights.sum())


def start_state(network: Network, context_size: int) -> SearchState:
    """Return the state before the first frame: no token yet (-1), then a blank."""
    context = (-1,) * (context_size - 1) + (BLANK,)
    return SearchState(context, network.predict([context])[0])


class _Walk:
    """How far the search is in one stream's frames [T, J]."""

    def __init__(self, frames: FloatArray, state: SearchState, hotwords: Hotwords | None):
        self.frames, self.state, self.hotwords = frames, state, hotwords
        self.position = 0
        self.emissions: list[Emission] = []

    def ahead(self, count: int) -> FloatArray:
        """Return the next frames, so many at most."""
        return self.frames[self.position : self.position + count]

    def hear(self, token: int, skipped: int, logits: FloatArray) -> None:
        """Note a token behind some frames that were skipped; its prediction is still to come."""
        self.emissions.append(Emission(token, self.position + skipped, probability(logits, token)))
        self.position += skipped + 1
        node = self.hotwords.move(self.state.node, token) if self.hotwords else ROOT
        self.state = SearchState((*self.state.context[1:], token), self.state.prediction, node)


def search(
    network: Network,
    frames: FloatArray,
    states: Sequence[SearchState],
    speaks: npt.NDArray[np.bool_],
    blank_penalty: float = 0.0,
    hotwords: Sequence[Hotwords | None] | None = None,
    start_margin: float = 0.0,
) -> tuple[list[list[Emission]], list[SearchState]]:
    """Return the best token of every frame where that one speaks, and the state after the last frame.

    Args:
        network: the decoder and joiner.
        frames: encoder frames [N, T, J].
        states: the state of each stream before the first of them.
        speaks: whether each token id [V] is one to emit; the blank is not.
        blank_penalty: what the blank's logit is lowered by.
        hotwords: the phrases that each stream expects; None is none for all.
        start_margin: what the blank's logit is raised by until the first token comes.

    A prediction changes only where a token comes out. So the frames that follow are joined with it in one
    call for all streams, and each stream goes on behind its first frame that speaks.
    """
    walks = [_Walk(*parts) for parts in zip(frames, states, hotwords or [None] * len(states), strict=True)]
    while active := [walk for walk in walks if walk.position < len(walk.frames)]:
        heard = _walk(network, active, speaks, blank_penalty, start_margin)
        if heard:
            predictions = network.predict([walk.state.context for walk in heard])
            for walk, prediction in zip(heard, predictions, strict=True):
                walk.state = walk.state._replace(prediction=prediction)
    return [walk.emissions for walk in walks], [walk.state for walk in walks]


def _walk(
    network: Network,
    walks: Sequence[_Walk],
    speaks: npt.NDArray[np.bool_],
    blank_penalty: float,
    start_margin: float,
) -> list[_Walk]:
    """Move each walk behind its next frame that speaks, or past those joined; return the former."""
    ahead = [walk.ahead(network.frames_a_join) for walk in walks]
    counts = [len(frames) for frames in ahead]
    predictions = np.array([walk.state.prediction for walk in walks]).repeat(counts, axis=0)
    logits = network.join(np.concatenate(ahead), predictions)
    best = _adjust(logits, walks, counts, blank_penalty, start_margin).argmax(axis=1)
    spoken = speaks[best]
    heard, start = [], 0
    for walk, count in zip(walks, counts, strict=True):
        first = int(spoken[start : start + count].argmax())
        if spoken[start + first]:
            walk.hear(int(best[start + first]), first, logits[start + first])
            heard.append(walk)
        else:
            walk.position += count
        start += count
    return heard


def _adjust(
    logits: FloatArray,
    walks: Sequence[_Walk],
    counts: Sequence[int],
    blank_penalty: float,
    start_margin: float,
) -> FloatArray:
    """Return the logits [R, V], some rows a walk, with what blank and hotwords are changed by."""
    blanks = [start_margin * walk.state.is_start - blank_penalty for walk in walks]
    if not any(blanks) and not any(walk.hotwords for walk in walks):
        return logits
    scores, start = logits.copy(), 0
    for walk, count, blank in zip(walks, counts, blanks, strict=True):
        scores[start : start + count, BLANK] += blank
        if walk.hotwords:
            scores[start : start + count] += walk.hotwords.bonus(walk.state.node)
        start += count
    return scores
