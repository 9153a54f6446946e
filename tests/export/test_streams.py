"""The encoder for several streams: to the last bit what each gets alone, however states go between."""

import json
import shutil

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_several_chunks import in_pieces, make_speech
from tiny_checkpoint import make_features

from onebest import Recognizer
from onebest.bundle import load_bundle
from onebest.cli import main
from onebest.errors import ModelError
from onebest.streams import EncoderState, LiveState, Memory
from onebest_export.bundle import ExportOptions, write_bundle
from onebest_export.streams import SLOTS
from onebest_export.verify import check_streams

CHUNK, RIGHT = 5, 1


@pytest.fixture(scope="module", params=["plain", "right context"])
def folder(request, tiny, int8_bundle, tmp_path_factory):
    if request.param == "plain":
        return int8_bundle
    folder = tmp_path_factory.mktemp("right") / "model"
    write_bundle(tiny.model, tiny.tokens, tiny.checkpoint, folder, ExportOptions("tiny", CHUNK, 6, RIGHT))
    return folder


@pytest.fixture(scope="module")
def bundle(folder):
    return load_bundle(folder)


def windows(bundle, streams, steps, seed=0):
    """Yield the windows [N, F, 80] of some steps."""
    step, pad = bundle.sizes.chunk_frames, bundle.sizes.pad_frames
    features = make_features(streams, steps * step + pad, seed)
    for first in range(0, steps * step, step):
        yield features[:, first : first + step + pad]


def alone(bundle, window, states):
    """Run a step stream by stream, from the contract's states."""
    results = [bundle.encode(window[n : n + 1], [state]) for n, state in enumerate(states)]
    return np.concatenate([frames for frames, _ in results]), [state for _, (state,) in results]


@pytest.mark.parametrize("streams", range(2, SLOTS + 1))
@pytest.mark.parametrize(("chunk_ms", "left"), [(None, None), (80, 2), (640, 40)])
def test_the_same_as_alone(bundle, streams, chunk_ms, left):
    bundle = bundle.at_latency(chunk_ms, left)
    single = together = [bundle.start_state()] * streams
    for window in windows(bundle, streams, 30):
        expected, single = alone(bundle, window, single)
        found, together = bundle.encode(window, together)
        assert np.array_equal(found, expected)
        assert all(isinstance(state, LiveState) for state in together)
    assert all(isinstance(state, EncoderState) for state in single)


def test_a_last_window_may_be_short(bundle):
    (window,) = windows(bundle, 3, 1)
    short = window[:, : bundle.sizes.pad_frames + 4]
    states = [bundle.start_state()] * 3
    assert np.array_equal(bundle.encode(short, states)[0], alone(bundle, short, states)[0])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["one", "together", "several chunks"]), min_size=3, max_size=12))
def test_states_go_from_one_to_the_other(bundle, ways):
    """Two streams and one whose chunks are always its own."""
    step, pad = bundle.sizes.chunk_frames, bundle.sizes.pad_frames
    features, at = make_features(2, 60 * step + pad, 3), 0
    single = mixed = [bundle.start_state()] * 2
    for way in ways:
        count = 4 if way == "several chunks" else 1
        expected = []
        for number in range(count):
            first = (at + number) * step
            frames, single = alone(bundle, features[:, first : first + step + pad], single)
            expected.append(frames)
        window = features[:, at * step : (at + count) * step + pad]
        if way == "one":
            contract = [bundle.streams.restore(state, bundle.sizes.left_context) for state in mixed]
            found, mixed = alone(bundle, window, contract)
        else:
            found, mixed = bundle.encode(window, mixed)
        assert np.array_equal(found, np.concatenate(expected, 1))
        at += count


