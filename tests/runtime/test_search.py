import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebest.search import search, start_state

WIDTH, VOCABULARY_SIZE, CONTEXT = 6, 9, 2
SPEAKS = np.array([token not in (0, 2) for token in range(VOCABULARY_SIZE)])


class RandomNetwork:
    """A decoder and joiner with random weights, each call counted."""

    def __init__(self, seed: int, blank_bias: float, frames_a_join: int = 16):
        random = np.random.default_rng(seed)
        self._rows = random.standard_normal((CONTEXT, VOCABULARY_SIZE + 1, WIDTH)).astype(np.float32)
        self._out = random.standard_normal((WIDTH, VOCABULARY_SIZE)).astype(np.float32)
        self._bias = np.array([blank_bias] + [0] * (VOCABULARY_SIZE - 1), np.float32)
        self.frames_a_join = frames_a_join
        self.calls = 0

    def predict(self, contexts):
        self.calls += 1
        return self._rows[range(CONTEXT), np.array(contexts)].sum(1)

    def join(self, frames, predictions):
        self.calls += 1
        assert len(frames) == len(predictions)
        return (np.tanh(frames + predictions)[:, None] @ self._out)[:, 0] + self._bias


def make_frames(seed, *lengths):
    return np.random.default_rng(seed).standard_normal((*lengths, WIDTH)).astype(np.float32)


def pairs(emissions):
    return [(token, frame) for token, frame, _ in emissions]


def brute_force(network, frames, penalty=0.0, margin=0.0):
    context, found = [-1, 0], []
    for index, frame in enumerate(frames):
        logits = network.join(frame[None], network.predict([tuple(context)]))[0]
        logits[0] += (0 if found else margin) - penalty
        token = int(logits.argmax())
        if token not in (0, 2):
            found.append((token, index))
            context = [*context[1:], token]
    return found, tuple(context)


@given(
    seed=st.integers(0, 10**6),
    streams=st.integers(1, 4),
    length=st.integers(0, 30),
    bias=st.floats(-2, 4),
    penalty=st.sampled_from([0.0, 0.7]),
    margin=st.sampled_from([0.0, 0.7, 3.0]),
    frames_a_join=st.sampled_from([1, 3, 16]),
)
def test_equal_to_brute_force(seed, streams, length, bias, penalty, margin, frames_a_join):
    network = RandomNetwork(seed, bias, frames_a_join)
    frames = make_frames(seed + 1, streams, length)
    states = [start_state(network, CONTEXT)] * streams
    found, after = search(network, frames, states, SPEAKS, penalty, start_margin=margin)
    for stream in range(streams):
        expected = brute_force(network, frames[stream], penalty, margin)
        assert (pairs(found[stream]), after[stream].context) == expected
        np.testing.assert_array_equal(after[stream].prediction, network.predict([after[stream].context])[0])


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 20))
def test_two_calls_find_what_one_finds(seed, cut):
    network = RandomNetwork(seed, 1.0)
    frames = make_frames(seed + 1, 1, 20)
    start = [start_state(network, CONTEXT)]
    (whole,), (end,) = search(network, frames, start, SPEAKS)
    (first,), between = search(network, frames[:, :cut], start, SPEAKS)
    (second,), (state,) = search(network, frames[:, cut:], between, SPEAKS)
    assert pairs(first) + [(token, cut + frame) for token, frame in pairs(second)] == pairs(whole)
    assert state.context == end.context


def test_confidence_is_the_softmax_of_the_logits():
    network = RandomNetwork(3, -2.0)
    frames = make_frames(4, 1, 20)
    (found,), _ = search(network, frames, [start_state(network, CONTEXT)], SPEAKS, blank_penalty=1.0)
    context = (-1, 0)
    for token, frame, confidence in found:
        weights = np.exp(network.join(frames[0, frame][None], network.predict([context]))[0])
        assert confidence == pytest.approx(weights[token] / weights.sum(), rel=1e-5)
        context = (context[1], token)
    assert len(found) > 5


def test_silence_costs_a_call_for_all_streams():
    network = RandomNetwork(0, 100.0)
    states = [start_state(network, CONTEXT)] * 5
    network.calls = 0
    assert search(network, np.zeros((5, 16, WIDTH), np.float32), states, SPEAKS) == ([[]] * 5, states)
    assert network.calls == 1
