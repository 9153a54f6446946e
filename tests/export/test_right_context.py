"""A model with right context: a chunk's last frames come again with the next, here and in sherpa-onnx."""

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_graphs import encode_torch, onnx_state
from test_several_chunks import in_pieces, make_speech
from test_sherpa import CLIPS, check_same_tokens, copy_bundle
from tiny_checkpoint import make_features

from onebest import Recognizer
from onebest.bundle import load_bundle
from onebest.cli import main
from onebest.errors import ModelError
from onebest.graph import Graph
from onebest.layout import CHUNK_INPUT
from onebest.recognizer import TAIL_SAMPLES
from onebest_export.bundle import ExportOptions, write_bundle

#: Encoder frames a chunk, those of left and of right context, and those that a chunk brings out.
CHUNK, LEFT, RIGHT = 6, 6, 2
STEP = CHUNK - RIGHT


def export(tiny, folder, int8):
    options = ExportOptions("tiny", CHUNK, LEFT, RIGHT, int8)
    write_bundle(tiny.model, tiny.tokens, tiny.checkpoint, folder, options)
    return folder


@pytest.fixture(scope="module", params=["float", "int8"])
def bundle(request, tiny, tmp_path_factory):
    return export(tiny, tmp_path_factory.mktemp("right") / "model", request.param == "int8")


@pytest.fixture(scope="module")
def recognizer(bundle):
    return Recognizer(bundle)


@pytest.fixture(scope="module")
def whole(recognizer):
    return recognizer.transcribe(make_speech(4.1, 0))


def windows(features, step):
    """Feature frames of chunks that bring out ``step`` frames each."""
    beyond = 4 * RIGHT + 3
    return [features[:, i : i + 4 * step + beyond] for i in range(0, features.shape[1] - beyond, 4 * step)]


def encode(graph, parts, state, **options):
    outputs = []
    for part in parts:
        encoded, *state = graph.run(part, *state, np.zeros(len(part), np.int64), **options)
        outputs.append(encoded)
    return np.concatenate(outputs, 1), state


@pytest.mark.parametrize(("step", "left"), [(4, 6), (1, 1), (1, 17), (8, 3), (16, 32), (40, 128)])
def test_the_graph_is_torch_at_any_latency(tiny, bundle, step, left):
    graph = load_bundle(bundle).encoder
    features = make_features(2, 4 * (160 + RIGHT) + 3)
    theirs, state = encode(graph, windows(features, step), onnx_state(2, left))
    torch_state, outputs = tiny.model.encoder.initial_state(2, left), []
    with torch.inference_mode():
        for part in windows(features, step):
            encoded, torch_state = tiny.model.encoder.forward_chunk(
                torch.from_numpy(part), torch_state, RIGHT
            )
            outputs.append(tiny.model.projection(encoded))
        at_once = tiny.model.projection(
            tiny.model.encoder(
                torch.from_numpy(features), torch.tensor([160 + RIGHT] * 2), step + RIGHT, left, right=RIGHT
            )
        )
    ours = torch.cat(outputs, 1).numpy()
    assert ours.shape == theirs.shape == (2, 160, ours.shape[2])
    np.testing.assert_allclose(at_once[:, :160].numpy(), ours, atol=1e-4)
    error = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
    assert error < (0.1 if "int8" in graph.path.name else 1e-4)
    assert np.all(state[1][-1, 0, :, 0] == 160)


def test_without_its_right_context_a_chunk_says_something_else(tiny, bundle):
    """The test above would pass without the overlap if the tiny model did not look ahead."""
    features = make_features(1, 4 * (40 + RIGHT) + 3)
    ours, _ = encode(load_bundle(bundle).encoder, windows(features, STEP), onnx_state(1, LEFT))
    parts = [features[:, i : i + 4 * STEP + 3] for i in range(0, 160, 4 * STEP)]
    without, _ = encode_torch(tiny.model, parts, tiny.model.encoder.initial_state(1, LEFT))
    assert np.abs(ours - without).max() > 0.1


