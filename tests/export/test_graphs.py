"""The graphs equal torch over many chunks with state, at any latency, for streams with different pasts."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tiny_checkpoint import ENCODER, MODEL, make_features, make_model

from onebest.frontend import SPEC
from onebest.graph import Graph
from onebest.layout import CHUNK_INPUT
from onebest_export import streaming
from onebest_export.graphs import export_encoder
from onebest_export.quantize import product_names, quantize
from onebest_export.streaming import StreamingEncoder
from onebest_training.config import BlockConfig, EncoderConfig, ModelConfig
from onebest_training.encoder import EncoderState

BLOCKS, KERNEL = 3, 5


@pytest.fixture(scope="module")
def encoder(float_bundle):
    return Graph.load(float_bundle / "encoder.onnx", 1)


def onnx_state(streams, left, blocks=BLOCKS, kernel=KERNEL, width=ENCODER.width):
    attention = np.zeros((2 * blocks, left, streams, width), np.float32)
    return attention, np.zeros((2 * blocks, kernel - 1, streams, width), np.float32)


def windows(features, chunk):
    return [
        features[:, i : i + 4 * chunk + 3] for i in range(0, features.shape[1] - 4 * chunk - 2, 4 * chunk)
    ]


def encode(graph, parts, state, processed=None):
    """Run chunks through the graph; return the outputs [N, T, J] and the last state."""
    outputs = []
    for index, part in enumerate(parts):
        moved = np.full(len(part), index * (part.shape[1] - 3)) if processed is None else processed[index]
        encoded, *state = graph.run(part, *state, moved.astype(np.int64))
        outputs.append(encoded)
    return np.concatenate(outputs, 1), state


@torch.inference_mode()
def encode_torch(model, parts, state):
    outputs = []
    for part in parts:
        encoded, state = model.encoder.forward_chunk(torch.from_numpy(part), state)
        outputs.append(model.projection(encoded))
    return torch.cat(outputs, 1).numpy(), state


@pytest.mark.parametrize(("chunk", "left"), [(4, 6), (1, 1), (1, 17), (8, 3), (16, 32), (40, 128)])
def test_encoder_is_torch_at_any_latency(tiny, encoder, chunk, left):
    parts = windows(make_features(2, 4 * 160 + 3), chunk)
    ours, _ = encode_torch(tiny.model, parts, tiny.model.encoder.initial_state(2, left))
    theirs, state = encode(encoder, parts, onnx_state(2, left))
    assert theirs.shape == (2, 160, MODEL.joiner_width)
    assert ours.std() > 0.1
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert state[0].shape[1] == left
    assert np.all(state[1][-1, 0, :, 0] == 160)


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize(("chunk", "left", "calls"), [(4, 6, 5), (1, 1, 8), (3, 17, 4), (8, 3, 2)])
def test_several_chunks_a_call_are_as_many_calls(kind, chunk, left, calls, request):
    """Two streams of which one has a past, chunks and left context in any proportion.

    To the last bit, but for single frames in float32, which onnxruntime multiplies by another routine.
    """
    (path,) = request.getfixturevalue(f"{kind}_bundle").glob("encoder*.onnx")
    graph = Graph.load(path, 1)
    assert graph.option_names == {CHUNK_INPUT}
    features = make_features(2, 4 * chunk * calls * 3 + 3, seed=6)
    attention, convolution = onnx_state(2, left)
    _, (past_attention, past_convolution) = encode(
        graph, windows(make_features(1, 4 * 4 * 3 + 3, seed=7), 4), onnx_state(1, left)
    )
    attention[:, :, 1:], convolution[:, :, 1:] = past_attention, past_convolution
    expected, state = encode(graph, windows(features, chunk), (attention, convolution))
    found, together = [], (attention, convolution)
    for window in windows(features, chunk * calls):
        options = {CHUNK_INPUT: np.array(chunk)}
        frames, *together = graph.run(window, *together, np.zeros(2, np.int64), options=options)
        found.append(frames)
    tolerance = 1e-5 if kind == "float" and chunk == 1 else 0
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=0, atol=tolerance)
    for ours, theirs in zip(together, state, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_streams_with_different_pasts_share_a_batch(tiny, encoder):
    """Three streams, new, after five chunks and after twenty, go on together as each would alone."""
    features = make_features(3, 4 * 4 * 30 + 3, seed=5)
    parts, pasts, alone = windows(features, 4), [], []
    for stream, chunks in enumerate((0, 5, 20)):
        own = [part[stream : stream + 1] for part in parts]
        _, state = encode(encoder, own[:chunks], onnx_state(1, 6)) if chunks else (None, onnx_state(1, 6))
        pasts.append(state)
        torch_state = tiny.model.encoder.initial_state(1, 6)
        if chunks:
            _, torch_state = encode_torch(tiny.model, own[:chunks], torch_state)
        alone.append(encode_torch(tiny.model, own[20:30], torch_state)[0])
    together = [np.concatenate(states, 2) for states in zip(*pasts, strict=True)]
    found, _ = encode(encoder, parts[20:30], together)
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-4)


def test_frames_that_are_not_there_weigh_nothing(tiny, monkeypatch):
    """To the last bit, although e to the power of what is added to their scores is no zero."""
    encoder = StreamingEncoder(tiny.model).eval()
    features = torch.from_numpy(10 * make_features(2, 4 * 8 + 3))
    inputs = (features, *encoder.initial_state(2, 128), torch.zeros(2, dtype=torch.int64), torch.tensor(0))
    with torch.inference_mode():
        ours = encoder(*inputs)
        monkeypatch.setattr(streaming, "NOT_THERE", -torch.inf)
        theirs = encoder(*inputs)
    assert all(map(torch.equal, ours, theirs))


def test_the_past_matters(encoder):
    """The two tests above would pass without any state if the tiny model did not use it."""
    parts = windows(make_features(1, 4 * 4 * 4 + 3), 4)
    found, _ = encode(encoder, parts, onnx_state(1, 6))
    fresh, _ = encode(encoder, parts[3:], onnx_state(1, 6))
    assert np.abs(found[:, -4:] - fresh).max() > 0.05


def test_processed_lens_is_taken_in_and_not_believed(float_bundle, encoder):
    graph = onnx.load(str(float_bundle / "encoder.onnx")).graph
    with_default = {item.name for item in graph.initializer}
    needed = [port.name for port in graph.input if port.name not in with_default]
    assert needed == ["x", "cached_attn", "cached_conv", "processed_lens"]
    assert any("processed_lens" in node.input for node in graph.node)
    parts = windows(make_features(2, 4 * 4 * 12 + 3), 4)
    found, _ = encode(encoder, parts, onnx_state(2, 6))
    restarts = [np.array([16 * (i % 5), 10**12]) for i in range(12)]
    again, _ = encode(encoder, parts, onnx_state(2, 6), restarts)
    np.testing.assert_array_equal(again, found)


def test_count_of_frames_goes_round(tiny, encoder):
    """One stream's count goes round on the way, one's does not; torch counts on."""
    wrap = StreamingEncoder(tiny.model).wrap
    seen = np.array([2 * wrap - 10, 37])
    parts = windows(make_features(2, 4 * 4 * 12 + 3), 4)
    attention, convolution = onnx_state(2, 6)
    convolution[-1, 0, :, 0] = seen
    found, (_, convolution) = encode(encoder, parts, (attention, convolution))
    state = tiny.model.encoder.initial_state(2, 6)
    state = EncoderState(state.attention, state.convolution, torch.from_numpy(seen))
    expected, state = encode_torch(tiny.model, parts, state)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert convolution[-1, 0, :, 0].tolist() == [wrap + 38, 85]
    assert state.frames.tolist() == [2 * wrap + 38, 85]
    assert wrap % len(tiny.model.encoder.positions) == 0
    assert wrap > 100_000
    assert 2 * wrap + 100_000 < 2**24


@pytest.mark.parametrize(
    "blocks", [(BlockConfig(2, 32),), (BlockConfig(1, 32, 3),), (BlockConfig(1, 32, 7), BlockConfig(1, 32))]
)
def test_other_shapes(tmp_path, blocks):
    """No convolution at all, one in the only block, one in the first block."""
    config = ModelConfig(EncoderConfig(16, 4, 60, blocks), 12, 2, 8, 20)
    model = make_model(config)
    export_encoder(model, tmp_path / "encoder.onnx", 4, 6)
    graph = Graph.load(tmp_path / "encoder.onnx", 1)
    kernel, count = model.encoder.convolution_frames + 1, len(model.encoder.blocks)
    assert graph.size("cnn_module_kernel") == kernel
    parts = windows(make_features(2, 4 * 4 * 12 + 3), 4)
    ours, _ = encode_torch(model, parts, model.encoder.initial_state(2, 6))
    theirs, _ = encode(graph, parts, onnx_state(2, 6, count, kernel, 16))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_decoder_and_joiner_are_torch(tiny, float_bundle):
    rng = np.random.default_rng(2)
    contexts = rng.integers(-1, MODEL.vocabulary_size, (50, 2))
    contexts[:2] = [[-1, 0], [-1, -1]]
    encoded = rng.normal(size=(50, MODEL.joiner_width)).astype(np.float32)
    with torch.inference_mode():
        decoded = tiny.model.predictor(torch.from_numpy(contexts))
        logits = tiny.model.joiner(torch.from_numpy(encoded), decoded)
    found = Graph.load(float_bundle / "decoder.onnx", 1).run(contexts)[0]
    np.testing.assert_allclose(found, decoded.numpy(), atol=1e-5)
    found = Graph.load(float_bundle / "joiner.onnx", 1).run(encoded, found)[0]
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_metadata_is_complete(kind, request):
    folder = request.getfixturevalue(f"{kind}_bundle")
    found = {}
    for path in folder.glob("*.onnx"):
        props = onnx.load(str(path)).metadata_props
        found[path.name.split(".")[0]] = {entry.key: entry.value for entry in props}
    front_end = json.loads(found["encoder"].pop("front_end"))
    assert front_end == SPEC.to_dict()
    expected = {
        "model_type": "conformer",
        "version": "1",
        "model_author": "onebest",
        "comment": "streaming transducer",
        "T": "19",
        "decode_chunk_len": "16",
        "pad_length": "3",
        "num_encoder_layers": "6",
        "left_context": "6",
        "right_context": "0",
        "chunk_size": "4",
        "encoder_dim": "32",
        "cnn_module_kernel": "5",
    }
    assert {key: found["encoder"].get(key) for key in expected} == expected
    expected_decoder = {"context_size": "2", "vocab_size": str(MODEL.vocabulary_size)}
    assert {key: found["decoder"][key] for key in expected_decoder} == expected_decoder
    assert found["joiner"]["joiner_dim"] == str(MODEL.joiner_width)


def weights_of(path):
    """Return the nodes and the arrays by name of a graph."""
    graph = onnx.load(str(path)).graph
    return graph.node, {item.name: numpy_helper.to_array(item) for item in graph.initializer}


@pytest.mark.parametrize(("part", "products"), [("encoder", 16), ("decoder", 1), ("joiner", 1)])
def test_int8_weights_have_a_scale_an_output(int8_graphs, part, products):
    nodes, arrays = weights_of(int8_graphs / f"{part}.int8.onnx")
    decoded = [node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    assert len(decoded) == products
    for node in decoded:
        weight, scale, zero = (arrays[name] for name in node.input)
        assert weight.dtype == np.int8
        pairs = np.abs(weight[0::2].astype(int) + weight[1::2]).max(0)
        assert (np.maximum(np.abs(weight).max(0), pairs) >= 126).all()
        assert pairs.max() <= 128  # 255 * 128 is within 16 bits
        assert scale.shape == (weight.shape[1],)
        assert len(np.unique(scale)) > 1
        assert not zero.any()


def test_small_and_sensitive_weights_stay_in_float(tiny, int8_graphs):
    """The stem's first product, the depthwise convolutions, the embedding, the products of activations."""
    nodes, arrays = weights_of(int8_graphs / "encoder.int8.onnx")
    in_float = [node.name for node in nodes if node.op_type == "MatMul" and node.input[1] in arrays]
    assert in_float == ["/stem/first/MatMul"]
    assert [arrays[node.input[1]].shape for node in nodes if node.op_type == "Conv"] == [
        (32, 1, 5),
        (32, 1, 3),
    ]
    _, arrays = weights_of(int8_graphs / "decoder.int8.onnx")
    np.testing.assert_array_equal(arrays["embedding.weight"], tiny.model.predictor.embedding.weight.detach())


