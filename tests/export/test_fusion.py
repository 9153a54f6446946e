"""Every int8 product becomes one operator in onnxruntime: none decodes its weight each time it runs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

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
