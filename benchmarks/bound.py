"""The least time that an encoder could take: its multiply-adds at the rates that onnxruntime reaches here.

Multiply-adds are counted from the shapes that onnxruntime's profile of one chunk names, int8 and float apart.
The rates are those of single products in onnxruntime, one thread, the best of several sizes.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions

INT8 = ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
FLOAT32 = ("MatMul", "Gemm", "FusedMatMul", "Conv", "FusedConv")
SIZES = ((16, 384, 1536), (64, 384, 1536), (256, 384, 1536), (256, 1024, 1024))
BUDGET_SECONDS = 0.3


def measure_bound(encoder: str, window_frames: int) -> dict:
    """Return the encoder's multiply-adds a chunk, the rates, and the seconds a chunk that follow."""
    counts = count_products(encoder, window_frames)
    rates = {kind: max(measure_rate(kind, *size) for size in SIZES) for kind in ("int8", "float32")}
    return {
        "multiply_adds": counts,
        "rates": rates,
        "chunk_seconds": sum(counts[kind] / rates[kind] for kind in rates),
    }


def count_products(encoder: str, window_frames: int) -> dict[str, float]:
    """Return the multiply-adds of one chunk of one stream, int8 and float32."""
    with tempfile.TemporaryDirectory() as folder:
        options = one_thread()
        options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = InferenceSession(encoder, options, providers=["CPUExecutionProvider"])
        session.run(None, first_inputs(session, window_frames))
        events = json.loads(Path(session.end_profiling()).read_text())
    counts = {"int8": 0.0, "float32": 0.0}
    for event in events:
        details = event.get("args", {})
        if event["name"].endswith("_kernel_time") and details.get("op_name") in (*INT8, *FLOAT32):
            counts["int8" if details["op_name"] in INT8 else "float32"] += count_node(details)
    return counts


def first_inputs(session: InferenceSession, window_frames: int) -> dict[str, np.ndarray]:
    """Return zeros for one stream; axes that are free get the sizes of the metadata."""
    known = {"F": window_frames, "T": window_frames}
    metadata = session.get_modelmeta().custom_metadata_map
    known["left"] = int(metadata.get("left_context", 1))
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    return {
        port.name: np.zeros(
            [axis if isinstance(axis, int) else known.get(axis, 1) for axis in port.shape], kinds[port.type]
        )
        for port in session.get_inputs()
    }


def count_node(details: dict) -> float:
    """Return a product's multiply-adds, b M K N, as the root of |A| |B| |C| / b, transposed or not."""
    first, second, *_ = (next(iter(shape.values())) for shape in details["input_type_shape"])
    result = next(iter(details["output_type_shape"][0].values()))
    if details["op_name"].endswith("Conv"):
        return math.prod(result) * math.prod(second[1:])
    batch = math.prod(result[:-2]) if len(second) > 2 else 1
    return math.sqrt(math.prod(first) * math.prod(second) * math.prod(result) / batch)


def measure_rate(kind: str, rows: int, inner: int, columns: int) -> float:
    """Return the multiply-adds a second of one product [rows, inner] x [inner, columns]."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((inner, columns)).astype(np.float32)
    session = InferenceSession(
        make_product(kind, weights).SerializeToString(), one_thread(), providers=["CPUExecutionProvider"]
    )
    inputs = {"x": random.standard_normal((rows, inner)).astype(np.float32)}
    if kind == "int8":
        inputs["x"] = (inputs["x"] * 20 + 128).clip(0, 255).astype(np.uint8)
    best, end = math.inf, time.perf_counter() + BUDGET_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, inputs)
        best = min(best, time.perf_counter() - start)
    return rows * inner * columns / best


def make_product(kind: str, weights: np.ndarray) -> onnx.ModelProto:
    """Return a graph of one product."""
    if kind == "int8":
        node = helper.make_node("MatMulInteger", ["x", "weights"], ["y"])
        weights, element, result = (weights * 30).astype(np.int8), TensorProto.UINT8, TensorProto.INT32
    else:
        node = helper.make_node("MatMul", ["x", "weights"], ["y"])
        element = result = TensorProto.FLOAT
    inner, columns = weights.shape
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", element, ["M", inner])],
        [helper.make_tensor_value_info("y", result, ["M", columns])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one_thread() -> SessionOptions:
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options