def test_activations_above_zero_use_their_own_code(int8_graphs):
    """The inputs of the stem's second product, the blocks' second and the convolutions' last are GELUs."""
    nodes, arrays = weights_of(int8_graphs / "encoder.int8.onnx")
    coded = [node for node in nodes if node.op_type == "QuantizeLinear"]
    above = [node.name for node in coded if arrays[node.input[2]] == 21]
    assert above == [
        "/stem/second/MatMul_coded",
        "/feed_forward_out/MatMul_coded",
        "/out_2/MatMul_coded",
        "/feed_forward_out_1/MatMul_coded",
        "/out_4/MatMul_coded",
        "/feed_forward_out_2/MatMul_coded",
    ]
    assert len(coded) == 16


def test_int8_streams_do_not_depend_on_each_other(int8_bundle):
    """Streams of very different levels, together and each alone: the same to the last bit."""
    encoder = Graph.load(int8_bundle / "encoder.int8.onnx", 1)
    levels = np.array([0.05, 1, 4, -2], np.float32)[:, None, None]
    parts = windows(make_features(4, 4 * 4 * 20 + 3, seed=8) * levels, 4)
    together, state = encode(encoder, parts, onnx_state(4, 6))
    for stream in range(4):
        own = [part[stream : stream + 1] for part in parts]
        alone, own_state = encode(encoder, own, onnx_state(1, 6))
        np.testing.assert_array_equal(alone[0], together[stream])
        for mine, shared in zip(own_state, state, strict=True):
            np.testing.assert_array_equal(mine[:, :, 0], shared[:, :, stream])


