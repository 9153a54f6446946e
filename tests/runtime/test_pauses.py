"""A stream begins anew after a pause: what comes then is heard as in a stream of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import onebest.recognizer
from onebest import Recognizer

RATE = 16000
#: Samples of an encoder frame.
FRAME = 640
SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*.flac"))
FIRST, SECOND = (soundfile.read(path, dtype="float32")[0][: 5 * RATE] for path in SAMPLES[:2])


@pytest.fixture(scope="module")
def shipped():
    return Recognizer()


@pytest.fixture(scope="module")
def audio():
    return np.concatenate([FIRST, np.zeros(2 * RATE, np.float32), SECOND])


@pytest.fixture(scope="module")
def whole(shipped, audio):
    return run(shipped, [audio])


def run(recognizer, pieces, **options):
    stream = recognizer.stream(endpoints=True, **options)
    for piece in pieces:
        stream.accept(piece)
    return stream.finish()


def beginnings(recognizer, audio):
    """Return the samples before each chunk with which a stream begins anew."""
    stream, found = recognizer.stream(endpoints=True), []
    for start in range(0, len(audio), FRAME):
        stream.accept(audio[start : start + FRAME])
        frames = stream.state.encoder.processed_frames
        if frames == 0 and stream._encoder_frames and FRAME * stream._encoder_frames not in found:
            found.append(FRAME * stream._encoder_frames)
    return found


def test_what_comes_after_a_pause_is_heard_alone(shipped, audio, whole):
    (start,) = beginnings(shipped, audio)
    assert start % (shipped.bundle.sizes.chunk_frames * FRAME // 4) == 0
    assert len(FIRST) < start < len(FIRST) + 2 * RATE
    alone = run(shipped, [audio[start:]])
    after = [token for token in whole.tokens if token.start >= start / RATE]
    assert [token.token for token in after] == [token.token for token in alone.tokens]
    times = [token.start - start / RATE for token in after]
    assert times == pytest.approx([token.start for token in alone.tokens])
    assert len(after) > 10


def test_endpoints_make_no_difference(shipped, audio, whole):
    assert shipped.transcribe(audio).tokens == whole.tokens
    assert len(whole.segments) == 2


def test_a_model_that_names_no_pause_remembers(shipped, audio, whole):
    architecture = {**shipped.bundle.card["architecture"], "pause_ms": 0}
    bundle = replace(shipped.bundle, card={**shipped.bundle.card, "architecture": architecture})
    stream = Recognizer(bundle).stream(endpoints=True)
    stream.accept(audio)
    assert stream.state.encoder.processed_frames > len(audio) // 160 - 100
    assert stream.finish().tokens != whole.tokens


@settings(deadline=None, max_examples=6)
@given(cuts=st.lists(st.integers(0, 12 * RATE), max_size=5).map(sorted))
def test_the_cutting_makes_no_difference(shipped, audio, whole, cuts):
    assert run(shipped, np.split(audio, cuts)) == whole


def test_several_chunks_a_call_make_no_difference(audio, whole, monkeypatch):
    monkeypatch.setattr(onebest.bundle, "_CHUNKS_A_CALL", 1)
    assert run(Recognizer(), [audio]) == whole


def test_hotwords_go_on(shipped, audio):
    spoken = run(shipped, [audio], hotwords=["village"])
    assert run(shipped, np.split(audio, [3 * RATE, 9 * RATE]), hotwords=["village"]) == spoken


def test_silence_alone_begins_nothing(shipped):
    stream = shipped.stream(endpoints=True)
    stream.accept(np.zeros(5 * RATE, np.float32))
    assert stream.state.encoder.processed_frames > 400


@pytest.mark.parametrize("cut_frames", range(0, 10, 3))
def test_a_segment_does_not_end_in_what_completes_the_last_window(shipped, cut_frames):
    """So the words come with the last answer, which is what some clients keep of all."""
    audio = soundfile.read(SAMPLES[2], dtype="float32")[0]
    audio = audio[: len(audio) - cut_frames * FRAME]
    stream = shipped.stream(endpoints=True)
    stream.push(audio)
    stream.end()
    taken = []
    while stream.ready:
        shipped.advance([stream])
        taken.append(stream.take_segments())
    assert [bool(segments) for segments in taken] == [False] * (len(taken) - 1) + [True]
    assert taken[-1][-1].text == shipped.transcribe(audio).text
