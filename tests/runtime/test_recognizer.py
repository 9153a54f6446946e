import math
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CHUNK, make_audio, make_encoder, write_bundle

from onebest import AudioError, ConfigError, ModelError, Recognizer, StreamError
from onebest.recognizer import TAIL_SAMPLES

AUDIO = make_audio(2.0)
CUTS = st.lists(st.integers(0, len(AUDIO)), max_size=10).map(sorted)


def in_pieces(recognizer, samples, cuts, rate=16000):
    """Return every result along the way, the final one last."""
    stream = recognizer.stream(rate)
    results = [stream.accept(piece) for piece in np.split(samples, cuts)]
    return [*results, stream.finish()]


@settings(deadline=None)
@given(cuts=CUTS)
def test_any_cutting_gives_the_tokens_of_the_whole(recognizer, cuts):
    results = in_pieces(recognizer, AUDIO, cuts)
    assert results[-1] == recognizer.transcribe(AUDIO)
    assert len(results[-1].tokens) > 10


def test_one_sample_at_a_time(recognizer):
    short = AUDIO[:4000]
    assert in_pieces(recognizer, short, range(1, len(short)))[-1] == recognizer.transcribe(short)


@settings(deadline=None)
@given(cuts=CUTS)
def test_partial_results_only_grow(recognizer, cuts):
    results = in_pieces(recognizer, AUDIO, cuts)
    for earlier, later in pairwise(results):
        assert later.tokens[: len(earlier.tokens)] == earlier.tokens
        assert later.text.startswith(earlier.text)
        assert not earlier.is_final
    assert results[-1].is_final


@settings(deadline=None)
@given(length=st.integers(0, len(AUDIO)))
def test_what_follows_never_changes_what_came(recognizer, length):
    stream = recognizer.stream()
    early = stream.accept(AUDIO[:length])
    assert stream.accept(AUDIO[length:]).tokens[: len(early.tokens)] == early.tokens
    assert recognizer.transcribe(AUDIO[:length]).tokens[: len(early.tokens)] == early.tokens


def test_two_interleaved_streams_are_two_separate_ones(recognizer):
    audios = [make_audio(2.0, seed) for seed in (1, 2)]
    streams = [recognizer.stream() for _ in audios]
    for start in range(0, len(audios[0]), 1111):
        for stream, audio in zip(streams, audios, strict=True):
            stream.accept(audio[start : start + 1111])
    together = [stream.finish() for stream in streams]
    assert together == [recognizer.transcribe(audio) for audio in audios]
    assert together[0].tokens != together[1].tokens


def test_a_long_piece_is_the_same_as_short_ones(recognizer):
    audio = make_audio(25.0)
    assert recognizer.transcribe(audio) == in_pieces(recognizer, audio, range(1600, len(audio), 1600))[-1]


@pytest.mark.parametrize("cache", [0, 1])
def test_the_tokens_depend_on_each_cache(recognizer, monkeypatch, cache):
    expected = recognizer.transcribe(AUDIO)
    encode = type(recognizer.bundle).encode

    def forgetful(bundle, windows, states):
        caches = list(states[0].caches)
        caches[cache] = np.zeros_like(caches[cache])
        return encode(bundle, windows, [states[0]._replace(caches=tuple(caches))])

    monkeypatch.setattr(type(recognizer.bundle), "encode", forgetful)
    assert recognizer.transcribe(AUDIO).tokens != expected.tokens


def test_int16_is_float32(recognizer):
    integers = (AUDIO * 32767).astype(np.int16)
    assert recognizer.transcribe(integers) == recognizer.transcribe(integers / np.float32(32768))


@settings(deadline=None, max_examples=30)
@given(rate=st.sampled_from([8000, 22050, 44100, 48000]), data=st.data())
def test_other_rates_in_any_cutting(recognizer, rate, data):
    audio = make_audio(1.0, rate=rate)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(audio)), max_size=6)))
    whole = recognizer.transcribe(audio, rate)
    assert in_pieces(recognizer, audio, cuts, rate)[-1] == whole
    assert whole.duration == 1.0
    assert whole.tokens


def test_times_and_text_of_tokens(recognizer):
    result = recognizer.transcribe(AUDIO)
    starts = [token.start for token in result.tokens]
    assert starts == sorted(set(starts))
    assert all(round(start * 1000) % 40 == 0 for start in starts)
    assert 0 <= starts[0] <= starts[-1] <= 2.0 + TAIL_SAMPLES / 16000 + CHUNK / 100
    assert result.tokens[0].token in result.text


@pytest.mark.parametrize("length", [0, 1, 159, 160, 5119, 5120, 5121, 16000])
def test_all_audio_and_the_tail_are_inside_whole_chunks(recognizer, monkeypatch, length):
    windows = []
    encode = type(recognizer.bundle).encode

    def watched(bundle, batch, states):
        windows.append(batch.shape[1])
        return encode(bundle, batch, states)

    monkeypatch.setattr(type(recognizer.bundle), "encode", watched)
    recognizer.transcribe(AUDIO[:length])
    assert set(windows) <= {recognizer.bundle.sizes.window_frames}
    seen = len(windows) * CHUNK * 160
    if length:
        assert length + TAIL_SAMPLES <= seen < length + TAIL_SAMPLES + CHUNK * 160 + 160
    else:
        assert not windows


@settings(deadline=None)
@given(cuts=CUTS)
def test_another_latency_in_any_cutting(tiny_folder, cuts):
    faster = Recognizer(tiny_folder, chunk_ms=160, left_context=5)
    assert faster.bundle.sizes.window_frames == 19
    assert in_pieces(faster, AUDIO, cuts)[-1] == faster.transcribe(AUDIO)