def test_a_restored_state_is_the_contract_s(bundle):
    single = together = [bundle.start_state()] * 2
    for window in windows(bundle, 2, 20):
        _, single = alone(bundle, window, single)
        _, together = bundle.encode(window, together)
    for expected, state in zip(single, together, strict=True):
        found = bundle.streams.restore(state, bundle.sizes.left_context)
        assert found.processed_frames == expected.processed_frames
        for ours, theirs in zip(found.caches, expected.caches, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_count_falls_back_as_the_contract_s(bundle):
    period = bundle.streams._graph.size("count_period")
    for seen in (0, 1, 2 * period - 1):
        assert bundle.streams._count(seen) == seen
    for seen in (2 * period, 2 * period + 7, 5 * period + 7):
        count = bundle.streams._count(seen)
        assert period <= count < 2 * period
        assert (count - seen) % period == 0


def test_an_older_state_goes_on_as_before(bundle):
    first, second, third = windows(bundle, 2, 3)
    _, older = bundle.encode(first, [bundle.start_state()] * 2)
    expected, newer = bundle.encode(second, older)
    bundle.encode(third, newer)
    for _ in range(2):
        found, again = bundle.encode(second, older)
        assert np.array_equal(found, expected)
        assert np.array_equal(bundle.encode(third, again)[0], bundle.encode(third, newer)[0])


def test_memory_stays_small():
    spare = {}
    memory = Memory.start(2, 6, 3, 2, spare)
    for number in range(100):
        memory = memory.append(np.full((2, 2, 3), number, np.float32), 6)
        assert memory.array.rows.shape[1] == 6 + 4 * 2
        assert memory.last(2).tolist() == np.full((2, 2, 3), number).tolist()
    assert memory.last(6)[0, :, 0].tolist() == [97, 97, 98, 98, 99, 99]
    assert [len(arrays) for arrays in spare.values()] == [1]


def test_arrays_are_used_again_and_only_when_nobody_needs_them():
    spare = {}
    kept = [Memory.start(2, 6, 3, 2, spare) for _ in range(3)]
    arrays = {id(memory.array.rows) for memory in kept}
    del kept
    again = [Memory.start(2, 6, 3, 2, spare) for _ in range(4)]
    assert len({id(memory.array.rows) for memory in again}) == 4
    assert arrays < {id(memory.array.rows) for memory in again}
    assert Memory.start(2, 7, 3, 2, spare).array.rows.shape == (2, 15, 3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_streams_in_any_order_hear_what_they_hear_alone(folder, seed):
    recognizer, random = Recognizer(folder), np.random.default_rng(seed)
    audios = [make_speech(seconds, seed) for seed, seconds in enumerate((0.3, 1.7, 2.4, 3.1, 0.9, 2.2))]
    streams, at = [recognizer.stream() for _ in audios], [0] * len(audios)
    while any(not stream.result.is_final for stream in streams):
        some = random.permutation(len(audios))[: random.integers(1, len(audios) + 1)]
        for number in some:
            size = random.choice([1000, 4000, 20000])
            if at[number] < len(audios[number]):
                streams[number].push(audios[number][at[number] : at[number] + size])
                at[number] += size
                if at[number] >= len(audios[number]):
                    streams[number].end()
        recognizer.advance([streams[number] for number in some])
    for stream, audio in zip(streams, audios, strict=True):
        assert stream.result == recognizer.transcribe(audio)


def test_one_stream_alone_never_loads_it(int8_bundle):
    recognizer = Recognizer(int8_bundle)
    in_pieces(recognizer.stream(), make_speech(3, 1), 1000)
    recognizer.transcribe(make_speech(3, 1))
    assert "_graph" not in vars(recognizer.bundle.streams)
    recognizer.bundle.streams.load()
    assert "_graph" in vars(recognizer.bundle.streams)


def test_one_stream_alone_takes_what_waits_together(int8_bundle, monkeypatch):
    recognizer, made = Recognizer(int8_bundle), []
    encode, chunk = type(recognizer.bundle).encode, recognizer.bundle.sizes.chunk_frames

    def note(bundle, windows, states):
        made.append((len(windows), (windows.shape[1] - bundle.sizes.pad_frames) // chunk))
        return encode(bundle, windows, states)

    monkeypatch.setattr(type(recognizer.bundle), "encode", note)
    audio = np.zeros((2 * chunk + recognizer.bundle.sizes.pad_frames) * 160 + 400, np.float32)
    alone = recognizer.stream()
    alone.accept(audio)
    assert made == [(1, 2)]
    made.clear()
    streams = [recognizer.stream() for _ in range(2)]
    for stream in streams:
        stream.push(audio)
    recognizer.advance(streams)
    assert made == [(2, 1)]


def test_its_weights_are_the_encoder_s(int8_bundle):
    graph = onnx.load(str(int8_bundle / "streams.int8.onnx"), load_external_data=False).graph
    shared = [item for item in graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]
    assert {entry.value for item in shared for entry in item.external_data if entry.key == "location"} == {
        "encoder.int8.onnx"
    }
    assert not [item.name for item in graph.initializer if len(item.raw_data) >= 1024]
    assert len(shared) >= 4


def test_a_copy_at_another_latency_has_it_too(int8_bundle, tmp_path):
    assert main(["copy-latency", str(int8_bundle), str(tmp_path / "copy"), "--chunk-ms", "320"]) == 0
    copy = load_bundle(tmp_path / "copy")
    single = together = [copy.start_state()] * 2
    for window in windows(copy, 2, 5):
        expected, single = alone(copy, window, single)
        found, together = copy.encode(window, together)
        assert np.array_equal(found, expected)


def copy_with(folder, target, change):
    """Copy a bundle, change its graph, and write the new hash into its card."""
    from onebest.card import hash_file

    shutil.copytree(folder, target)
    path = target / "streams.int8.onnx"
    change(path)
    card = json.loads((target / "card.json").read_text())
    card["files"]["streams"]["sha256"] = hash_file(path)
    (target / "card.json").write_text(json.dumps(card))
    return target


def test_an_altered_or_missing_file_is_told_on_load(int8_bundle, tmp_path):
    shutil.copytree(int8_bundle, tmp_path / "copy")
    path = tmp_path / "copy" / "streams.int8.onnx"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelError, match=r"streams\.int8\.onnx is not the file its card describes"):
        load_bundle(tmp_path / "copy")
    path.unlink()
    with pytest.raises(ModelError, match=r"no such file, but card\.json names it"):
        load_bundle(tmp_path / "copy")


def test_one_for_another_encoder_is_refused(int8_bundle, tmp_path):
    def change(path):
        model = onnx.load(str(path), load_external_data=False)
        onnx.helper.set_model_props(model, {"slots": "3", "count_period": "60"})
        onnx.save(model, str(path))

    copy = load_bundle(copy_with(int8_bundle, tmp_path / "copy", change))
    with pytest.raises(ModelError, match="is not for the encoder beside it"):
        copy.streams.load()


def test_no_graph_at_all_is_refused(int8_bundle, tmp_path):
    copy = load_bundle(copy_with(int8_bundle, tmp_path / "copy", lambda path: path.write_bytes(b"no graph")))
    with pytest.raises(ModelError, match="cannot be loaded"):
        copy.streams.load()


def test_export_refuses_what_gives_another_result(int8_bundle, tmp_path, monkeypatch):
    bundle = load_bundle(int8_bundle)
    check_streams(bundle)
    encode = type(bundle.streams).encode

    def encode_wrongly(self, *arguments):
        frames, states = encode(self, *arguments)
        return frames + 0.01, states

    monkeypatch.setattr(type(bundle.streams), "encode", encode_wrongly)
    with pytest.raises(ModelError, match=r"differs by 0\.01 from that for one"):
        check_streams(bundle)


def test_without_a_card_there_is_none(int8_bundle, tmp_path):
    shutil.copytree(int8_bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("card.json"))
    assert load_bundle(tmp_path / "copy").streams is None