@pytest.mark.parametrize(("step", "left", "calls"), [(4, 6, 5), (1, 1, 8), (3, 17, 4), (8, 3, 2)])
def test_several_chunks_a_call_are_as_many_calls(bundle, step, left, calls):
    graph: Graph = load_bundle(bundle).encoder
    features = make_features(2, 4 * (step * calls * 3 + RIGHT) + 3, seed=6)
    expected, state = encode(graph, windows(features, step), onnx_state(2, left))
    options = {CHUNK_INPUT: np.array(step)}
    found, together = encode(graph, windows(features, step * calls), onnx_state(2, left), options=options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(together, state, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@given(st.lists(st.integers(0, 30_000), max_size=8))
def test_any_cutting_gives_what_the_whole_gives(recognizer, whole, places):
    audio = make_speech(4.1, 0)
    stream = recognizer.stream()
    for piece in np.split(audio, sorted(place % len(audio) for place in places)):
        stream.accept(piece)
    assert stream.finish() == whole
    assert len(whole.tokens) > 5


def test_more_audio_never_changes_what_has_come_out(recognizer):
    """Of two recordings that begin alike, nothing differs before the look-ahead reaches where they part."""
    begin, known = make_speech(3.0, 1), []
    for seed in (2, 3):
        stream = recognizer.stream()
        stream.accept(begin)
        known.append(stream.result)
        before = stream.result.tokens
        after = stream.accept(make_speech(2.0, seed))
        assert after.tokens[: len(before)] == before
    assert known[0] == known[1]
    assert known[0].tokens


def test_the_tail_is_brought_out_with_silence_ahead_of_it(recognizer, monkeypatch):
    brought, encode_chunk = [], type(recognizer.bundle).encode

    def note(bundle, windows, states):
        frames, after = encode_chunk(bundle, windows, states)
        brought.append(frames.shape[1])
        return frames, after

    monkeypatch.setattr(type(recognizer.bundle), "encode", note)
    for samples in (1, 4000, 16_000, 23_456):
        brought.clear()
        in_pieces(recognizer.stream(), make_speech(samples / 16_000, 0), 5000)
        assert sum(brought) * 640 >= samples + TAIL_SAMPLES


@pytest.mark.parametrize("clip", CLIPS[:2], ids=lambda path: path.stem)
def test_sherpa_gives_our_tokens(bundle, recognizer, clip, tmp_path):
    ours = recognizer.transcribe(clip)
    check_same_tokens(ours, copy_bundle(bundle, tmp_path / "model"), clip, recognizer.bundle.sizes)


def test_a_latency_counts_what_is_looked_ahead(bundle, tmp_path):
    sizes = load_bundle(bundle).sizes
    assert (sizes.chunk_ms, sizes.chunk_frames, sizes.pad_frames) == (240, 4 * STEP, 4 * RIGHT + 3)
    target = tmp_path / "copy"
    assert main(["copy-latency", str(bundle), str(target), "--chunk-ms", "640"]) == 0
    (encoder,) = target.glob("encoder*.onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(str(encoder)).metadata_props}
    assert {key: metadata[key] for key in ("T", "decode_chunk_len", "pad_length", "right_context")} == {
        "T": "67",
        "decode_chunk_len": "56",
        "pad_length": "11",
        "right_context": "2",
    }
    assert json.loads((target / "card.json").read_text())["architecture"]["chunk_frames"] == 16
    copied = load_bundle(target)
    assert copied.sizes == load_bundle(bundle).at_latency(640, None).sizes
    assert copied.sizes.chunk_ms == 640


@pytest.mark.parametrize("chunk_ms", [40, 80])
def test_a_chunk_must_be_longer_than_what_it_looks_ahead(bundle, chunk_ms):
    with pytest.raises(ModelError, match=r"looks 80 ms ahead\. Choose a longer chunk"):
        Recognizer(bundle, chunk_ms=chunk_ms)
    assert Recognizer(bundle, chunk_ms=120).bundle.sizes.chunk_frames == 4


@pytest.mark.parametrize(("named", "found"), [("0", 0), ("1", 1), ("2", 2)])
def test_other_exporters_may_name_it_or_not(bundle, tmp_path, named, found):
    """What a chunk reads beyond those frames is the stem's."""
    folder = copy_bundle(bundle, tmp_path / "model")
    model = onnx.load(str(folder / "encoder.onnx"))
    metadata = {entry.key: entry.value for entry in model.metadata_props} | {"right_context": named}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(folder / "encoder.onnx"))
    sizes = load_bundle(folder).sizes
    assert (sizes.layout.right_context, sizes.pad_frames) == (found, 4 * RIGHT + 3)
    assert main(["copy-latency", str(folder), str(tmp_path / "copy"), "--chunk-ms", "640"]) == 0
    assert load_bundle(tmp_path / "copy").sizes == load_bundle(folder).at_latency(640, None).sizes
