"""The voice gate: the encoder is spared long silence, and the text stays."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from kaldialign import edit_distance
from tiny_model import make_audio

import onebest.bundle
from onebest import ConfigError, EndpointRule, Recognizer
from onebest.gate import SHORTEST_HOLD_FRAMES, VoiceGate

SAMPLES = Path(__file__).parents[2] / "samples"
LEVEL = -70.0
HOLD = SHORTEST_HOLD_FRAMES


@pytest.fixture(scope="module")
def shipped():
    return Recognizer()


def read(name):
    return soundfile.read(SAMPLES / name, dtype="float32")[0][:80000]


def noise(seconds, dbfs):
    random = np.random.default_rng(0)
    return (random.standard_normal(round(seconds * 16000)) * 10 ** (dbfs / 20)).astype(np.float32)


def run(recognizer, monkeypatch, audio, **options):
    """Return the result of audio that comes second by second, and how many chunks the encoder saw."""
    steps, encode = [], type(recognizer.bundle).encode

    def counted(bundle, windows, states):
        steps.append((windows.shape[1] - bundle.sizes.pad_frames) / bundle.sizes.chunk_frames)
        return encode(bundle, windows, states)

    with monkeypatch.context() as patch:
        patch.setattr(type(recognizer.bundle), "encode", counted)
        patch.setattr(onebest.bundle, "_CHUNKS_A_CALL", 1)  # those behind a pause would be encoded twice
        stream = recognizer.stream(**options)
        for piece in np.split(audio, range(16000, len(audio), 16000)):
            stream.accept(piece)
        return stream.finish(), sum(steps)


@pytest.mark.parametrize(("dbfs", "words"), [(-200, 0), (-75, 2)])
def test_long_silence_is_spared_and_the_text_stays(shipped, monkeypatch, dbfs, words):
    """80 s are left out: the least that is whole steps of 400 ms and whole periods of 20 s.

    Hiss is never the same twice, and what the deeper layers remember of it differs by about 1 %: where two
    words are as good as each other, the other one may come out.
    """
    first, second = read("librispeech-2412-153954-0000.flac"), read("librispeech-251-137823-0022.flac")
    audio = np.concatenate([first, noise(100.0, dbfs), second])
    plain, all_steps = run(shipped, monkeypatch, audio, endpoints=True)
    gated, steps = run(shipped, monkeypatch, audio, endpoints=True, silence_dbfs=LEVEL)
    assert [(s.start, s.end) for s in gated.segments] == [(s.start, s.end) for s in plain.segments]
    for ours, theirs in zip(gated.segments, plain.segments, strict=True):
        assert edit_distance(ours.text.split(), theirs.text.split())["total"] <= words
    assert [segment.start > 100 for segment in gated.segments] == [False, True]
    assert (all_steps - steps) * shipped.bundle.sizes.chunk_frames == 80 * 100


def test_silence_at_the_end_is_spared(shipped, monkeypatch):
    audio = np.concatenate([read("librispeech-2412-153954-0000.flac"), noise(30.0, -200)])
    plain, all_steps = run(shipped, monkeypatch, audio)
    gated, steps = run(shipped, monkeypatch, audio, silence_dbfs=LEVEL)
    assert gated == plain
    assert all_steps - steps > 30


def test_an_endpoint_comes_as_early(shipped):
    audio = np.concatenate([read("librispeech-2412-153954-0000.flac"), noise(15.0, -200)])
    moments = []
    for options in ({}, {"silence_dbfs": LEVEL}):
        stream = shipped.stream(endpoints=EndpointRule(silence=8.0, needs_speech=True), **options)
        moments.append([bool(stream.accept(piece).segments) for piece in np.split(audio, 20)])
    assert moments[0] == moments[1]
    assert moments[0][-1]


def test_what_is_louder_is_not_spared(shipped, monkeypatch):
    audio = noise(15.0, LEVEL + 5)
    gated = run(shipped, monkeypatch, audio, silence_dbfs=LEVEL)
    assert gated == run(shipped, monkeypatch, audio)


def test_a_model_that_is_never_silent_is_never_spared(recognizer, monkeypatch):
    audio = np.concatenate([make_audio(2.0), np.zeros(16000 * 20, np.float32)])
    gated = run(recognizer, monkeypatch, audio, silence_dbfs=LEVEL)
    assert gated == run(recognizer, monkeypatch, audio)


def test_what_waits_is_bounded_and_left_out_in_units():
    silence, unit = np.full((100, 80), -15.9, np.float32), 250
    gate = VoiceGate(LEVEL, 0, unit)
    for _ in range(HOLD // 100):
        gate.arrive(silence)
        assert not gate.is_shut
        gate.move(100, spoke=False)
    assert gate.is_shut
    spared = []
    for _ in range(30):
        gate.arrive(silence)
        spared.append(gate.spared_frames)
        gate.move(spared[-1], spoke=False)
    assert set(spared) == {0, unit}
    assert HOLD <= 3000 - sum(spared) < HOLD + unit


def test_a_sound_or_a_token_opens_it():
    silence = np.full((HOLD, 80), -15.9, np.float32)
    for sound, spoke in ((silence + 20, False), (silence, True)):
        gate = VoiceGate(LEVEL, 0, 64)
        gate.arrive(silence)
        gate.move(HOLD, spoke=False)
        assert gate.is_shut
        gate.arrive(sound)
        gate.move(64, spoke)
        assert not gate.is_shut
        assert gate.spared_frames == 0


def test_a_longer_memory_waits_longer():
    gate = VoiceGate(LEVEL, HOLD + 100, 64)
    gate.move(HOLD + 99, spoke=False)
    assert not gate.is_shut
    gate.move(1, spoke=False)
    assert gate.is_shut


def test_a_level_that_is_none_is_refused(recognizer):
    with pytest.raises(ConfigError, match="silence_dbfs is nan"):
        recognizer.stream(silence_dbfs=float("nan"))
