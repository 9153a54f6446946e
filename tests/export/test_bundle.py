"""Bundles: whole or not there at all, never different from torch, and what they say of themselves is true."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import GraphOptimizationLevel
from tiny_checkpoint import VOCABULARY, make_features, make_model, write_checkpoint

from onebest import Recognizer
from onebest.bundle import load_bundle
from onebest.errors import ModelError
from onebest.frontend import SPEC
from onebest_export import bundle, precision, verify
from onebest_export.bundle import ExportOptions, Speech, write_bundle
from onebest_training.checkpoint import load_model

OPTIONS = ExportOptions("tiny", chunk_frames=4, left_frames=6)


def export(tiny, folder, options=OPTIONS, features=None):
    return write_bundle(
        tiny.model, tiny.tokens, tiny.checkpoint, folder, options, Speech(features)
    ).difference


def test_float_bundle_has_these_files(float_bundle):
    names = sorted(path.name for path in float_bundle.iterdir())
    assert names == ["card.json", "decoder.onnx", "encoder.onnx", "joiner.onnx", "tokens.txt"]
    assert [path.name for path in float_bundle.parent.iterdir()] == ["model"]


def test_int8_bundle_has_these_files(int8_bundle):
    names = sorted(path.name for path in int8_bundle.iterdir())
    graphs = [f"{part}.int8.onnx" for part in ("decoder", "encoder", "joiner", "streams")]
    assert names == ["card.json", *graphs, "tokens.txt"]


def test_what_is_optimised_is_not_optimised_again(float_bundle, int8_bundle):
    level = GraphOptimizationLevel.ORT_DISABLE_ALL
    for folder, optimised in ((float_bundle, False), (int8_bundle, True)):
        loaded = load_bundle(folder)
        for graph in (loaded.encoder, loaded.decoder, loaded.joiner):
            assert (graph.session.get_session_options().graph_optimization_level == level) == optimised


def test_tokens_are_the_pieces_in_order(tiny, int8_bundle):
    lines = (int8_bundle / "tokens.txt").read_text("utf-8").splitlines()
    assert lines[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert len(lines) == VOCABULARY
    pieces = [line.rsplit(" ", 1) for line in lines]
    assert [piece for piece, _ in pieces] == tiny.tokens.pieces()
    assert [int(index) for _, index in pieces] == list(range(VOCABULARY))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_card_describes_the_bundle(kind, tiny, request):
    folder = request.getfixturevalue(f"{kind}_bundle")
    card = json.loads((folder / "card.json").read_text("utf-8"))
    assert (card["format"], card["version"], card["name"]) == ("onebest-bundle", 1, "tiny")
    streams = {"streams"} if kind == "int8" else set()
    assert set(card["files"]) == {"encoder", "decoder", "joiner", "tokens"} | streams
    for entry in card["files"].values():
        assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    assert card["front_end"] == SPEC.to_dict()
    assert card["architecture"]["precision"] == ("int8" if kind == "int8" else "float32")
    assert (card["architecture"]["chunk_frames"], card["architecture"]["left_frames"]) == (4, 6)
    assert card["architecture"]["encoder"]["width"] == tiny.model.config.encoder.width
    expected = {"steps": 120, "audio_hours": 2.0, "wall_hours": 0.5}
    assert {key: card["training"][key] for key in expected} == expected
    assert card["training"]["config"]["seed"] == tiny.checkpoint.config["seed"]
    assert card["wer"] == ({"dev": 0.5} if kind == "int8" else {})


def test_notes_add_to_the_card_and_replace_nothing(tiny, tmp_path):
    notes = {"files": {}, "name": "other", "data": "speech", "training": {"data": "more speech"}}
    export(tiny, tmp_path / "model", replace(OPTIONS, int8=False, notes=notes))
    card = json.loads((tmp_path / "model" / "card.json").read_text("utf-8"))
    assert (card["name"], card["data"]) == ("tiny", "speech")
    assert set(card["files"]) == {"encoder", "decoder", "joiner", "tokens"}
    assert (card["training"]["data"], card["training"]["steps"]) == ("more speech", 120)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_runtime_loads_it_and_recognises(kind, request):
    folder = request.getfixturevalue(f"{kind}_bundle")
    loaded = load_bundle(folder)
    assert (loaded.sizes.chunk_frames, loaded.sizes.left_context) == (16, 6)
    audio = np.random.default_rng(0).normal(size=48000).astype(np.float32) * 0.1
    result = Recognizer(loaded).transcribe(audio)
    assert result.text
    assert Recognizer(folder, chunk_ms=640, left_context=32).transcribe(audio).text


@pytest.mark.parametrize("name", ["encoder.int8.onnx", "decoder.int8.onnx", "joiner.int8.onnx", "tokens.txt"])
def test_altered_file_is_refused(int8_bundle, tmp_path, name):
    for path in int8_bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="not the file its card describes"):
        load_bundle(tmp_path)


def test_existing_folder_is_refused(tiny, tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        export(tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_vocabulary_of_another_model_is_refused(tiny, tmp_path):
    path = write_checkpoint(tmp_path)
    model, tokens, checkpoint = load_model(path)
    other = make_model(type(model.config)(tiny.model.config.encoder, VOCABULARY + 1, 2, 16, 24))
    with pytest.raises(ModelError, match="the vocabulary has 40 tokens, the model 41"):
        write_bundle(other, tokens, checkpoint, tmp_path / "model", OPTIONS)
    assert not (tmp_path / "model").exists()


def test_a_predictor_with_a_memory_is_refused(tiny, tmp_path):
    other = make_model(replace(tiny.model.config, predictor="lstm"))
    with pytest.raises(ModelError, match="the predictor is 'lstm', a bundle holds a stateless one"):
        write_bundle(other, tiny.tokens, tiny.checkpoint, tmp_path / "model", OPTIONS)
    assert not list(tmp_path.iterdir())


WEIGHTS = {
    "encoder": "encoder.blocks.1.convolution.depthwise.weight",
    "decoder": "predictor.embedding.weight",
    "joiner": "joiner.out.bias",
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_graph_that_differs_from_torch_is_refused(tiny_copy, tmp_path, monkeypatch, part):
    """A weight changes between the export and the check."""
    exporter = getattr(bundle, f"export_{part}")

    def export_then_change(model, *arguments):
        exporter(model, *arguments)
        with torch.no_grad():
            model.get_parameter(WEIGHTS[part]).mul_(1.01)

    monkeypatch.setattr(bundle, f"export_{part}", export_then_change)
    with pytest.raises(ModelError, match="differ from torch"):
        export(tiny_copy, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_state_that_differs_from_torch_is_refused(tiny, tmp_path, monkeypatch):
    """What is remembered shrinks by a hundredth: no difference before the second chunk."""
    exporter = bundle.export_encoder

    def export_then_change(model, path, *latency):
        exporter(model, path, *latency)
        graph = onnx.load(str(path))
        name = "new_cached_attn"
        for node in graph.graph.node:
            if name in node.output:
                node.output[list(node.output).index(name)] = "before"
        half = numpy_helper.from_array(np.float32(0.99), "half")
        graph.graph.initializer.append(half)
        graph.graph.node.append(onnx.helper.make_node("Mul", ["before", "half"], [name]))
        onnx.save(graph, str(path))

    monkeypatch.setattr(bundle, "export_encoder", export_then_change)
    with pytest.raises(ModelError, match="differ from torch"):
        export(tiny, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_bad_int8_is_refused(tiny, tmp_path, monkeypatch):
    quantize = precision.quantize

    def quantize_badly(source, target, **options):
        graph = onnx.load(str(source))
        for item in graph.graph.initializer:
            if item.name == "encoder.norm.weight":
                item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 1.3, item.name))
        onnx.save(graph, str(source))
        quantize(source, target, **options)

    monkeypatch.setattr(precision, "quantize", quantize_badly)
    with pytest.raises(ModelError, match=r"int8 graphs differ.*--float"):
        export(tiny, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["export_joiner", "quantize_graphs", "write_tokens", "make_card"])
def test_interrupted_export_leaves_nothing(tiny, tmp_path, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tiny, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_difference_is_the_worst_of_all_checks(tiny, tmp_path):
    """Features that are given count besides the synthetic ones."""
    alone = export(tiny, tmp_path / "one", ExportOptions("tiny", 4, 6, int8=False))
    quiet = np.full((1, 4 * 40 + 3, 80), -15.94, np.float32)
    both = export(tiny, tmp_path / "two", ExportOptions("tiny", 4, 6, int8=False), quiet)
    assert both.log_prob >= alone.log_prob
    assert both.log_prob < 1e-4
    assert both.agreement == alone.agreement == 1


def test_tiny_model_speaks_where_it_is_verified(tiny, float_bundle):
    """Agreement would be 1 without a token."""
    paths = [float_bundle / f"{part}.onnx" for part in ("encoder", "decoder", "joiner")]
    features = make_features(2, 4 * 80 + 3)
    found = verify.compare(tiny.model, paths, 4, 6, features)
    assert found.agreement == 1
    with torch.no_grad():
        other = make_model(seed=4)
    assert verify.compare(other, paths, 4, 6, features).agreement < 0.5


def test_agreement_counts_tokens_and_allows_ties():
    ours = np.log(np.array([[[0.9, 0.1, 0], [0.1, 0.5, 0.4], [0.8, 0.2, 0], [0.1, 0.9, 0]]]) + 1e-9)
    theirs = ours.copy()
    assert verify.token_agreement(ours, theirs) == 1
    theirs[0, 1] = np.log([0.1, 0.4, 0.5])  # a tie
    assert verify.token_agreement(ours, theirs) == 1
    theirs[0, 2] = np.log([0.2, 0.7, 0.1])  # a token where torch has none
    assert verify.token_agreement(ours, theirs) == pytest.approx(2 / 3)
    theirs[0, 3] = np.log([0.7, 0.2, 0.1])  # none where torch has one
    assert verify.token_agreement(ours, theirs) == pytest.approx(1 / 3)
    assert verify.token_agreement(ours[:, :1], ours[:, :1]) == 1


def test_not_a_number_is_refused():
    for check in (verify.check_float, verify.check_int8):
        with pytest.raises(ModelError):
            check(verify.Difference(float("nan"), float("nan"), 1.0))


def test_the_card_says_how_long_a_pause_is(tiny, tmp_path):
    export(tiny, tmp_path / "model", replace(OPTIONS, int8=False, pause_ms=480))
    assert load_bundle(tmp_path / "model").pause_frames == 12
    export(tiny, tmp_path / "plain", replace(OPTIONS, int8=False))
    assert load_bundle(tmp_path / "plain").pause_frames == 0


def test_the_card_says_how_sure_a_first_token_has_to_be(tiny, tmp_path):
    export(tiny, tmp_path / "model", replace(OPTIONS, int8=False, start_margin=1.5))
    assert load_bundle(tmp_path / "model").start_margin == 1.5
    export(tiny, tmp_path / "plain", replace(OPTIONS, int8=False))
    assert load_bundle(tmp_path / "plain").start_margin == 0.0


def test_blank_penalty_makes_it_speak_more_and_is_in_the_card(tiny, tmp_path):
    before = tiny.model.joiner.out.bias.clone()
    export(tiny, tmp_path / "plain", replace(OPTIONS, int8=False))
    export(tiny, tmp_path / "penalty", replace(OPTIONS, int8=False, blank_penalty=3.0))
    assert torch.equal(before, tiny.model.joiner.out.bias)
    assert (
        json.loads((tmp_path / "penalty" / "card.json").read_text())["architecture"]["blank_penalty"] == 3.0
    )
    encoded = np.ones((2, tiny.model.config.joiner_width), np.float32)
    logits = []
    for name in ("plain", "penalty"):
        loaded = load_bundle(tmp_path / name)
        predicted = loaded.predict([(-1, 0)] * 2)
        logits.append(loaded.join(encoded, predicted))
    difference = logits[0] - logits[1]
    np.testing.assert_allclose(difference[:, 0], 3.0, atol=1e-5)
    np.testing.assert_allclose(difference[:, 1:], 0.0, atol=1e-5)
