"""The runtime takes several chunks of a stream in one call, and gives what it gives chunk by chunk."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_checkpoint import make_features

from onebest import Recognizer
from onebest.bundle import load_bundle

RATE = 16000


def make_speech(seconds, seed):
    """Return noise that rises and falls, so that the tiny model speaks."""
    random = np.random.default_rng(seed)
    level = np.abs(np.sin(np.arange(int(seconds * RATE)) / 2000))
    return (random.normal(0, 0.1, int(seconds * RATE)) * level).astype(np.float32)


def in_pieces(stream, audio, size):
    for start in range(0, len(audio), size):
        stream.accept(audio[start : start + size])
    return stream.finish()


@pytest.fixture(scope="module", params=["float", "int8"])
def recognizer(request):
    return Recognizer(load_bundle(request.getfixturevalue(f"{request.param}_bundle")))


@pytest.fixture
def calls(recognizer, monkeypatch):
    """The sizes of the encoder's calls: streams and encoder frames."""
    made, encode = [], type(recognizer.bundle).encode

    def note(bundle, windows, states):
        frames, after = encode(bundle, windows, states)
        made.append(frames.shape[:2])
        return frames, after

    monkeypatch.setattr(type(recognizer.bundle), "encode", note)
    return made


def test_a_long_piece_is_what_its_chunks_are(recognizer, calls):
    audio = make_speech(7.3, 0)
    whole = recognizer.transcribe(audio)
    assert max(frames for _, frames in calls) == 8 * 4
    calls.clear()
    assert in_pieces(recognizer.stream(), audio, 1000) == whole
    assert len(calls) > 40
    assert set(calls[:-1]) == {(1, 4)}  # the last has the silence that is added
    assert len(whole.tokens) > 10


def test_streams_with_more_and_less_behind_them(recognizer, calls):
    audios = [make_speech(seconds, seed) for seed, seconds in enumerate((5.0, 0.4, 2.0, 2.0, 1.1))]
    streams = [recognizer.stream() for _ in audios]
    for stream, audio in zip(streams, audios, strict=True):
        stream.push(audio)
        stream.end()
    while any(stream.ready for stream in streams):
        recognizer.advance(streams)
    assert max(frames for _, frames in calls) == 8 * 4
    for stream, audio in zip(streams, audios, strict=True):
        assert stream.result == in_pieces(recognizer.stream(), audio, 777)


def test_segments_end_where_they_end_chunk_by_chunk(recognizer):
    audio = np.concatenate([make_speech(2, 0), np.zeros(4 * RATE, np.float32), make_speech(2, 1)])
    stream = recognizer.stream(endpoints=True)
    stream.accept(audio)
    assert stream.finish() == in_pieces(recognizer.stream(endpoints=True), audio, 1600)


def test_the_voice_gate_is_asked_before_every_chunk(recognizer, calls):
    audio = np.concatenate([make_speech(2, 0), np.zeros(20 * RATE, np.float32), make_speech(2, 1)])
    stream = recognizer.stream(silence_dbfs=-60)
    stream.accept(audio)
    stream.finish()
    assert {frames for _, frames in calls} == {4}


def test_other_latencies(recognizer):
    for chunk_ms, chunks in ((40, 8), (640, 8), (2560, 4), (20_000, 1)):
        other = Recognizer(recognizer.bundle, chunk_ms=chunk_ms)
        assert other.bundle.chunks_a_call == chunks
        audio = make_speech(11.7, 3)
        assert other.transcribe(audio).text == in_pieces(other.stream(), audio, 4000).text


def test_a_graph_without_the_input_runs_chunk_by_chunk(recognizer, calls):
    encoder = replace(recognizer.bundle.encoder, option_names=frozenset())
    older = Recognizer(replace(recognizer.bundle, encoder=encoder))
    audio = make_speech(3, 4)
    assert older.transcribe(audio) == recognizer.transcribe(audio)
    assert (1, 4) in calls


def test_features_of_several_chunks_need_no_state_between(recognizer):
    bundle = recognizer.bundle
    features = make_features(1, 16 * 8 + 3)
    frames, (state,) = bundle.encode(features, [bundle.start_state()])
    assert frames.shape[1] == 32
    assert state.processed_frames == 128
