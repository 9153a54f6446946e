"""Every int8 product becomes one operator in onnxruntime, every layer norm one with the sum before it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from onebest_export.optimize import fuse_norms
from onebest_export.quantize import quantize


def write_product(path, random):
    """Write tanh(x) times a weight plus a bias, as torch writes a Linear layer for two axes."""
    weight, bias = random.standard_normal((20, 12)), random.standard_normal(20)
    graph = helper.make_graph(
        [
            helper.make_node("Tanh", ["x"], ["t"], "tanh"),
            helper.make_node("Gemm", ["t", "weight", "bias"], ["y"], "product", transB=1),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 20])],
        [
            numpy_helper.from_array(part.astype(np.float32), name)
            for part, name in ((weight, "weight"), (bias, "bias"))
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("bound", [None, 1.0])
def test_one_operator_a_product(tmp_path, bound):
    random = np.random.default_rng(0)
    write_product(tmp_path / "float.onnx", random)
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", bound=bound)
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    int8 = InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert "MatMulIntegerToFloat" in operators
    assert "DequantizeLinear" not in operators
    x = {"x": random.standard_normal((7, 12)).astype(np.float32)}
    plain = InferenceSession(tmp_path / "float.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(int8.run(None, x)[0], plain.run(None, x)[0], atol=0.06)


@pytest.mark.parametrize("part", ["encoder", "decoder", "joiner"])
def test_a_shipped_graph_has_nothing_left_to_optimise(part, int8_bundle, int8_graphs):
    """Inputs, outputs and metadata are those before; what it gives is, too, without any optimisation."""
    before, after = (onnx.load(folder / f"{part}.int8.onnx") for folder in (int8_graphs, int8_bundle))
    assert [port.name for port in after.graph.input] == [port.name for port in before.graph.input]
    assert [port.name for port in after.graph.output] == [port.name for port in before.graph.output]
    assert {e.key: e.value for e in after.metadata_props} == {e.key: e.value for e in before.metadata_props}
    operators = [node.op_type for node in after.graph.node]
    assert not {"DequantizeLinear", "LayerNormalization", "Erf"} & set(operators)
    assert operators.count("MatMulIntegerToFloat") == (16 if part == "encoder" else 1)
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 17, "com.microsoft": 1}
    options = SessionOptions()
    options.log_severity_level = 3
    plain = InferenceSession(int8_graphs / f"{part}.int8.onnx", options, providers=["CPUExecutionProvider"])
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    fused = InferenceSession(int8_bundle / f"{part}.int8.onnx", options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    axes = {"N": 2, "F": 19, "left": 6}
    feeds = {
        port.name: random.uniform(0, 3, [axes.get(axis, axis) for axis in port.shape]).astype(
            kinds[port.type]
        )
        for port in plain.get_inputs()
    }
    for found, expected in zip(fused.run(None, feeds), plain.run(None, feeds), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_sum_that_is_used_again_comes_out_beside_the_norm():
    """A residual with a bias before it: one operator gives the norm and the sum."""
    width = 8
    random = np.random.default_rng(2)
    weights = [
        numpy_helper.from_array(random.normal(size=width).astype(np.float32), name)
        for name in ("bias", "scale", "shift")
    ]
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["biased"], "biased"),
        helper.make_node("Add", ["hidden", "biased"], ["sum"], "sum"),
        helper.make_node(
            "LayerNormalization", ["sum", "scale", "shift"], ["norm"], "norm", axis=-1, epsilon=1e-5
        ),
        helper.make_node("Sub", ["norm", "sum"], ["y"], "use"),
    ]
    x, hidden, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, width])
        for name in ("x", "hidden", "y")
    )
    graph = helper.make_graph(nodes, "norm", [x, hidden], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {name: random.normal(size=(2, 3, width)).astype(np.float32) for name in ("x", "hidden")}
    before = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    fuse_norms(model)
    assert [node.op_type for node in model.graph.node] == ["SkipLayerNormalization", "Sub"]
    after = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    np.testing.assert_allclose(after[0], before[0], atol=1e-5)
