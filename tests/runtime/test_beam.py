"""Beam search within a chunk: the best text of all alignments, for good at the chunk's end."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import CONTEXT, SPEAKS, VOCABULARY_SIZE, WIDTH, RandomNetwork, make_frames, pairs

from onebest import Recognizer
from onebest.beam import BeamSearch
from onebest.cli import main
from onebest.errors import ConfigError
from onebest.hotwords import Hotwords
from onebest.search import search, start_state
from onebest.vocabulary import parse_vocabulary

SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*.flac"))
ALL_SPEAK = np.arange(VOCABULARY_SIZE) > 0
EVERYTHING = 10**6


def find(network, frames, *, beam, chunk_frames=100, speaks=SPEAKS, least=-math.inf, states=None, **options):
    states = states or [start_state(network, CONTEXT)] * len(frames)
    return BeamSearch(network, beam, chunk_frames, speaks, least=least, **options)(frames, states)


def confidences(emissions):
    return [emission.confidence for emission in emissions]


def brute_force(network, frames, penalty=0.0, margin=0.0):
    """Return the log-probability of each text, and the frames of its best alignment, from all alignments."""
    found = {}
    for path in itertools.product([0, *np.flatnonzero(SPEAKS)], repeat=len(frames)):
        context, score, emissions = (-1, 0), 0.0, []
        for index, token in enumerate(path):
            logits = network.join(frames[index][None], network.predict([context]))[0].astype(float)
            logits[0] += (0 if emissions else margin) - penalty
            logits[[0, *np.flatnonzero(SPEAKS)]] -= np.logaddexp.reduce(logits[[0, *np.flatnonzero(SPEAKS)]])
            score += logits[token]
            if token:
                emissions.append((int(token), index))
                context = (context[1], int(token))
        text = tuple(token for token, _ in emissions)
        total, best, alignment = found.get(text, (-math.inf, -math.inf, None))
        better = score > best
        found[text] = (np.logaddexp(total, score), max(best, score), emissions if better else alignment)
    return found


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    bias=st.floats(-1, 3),
    penalty=st.sampled_from([0.0, 0.7]),
    margin=st.sampled_from([0.0, 1.0]),
)
def test_a_wide_beam_finds_the_likeliest_text(seed, bias, penalty, margin):
    network, frames = RandomNetwork(seed, bias), make_frames(seed + 1, 1, 3)
    options = {"blank_penalty": penalty, "start_margin": margin}
    (found,), (state,) = find(network, frames, beam=EVERYTHING, **options)
    texts = brute_force(network, frames[0], penalty, margin)
    total, _, alignment = texts[tuple(emission.token for emission in found)]
    assert total == pytest.approx(max(total for total, _, _ in texts.values()), abs=1e-4)
    assert pairs(found) == alignment
    context = (-1, 0, *(emission.token for emission in found))[-2:]
    assert state.context == context
    np.testing.assert_allclose(state.prediction, network.predict([context])[0], rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(0, 40),
    bias=st.floats(-2, 4),
    options=st.fixed_dictionaries(
        {name: st.sampled_from([0.0, 1.0]) for name in ("blank_penalty", "start_margin")}
    ),
)
def test_a_beam_of_one_is_greedy_search(seed, length, bias, options):
    network, frames = RandomNetwork(seed, bias), make_frames(seed + 1, 2, length)
    states = [start_state(network, CONTEXT)] * 2
    expected, after = search(network, frames, states, ALL_SPEAK, **options)
    found, ends = find(network, frames, beam=1, speaks=ALL_SPEAK, **options)
    assert [confidences(each) for each in found] == [
        pytest.approx(confidences(each), abs=1e-5) for each in expected
    ]
    assert [pairs(each) for each in found] == [pairs(each) for each in expected]
    assert [end.context for end in ends] == [end.context for end in after]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), chunks=st.integers(0, 3), beam=st.sampled_from([2, 4]))
def test_calls_of_whole_chunks_find_what_one_finds(seed, chunks, beam):
    """Chunks are longer than what is joined at once."""
    network, frames, options = RandomNetwork(seed, 1.0), make_frames(seed + 1, 1, 60), {"chunk_frames": 20}
    (whole,), (end,) = find(network, frames, beam=beam, **options)
    cut = 20 * chunks
    (first,), between = find(network, frames[:, :cut], beam=beam, **options)
    (second,), (state,) = find(network, frames[:, cut:], beam=beam, states=between, **options)
    assert pairs(first) + [(token, cut + frame) for token, frame in pairs(second)] == pairs(whole)
    assert state.context == end.context


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_what_is_unlikely_changes_nothing_that_is_likely(seed):
    """Where the network is sure of itself, leaving the rest aside finds the same."""
    network, frames = RandomNetwork(seed, 1.0), make_frames(seed + 1, 1, 20)
    network._out *= 20
    (found,), _ = find(network, frames, beam=3, least=math.log(0.005))
    (expected,), _ = find(network, frames, beam=3)
    assert pairs(found) == pairs(expected)


def test_hotwords_decide_between_texts():
    vocabulary = parse_vocabulary(b"<blk> 0\n\xe2\x96\x81ab 1\n\xe2\x96\x81ac 2\n", "tokens.txt")

    class Network(RandomNetwork):
        def join(self, frames, predictions):
            logits = np.tile(np.array([0, 3, 2.5], np.float32), (len(frames), 1))
            logits[frames[:, 0] < 1] = (9, 0, 0)
            return logits

    network, frames = Network(0, 0.0), np.zeros((1, 6, WIDTH), np.float32)
    frames[0, 2] = 1
    states = [start_state(network, CONTEXT)]
    beam = BeamSearch(network, 4, 6, vocabulary.speaks)
    assert pairs(beam(frames, states)[0][0]) == [(1, 2)]
    (expected,) = beam(frames, states, [Hotwords(vocabulary, ["ac"])])[0]
    assert pairs(expected) == [(2, 2)]
    assert expected[0].confidence == pytest.approx(1 / (1 + math.exp(0.5) + math.exp(-2.5)))


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer(beam=4)


@pytest.fixture(scope="module")
def audio():
    return np.concatenate([soundfile.read(path, dtype="float32")[0][:64_000] for path in SAMPLES[:2]])


@pytest.mark.parametrize("size", [800, 5000, 33_333])
def test_results_only_grow_however_the_audio_is_cut(recognizer, audio, size):
    whole, stream, before = recognizer.transcribe(audio), recognizer.stream(), ""
    for start in range(0, len(audio), size):
        text = stream.accept(audio[start : start + size]).text
        assert text.startswith(before)
        before = text
    found = stream.finish()
    assert [(token.token, token.start) for token in found.tokens] == [
        (token.token, token.start) for token in whole.tokens
    ]
    assert found.text.startswith(before)
    assert len(found.text) > 40


def test_several_streams_hear_what_each_hears_alone(recognizer, audio):
    streams = [recognizer.stream() for _ in range(3)]
    pieces = [audio, audio[30_000:], audio[::-1].copy()]
    for stream, piece in zip(streams, pieces, strict=True):
        stream.push(piece)
        stream.end()
    while any(stream.ready for stream in streams):
        recognizer.advance(streams)
    for stream, piece in zip(streams, pieces, strict=True):
        assert stream.result.text == recognizer.transcribe(piece).text


def test_a_beam_below_one_is_refused(capsys):
    with pytest.raises(ConfigError, match="beam of 0"):
        Recognizer(beam=0)
    assert main(["transcribe", str(SAMPLES[0]), "--beam", "-1"]) == 1
    assert "Choose 1 for greedy search" in capsys.readouterr().err


def test_the_command_takes_a_beam(recognizer, capsys):
    assert main(["transcribe", str(SAMPLES[0]), "--beam", "4", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == recognizer.transcribe(SAMPLES[0]).text