def test_int8_is_what_its_formula_says(tmp_path):
    """One product, beside the formula in float64; a row of zeros gives the bias."""
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(5, 8)) * [[1], [100], [0.01], [1], [0]], rng.normal(size=(8, 6))
    names = {"x": "N", "y": "N"}
    ports = [
        onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, [names[n], w])
        for n, w in (("x", 8), ("y", 6))
    ]
    gemm = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "product", transB=1)
    stored = [numpy_helper.from_array(weight.T.astype(np.float32), "w")]
    stored.append(numpy_helper.from_array(np.arange(6, dtype=np.float32), "b"))
    graph = onnx.helper.make_graph([gemm], "one", ports[:1], ports[1:], stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    found = Graph.load(tmp_path / "int8.onnx", 1).run(x.astype(np.float32))[0]
    largest = np.maximum(np.abs(x).max(1, keepdims=True), 1e-8)
    scale = np.maximum(np.abs(weight).max(0), np.abs(weight[0::2] + weight[1::2]).max(0)) / 127
    expected = (np.rint(x / largest * 127) @ np.rint(weight / scale)) * scale / 127 * largest + np.arange(6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[4], np.arange(6))


def test_a_product_left_in_float_is_the_same_as_before(float_bundle, tmp_path):
    path = float_bundle / "encoder.onnx"
    names = product_names(path)
    assert len(names) == 16
    quantize(path, tmp_path / "encoder.onnx", in_float=names)
    parts = windows(make_features(1, 4 * 4 * 6 + 3), 4)
    found, _ = encode(Graph.load(tmp_path / "encoder.onnx", 1), parts, onnx_state(1, 6))
    expected, _ = encode(Graph.load(path, 1), parts, onnx_state(1, 6))
    np.testing.assert_array_equal(found, expected)


def test_int8_joiner_gives_a_frame_the_same_in_any_batch(int8_bundle):
    joiner = Graph.load(int8_bundle / "joiner.int8.onnx", 1)
    rng = np.random.default_rng(0)
    encoded, decoded = (rng.normal(size=(30, MODEL.joiner_width)).astype(np.float32) for _ in range(2))
    together = joiner.run(encoded * 0.3, decoded)[0]
    alone = [joiner.run(encoded[i : i + 1] * 0.3, decoded[i : i + 1])[0] for i in range(30)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_nothing_is_stored_twice(int8_graphs):
    graph = onnx.load(str(int8_graphs / "encoder.int8.onnx")).graph
    stored = [item.raw_data for item in graph.initializer if len(item.raw_data) > 256]
    assert len(set(stored)) == len(stored)
    assert all(port.type.tensor_type.elem_type != TensorProto.UNDEFINED for port in graph.input)