def test_a_very_long_chunk_ends_with_the_tail(tiny_folder, monkeypatch):
    offline = Recognizer(tiny_folder, chunk_ms=8000)
    windows = []
    encode = type(offline.bundle).encode

    def watched(bundle, batch, states):
        windows.append(batch.shape[1])
        return encode(bundle, batch, states)

    monkeypatch.setattr(type(offline.bundle), "encode", watched)
    audio = make_audio(10.01)
    result = offline.transcribe(audio)
    assert windows == [803, 252 + 3]
    assert in_pieces(offline, audio, [77, 100000])[-1] == result
    assert len(result.tokens) > 10


def test_a_loaded_bundle_serves_several_recognizers(recognizer):
    other = Recognizer(recognizer.bundle, chunk_ms=640)
    assert other.bundle.encoder is recognizer.bundle.encoder
    assert other.transcribe(AUDIO).tokens != recognizer.transcribe(AUDIO).tokens


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"chunk_ms": 0}, "multiple of 40 ms"),
        ({"chunk_ms": 100}, "multiple of 40 ms"),
        ({"left_context": 0}, "Choose 1 to 15000"),
        ({"left_context": 10**9}, "Choose 1 to 15000"),
    ],
)
def test_an_impossible_latency_is_refused(tiny_folder, options, says):
    with pytest.raises(ModelError, match=says):
        Recognizer(tiny_folder, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threads": 0}, "0 threads were asked for"),
        ({"threads": -1}, "Choose 1 or more"),
        ({"blank_penalty": math.nan}, "A blank penalty of nan"),
        ({"blank_penalty": math.inf}, "Choose a finite number"),
        ({"start_margin": math.nan}, "A start margin of nan"),
        ({"blank_penalty": "1"}, "A blank penalty of 1"),
        ({"threads": "2"}, "threads: expected a whole number, got '2'"),
        ({"threads": None}, "threads: expected a whole number, got None"),
        ({"beam": 1.5}, "beam: expected a whole number, got 1.5"),
        ({"chunk_ms": 640.0}, "chunk_ms: expected"),
        ({"left_context": "64"}, "left_context: expected"),
    ],
)
def test_numbers_that_say_nothing_are_refused(tiny_folder, options, says):
    with pytest.raises(ConfigError, match=says):
        Recognizer(tiny_folder, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoints": "yes"}, "Expected True, False or EndpointRules as endpoints, got 'yes'"),
        ({"endpoints": 1.2}, "got 1.2"),
        ({"hotwords": 5}, "Expected hotwords as a list of phrases, got 5"),
    ],
)
def test_options_of_a_stream_that_say_nothing_are_refused(recognizer, options, says):
    with pytest.raises(ConfigError, match=says):
        recognizer.stream(**options)


@pytest.mark.parametrize("options", [{"chunk_ms": 640}, {"left_context": 16}])
def test_a_graph_with_fixed_axes_serves_its_own_latency_only(tmp_path, options):
    folder = write_bundle(tmp_path / "model", make_encoder(fixed=True))
    assert Recognizer(folder).transcribe(AUDIO).tokens
    with pytest.raises(ModelError, match="chunk length and left context it was made for"):
        Recognizer(folder, **options)


def test_an_encoder_that_gives_another_number_of_frames_is_refused(tiny_copy):
    encoder = make_encoder()
    stem = next(node for node in encoder.graph.node if node.op_type == "Conv")
    stem.attribute.append(onnx.helper.make_attribute("pads", [4, 0]))
    onnx.save(encoder, tiny_copy / "encoder.onnx")
    (tiny_copy / "card.json").unlink()
    with pytest.raises(ModelError, match=r"35 feature frames gave 9 encoder frames instead of 8"):
        Recognizer(tiny_copy).transcribe(AUDIO)


def test_a_wrong_piece_leaves_the_stream_as_it_was(recognizer):
    stream = recognizer.stream()
    stream.accept(AUDIO[:10000])
    with pytest.raises(AudioError, match="nan"):
        stream.accept(np.full(100, np.nan, np.float32))
    stream.accept(AUDIO[10000:])
    assert stream.finish() == stream.result == recognizer.transcribe(AUDIO)


def test_a_finished_stream_takes_nothing_more(recognizer):
    stream = recognizer.stream()
    stream.finish()
    with pytest.raises(StreamError, match=r"Get a new one"):
        stream.accept(AUDIO)
    with pytest.raises(StreamError, match=r"Get a new one"):
        stream.finish()


def test_nothing_gives_an_empty_result(recognizer):
    result = recognizer.stream().finish()
    assert (result.text, result.tokens, result.is_final, result.duration) == ("", (), True, 0.0)


def test_a_change_of_rate_is_refused(recognizer):
    audio = make_audio(1.0)
    stream = recognizer.stream()
    for accept in (stream.accept, stream.push):
        with pytest.raises(AudioError, match="are of 16000 Hz, these are of 8000"):
            accept(audio, 8000)
    stream.accept(audio[:8000], 16000)
    stream.accept(audio[8000:])
    assert stream.finish() == recognizer.transcribe(audio)


def test_an_impossible_rate_is_refused(recognizer):
    for rate, found in ((0, "0"), ("16000", "'16000'"), (None, "None")):
        with pytest.raises(AudioError, match=f"a sample rate between .*, got {found}. Give the rate"):
            recognizer.stream(rate)
