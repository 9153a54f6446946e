"""Streams that advance together get what each gets alone."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny_model import make_audio, write_bundle

import onebest.bundle
from onebest import Recognizer, StreamError
from onebest.bundle import Bundle
from onebest.recognizer import _STREAMS_A_STEP

AUDIOS = [make_audio(seconds, seed) for seed, seconds in enumerate((2.0, 0.7, 1.3, 2.6))]


@pytest.fixture(scope="module", params=["float32", "int8"])
def any_recognizer(request, tiny_folder, tmp_path_factory):
    """The tiny model as it is, and with products whose int8 steps come from the whole batch."""
    if request.param == "float32":
        return Recognizer(tiny_folder)
    folder = write_bundle(tmp_path_factory.mktemp("int8") / "model")
    (folder / "card.json").unlink()
    for part in ("encoder", "decoder", "joiner"):
        path = folder / f"{part}.onnx"
        model = onnx.load(path)
        for number, node in enumerate(model.graph.node):
            node.name = f"node_{number}"
        quantize_dynamic(model, path, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    recognizer = Recognizer(folder)
    assert recognizer.bundle.encoder.mixes_batch
    return recognizer


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_any_order_and_any_batches(any_recognizer, seed):
    random = np.random.default_rng(seed)
    streams = [any_recognizer.stream() for _ in AUDIOS]
    waiting = [np.split(audio, np.sort(random.integers(0, len(audio), 4))) for audio in AUDIOS]
    while any(not stream.result.is_final for stream in streams):
        for stream, pieces in zip(streams, waiting, strict=True):
            if pieces and random.random() < 0.5:
                stream.push(pieces.pop(0))
                if not pieces:
                    stream.end()
        some = random.permutation(len(streams))[: random.integers(1, len(streams) + 1)]
        any_recognizer.advance([streams[number] for number in some])
    assert [stream.result for stream in streams] == [any_recognizer.transcribe(audio) for audio in AUDIOS]


def test_more_streams_than_a_step_takes(recognizer):
    streams = [recognizer.stream() for _ in range(2 * _STREAMS_A_STEP + 1)]
    for number, stream in enumerate(streams):
        stream.push(AUDIOS[0][number * 500 :])
        stream.end()
    while any(stream.ready for stream in streams):
        recognizer.advance(streams)
    for number, stream in enumerate(streams):
        assert stream.result == recognizer.transcribe(AUDIOS[0][number * 500 :])


@pytest.mark.parametrize(("states", "expected"), [(0.5, [1, 1, 1, 1]), (2.5, [2, 2]), (100, [4])])
def test_a_call_takes_the_streams_whose_states_fit_together(tiny_folder, monkeypatch, states, expected):
    state = Recognizer(tiny_folder).start_state.encoder
    limit = int(states * sum(cache.nbytes for cache in state.caches))
    monkeypatch.setattr(onebest.bundle, "_STATE_BYTES_A_CALL", limit)
    recognizer = Recognizer(tiny_folder)
    made, encode = [], Bundle.encode

    def note(bundle, windows, states):
        made.append(len(states))
        return encode(bundle, windows, states)

    monkeypatch.setattr(Bundle, "encode", note)
    streams = [recognizer.stream() for _ in AUDIOS]
    for stream, audio in zip(streams, AUDIOS, strict=True):
        stream.push(audio)
    recognizer.advance(streams)
    assert made == expected


def test_one_call_is_one_chunk(recognizer):
    first, second = recognizer.stream(), recognizer.stream()
    first.push(AUDIOS[0])
    recognizer.advance([first, second, first])
    assert first.ready
    assert not second.ready
    chunk = recognizer.bundle.sizes.chunk_frames
    assert first.state.encoder.processed_frames == chunk
    assert first.result.tokens
    assert first.result.tokens == recognizer.stream().accept(AUDIOS[0][: chunk * 160 + 600]).tokens


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_what_a_window_lacks_completes_it(recognizer, rate):
    stream, audio, at = recognizer.stream(rate), np.tile(AUDIOS[0], 3), 0

    def push(count):
        nonlocal at
        stream.push(audio[at : at + count])
        at += count

    for first in (1, 700, 3000, 400):
        push(first)
        if (lacking := round(stream.missing_seconds * rate)) > 1:
            push(lacking - 1)
            assert not stream.ready
            push(1)
        assert stream.missing_seconds == pytest.approx(0, abs=1 / rate)
        assert stream.ready or rate != 16000
        while not stream.ready:
            push(1)
        recognizer.advance([stream])


def test_pushing_recognises_nothing(recognizer):
    stream = recognizer.stream()
    stream.push(AUDIOS[0])
    assert stream.ready
    assert not stream.result.tokens
    assert stream.result.duration == 2.0


def test_ending_is_final_when_the_last_window_is_done(recognizer):
    stream = recognizer.stream()
    stream.push(AUDIOS[1])
    stream.end()
    while stream.ready:
        assert not stream.result.is_final
        recognizer.advance([stream])
    assert stream.result == recognizer.transcribe(AUDIOS[1])
    for late in (stream.end, lambda: stream.push(AUDIOS[1])):
        with pytest.raises(StreamError, match="Get a new one"):
            late()


def test_windows_of_two_lengths(tiny_folder):
    offline = Recognizer(tiny_folder, chunk_ms=8000)
    streams = [offline.stream() for _ in AUDIOS]
    for stream, audio in zip(streams, AUDIOS, strict=True):
        stream.push(audio)
        stream.end()
    offline.advance(streams)
    assert [stream.result for stream in streams] == [offline.transcribe(audio) for audio in AUDIOS]


def test_a_stream_of_another_recognizer_is_refused(recognizer, tiny_folder):
    stream = Recognizer(tiny_folder).stream()
    with pytest.raises(StreamError, match="another Recognizer"):
        recognizer.advance([stream])


def test_a_step_that_fails_changes_nothing(recognizer, monkeypatch):
    stream = recognizer.stream()
    stream.push(AUDIOS[0])
    with monkeypatch.context() as patch:
        patch.setattr(type(recognizer.bundle), "join", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recognizer.advance([stream])
    assert stream.finish() == recognizer.transcribe(AUDIOS[0])


def test_a_margin_keeps_the_first_token_back_and_no_other(recognizer):
    some, silent = (Recognizer(recognizer.bundle, start_margin=margin) for margin in (1.0, 1e9))
    for audio in AUDIOS:
        tokens = recognizer.transcribe(audio).tokens
        later = some.transcribe(audio).tokens
        assert later[0].start >= tokens[0].start
        assert not silent.transcribe(audio).tokens


def test_the_margin_of_the_card_is_kept_unless_another_is_named(recognizer):
    card = {**recognizer.bundle.card, "architecture": {"start_margin": 1e9}}
    bundle = replace(recognizer.bundle, card=card)
    assert not Recognizer(bundle).transcribe(AUDIOS[0]).tokens
    assert Recognizer(bundle, start_margin=0.0).transcribe(AUDIOS[0]) == recognizer.transcribe(AUDIOS[0])


def test_a_blank_penalty_makes_it_say_more(recognizer):
    keener = Recognizer(recognizer.bundle, blank_penalty=1.0)
    assert len(keener.transcribe(AUDIOS[0]).tokens) > len(recognizer.transcribe(AUDIOS[0]).tokens)
    np.testing.assert_array_less(0, [token.confidence for token in keener.transcribe(AUDIOS[0]).tokens])
