import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onebest.search import Emission, search, start_state

WIDTH, VOCABULARY_SIZE, CONTEXT = 6, 9, 2
SPEAKS = np.array([token not in (0, 2) for token in range(VOCABULARY_SIZE)])


class RandomNetwork:
    """A decoder and joiner with random weights, each call counted."""

    def __init__(self, seed: int, blank_bias: float):
        random = np.random.default_rng(seed)
        self._rows = random.standard_normal((CONTEXT, VOCABULARY_SIZE + 1, WIDTH)).astype(np.float32)
        self._out = random.standard_normal((WIDTH, VOCABULARY_SIZE)).astype(np.float32)
        self._bias = np.array([blank_bias] + [0] * (VOCABULARY_SIZE - 1), np.float32)
        self.calls = 0

    def predict(self, context):
        self.calls += 1
        return sum(self._rows[place, token] for place, token in enumerate(context))[None]

    def join(self, frames, prediction):
        self.calls += 1
        return np.tanh(frames + prediction) @ self._out + self._bias


def brute_force(network, frames):
    context, found = [-1, 0], []
    for index, frame in enumerate(frames):
        token = int(network.join(frame[None], network.predict(tuple(context)))[0].argmax())
        if token not in (0, 2):
            found.append(Emission(token, index))
            context = [*context[1:], token]
    return found, tuple(context)


@given(seed=st.integers(0, 10**6), length=st.integers(0, 30), bias=st.floats(-2, 4))
def test_equal_to_brute_force(seed, length, bias):
    network = RandomNetwork(seed, bias)
    frames = np.random.default_rng(seed + 1).standard_normal((length, WIDTH)).astype(np.float32)
    found, state = search(network, frames, start_state(network, CONTEXT), SPEAKS)
    assert (found, state.context) == brute_force(network, frames)


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 20))
def test_two_calls_find_what_one_finds(seed, cut):
    network = RandomNetwork(seed, 1.0)
    frames = np.random.default_rng(seed + 1).standard_normal((20, WIDTH)).astype(np.float32)
    whole, end = search(network, frames, start_state(network, CONTEXT), SPEAKS)
    first, between = search(network, frames[:cut], start_state(network, CONTEXT), SPEAKS)
    second, state = search(network, frames[cut:], between, SPEAKS)
    assert first + [Emission(token, cut + frame) for token, frame in second] == whole
    assert state.context == end.context


def test_silence_costs_one_call():
    network = RandomNetwork(0, 100.0)
    state = start_state(network, CONTEXT)
    network.calls = 0
    assert search(network, np.zeros((100, WIDTH), np.float32), state, SPEAKS) == ([], state)
    assert network.calls == 1
