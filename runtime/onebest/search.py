"""Greedy transducer search: encoder frames in, tokens out, one symbol a frame at most.

The state between two calls is a value. The search asks a ``Network`` for its two small steps and knows
nothing else of the model.

Axis legend: T encoder frames (40 ms), J joiner width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class Network(Protocol):
    """What the search needs of a model."""

    def predict(self, context: tuple[int, ...]) -> FloatArray:
        """Return the decoder's output [1, J] for the last tokens, the newest at the end."""
        ...

    def join(self, frames: FloatArray, prediction: FloatArray) -> FloatArray:
        """Return the logits [T, V] of frames [T, J] that all follow one prediction [1, J]."""
        ...


class SearchState(NamedTuple):
    """The last tokens, and what the decoder says of them."""

    context: tuple[int, ...]
    prediction: FloatArray


class Emission(NamedTuple):
    """A token and the frame it came at, counted from the first frame of the call."""

    token: int
    frame: int


def start_state(network: Network, context_size: int) -> SearchState:
    """Return the state before the first frame: no token yet (-1), then a blank."""
    context = (-1,) * (context_size - 1) + (0,)
    return SearchState(context, network.predict(context))


def search(
    network: Network, frames: FloatArray, state: SearchState, speaks: npt.NDArray[np.bool_]
) -> tuple[list[Emission], SearchState]:
    """Return the best token of every frame where that one speaks, and the state after the last frame.

    Args:
        network: the decoder and joiner.
        frames: encoder frames [T, J].
        state: the state before the first of them.
        speaks: whether each token id [V] is one to emit; the blank is not.

    The prediction changes only where a token comes out, so all frames left are joined with it in one call and
    the search goes on behind the first that speaks.
    """
    emissions: list[Emission] = []
    start = 0
    while start < len(frames):
        best = network.join(frames[start:], state.prediction).argmax(axis=1)
        spoken = speaks[best]
        first = int(spoken.argmax())
        if not spoken[first]:
            break
        token, frame = int(best[first]), start + first
        emissions.append(Emission(token, frame))
        context = (*state.context[1:], token)
        state = SearchState(context, network.predict(context))
        start = frame + 1
    return emissions, state
