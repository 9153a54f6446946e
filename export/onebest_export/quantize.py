"""Float32 graphs -> int8 ones: weights with a scale for each output, activations with one for each row.

A product of activations and weights becomes

    m = largest of |x| in each row          rows: whatever stands before the last axis
    y = ((Q(x / m) - z) @ W8) * (step * w) * m

where Q rounds to 8 bits with a constant step and zero z, W8 is the weight in int8 and w its scale for each
output. So a frame's numbers depend on that frame alone: neither the length of a chunk nor what else is in the
batch changes them, as they would if the scale came from the whole tensor (ONNX's DynamicQuantizeLinear). The
pair of QuantizeLinear and DequantizeLinear around a product is what onnxruntime fuses into one int8 product.

Behind a GELU or ReLU, whose values have a lower bound near 0, nearly all of the 8 bits go to what is above.

What stays in float: the embedding and the depthwise convolutions, which are small, and the stem's first
product, whose input is log-mel frames.

Processors without VNNI add the products of two neighbouring inputs in 16 bits, which would saturate: at
255 * (w1 + w2) above 32767. So a scale also keeps the sum of two such weights within 128, and every processor
gets the same sums. docs/LOG.md has what that costs and what it saves.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

#: Products that are never quantised.
IN_FLOAT = ("/stem/first/",)
#: Operators that move values and change none.
_MOVES = {"Concat", "Slice", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}
_GELU_DEPTH = 3
#: Largest sum of the weights of inputs 2k and 2k + 1, before either is rounded.
_LARGEST_PAIR = 127

FloatArray = npt.NDArray[np.float32]


class _Code(NamedTuple):
    """How 8 bits stand for activations: x = (code - zero) * step, after division by the row's largest.

    Attributes:
        step, zero: as above.
        smallest: the least that a row is divided by.
        signed: whether the row's largest is that of the absolute values.
    """

    step: float
    zero: int
    smallest: float
    signed: bool


_SIGNED = _Code(1 / 127, 128, 1e-8, True)
#: GELU is never below -0.17: after division by 2 or more that is less than 21 steps.
_ABOVE_ZERO = _Code(1 / 234, 21, 2.0, False)


def product_names(path: Path) -> list[str]:
    """Return the names of a graph's products of activations and weights, in order, that may be quantised."""
    graph = onnx.load(str(path)).graph
    weights = {item.name for item in graph.initializer}
    return [node.name for node in graph.node if _is_product(node, weights)]


def quantize(
    source: Path, target: Path, *, bound: float | None = None, in_float: Collection[str] = ()
) -> None:
    """Write an int8 copy of a graph; its inputs, outputs and metadata stay as they are.

    Args:
        source: the float32 graph.
        target: the file to write.
        bound: largest absolute value of all activations, where it is known: no row need be searched for its
            own then.
        in_float: names of products to leave as they are.
    """
    model = onnx.load(str(source))
    _Quantizer(model.graph, bound).rewrite(in_float)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _is_product(node: onnx.NodeProto, weights: Collection[str]) -> bool:
    """Whether a node is a Linear layer as torch writes it: for two axes a Gemm whose weight is transposed."""
    is_product = node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    return is_product and not node.name.startswith(IN_FLOAT)


class _Quantizer:
    """Rewrites the products of one graph."""

    def __init__(self, graph: onnx.GraphProto, bound: float | None):
        self._graph, self._bound = graph, bound
        self._weights = {item.name: item for item in graph.initializer}
        self._producers = {output: node for node in graph.node for output in node.output}
        self._nodes: list[onnx.NodeProto] = []

    def rewrite(self, in_float: Collection[str]) -> None:
        for node in self._graph.node:
            if _is_product(node, self._weights) and node.name not in in_float:
                self._quantize(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.initializer[:]
        self._graph.initializer.extend(self._weights.values())

    def _quantize(self, node: onnx.NodeProto) -> None:
        """Write what takes the place of one product."""
        name, weight = node.name, numpy_helper.to_array(self._weights.pop(node.input[1]))
        bias = node.input[2] if len(node.input) > 2 else ""
        if node.op_type == "Gemm":
            weight = weight.T
        data, largest = node.input[0], ""
        if self._bound is not None:
            # A step of its own for the product: onnxruntime joins MatMul and Add, and fuses neither then.
            code = _SIGNED._replace(step=self._bound / 127)
            largest = self._constant(f"{name}_step", np.float32(code.step))
        else:
            code = _ABOVE_ZERO if self._is_above_zero(data) else _SIGNED
            data, largest = self._normalize(name, data, code)
        decoded = self._coded(name, data, code, in_steps=self._bound is not None)
        product = self._add("MatMul", name, decoded, self._coded_weight(name, weight))
        if largest:
            product = self._add("Mul", f"{name}_rescaled", product, largest)
        if bias:
            product = self._add("Add", f"{name}_biased", product, bias)
        self._nodes[-1].output[0] = node.output[0]

    def _normalize(self, name: str, data: str, code: _Code) -> tuple[str, str]:
        """Return the data divided by the largest of its row, and that."""
        size = self._add("Abs", f"{name}_size", data) if code.signed else data
        largest = self._add("ReduceMax", f"{name}_largest", size, axes=[-1], keepdims=1)
        smallest = self._constant(f"{name}_smallest", np.float32(code.smallest))
        largest = self._add("Max", f"{name}_divisor", largest, smallest)
        return self._add("Div", f"{name}_normal", data, largest), largest

    def _coded(self, name: str, data: str, code: _Code, in_steps: bool) -> str:
        """Return what 8 bits keep of the data, divided by the step or not."""
        step = self._constant(f"{name}_step", np.float32(code.step))
        zero = self._constant(f"{name}_zero", np.uint8(code.zero))
        coded = self._add("QuantizeLinear", f"{name}_coded", data, step, zero)
        unit = self._constant(f"{name}_unit", np.float32(1)) if in_steps else step
        return self._add("DequantizeLinear", f"{name}_decoded", coded, unit, zero)

    def _coded_weight(self, name: str, weight: FloatArray) -> str:
        """Store a weight [inputs, outputs] in int8 with a scale for each output."""
        even, odd = weight[: len(weight) // 2 * 2 : 2], weight[1::2]
        pairs = np.abs(even + odd).max(0, initial=0.0)
        scale = np.maximum(np.abs(weight).max(0) / 127, pairs / _LARGEST_PAIR)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        rounded = np.rint(weight / scale).clip(-127, 127).astype(np.int8)
        parts = (
            self._constant(f"{name}_weight", rounded),
            self._constant(f"{name}_weight_scale", scale),
            self._constant(f"{name}_weight_zero", np.zeros(len(scale), np.int8)),
        )
        return self._add("DequantizeLinear", f"{name}_weight_decoded", *parts, axis=1)

    def _is_above_zero(self, data: str) -> bool:
        """Whether the values come from a GELU, x * (1 + erf(x / sqrt 2)) / 2, or a ReLU."""
        node = self._producers.get(data)
        while node is not None and node.op_type in _MOVES:
            node = self._producers.get(node.input[0])
        return node is not None and (
            node.op_type == "Relu" or (node.op_type == "Mul" and self._has_erf(node, _GELU_DEPTH))
        )

    def _has_erf(self, node: onnx.NodeProto, depth: int) -> bool:
        above = [self._producers[name] for name in node.input if name in self._producers]
        return any(
            other.op_type == "Erf" or (depth > 1 and self._has_erf(other, depth - 1)) for other in above
        )

    def _add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        node = helper.make_node(operator, inputs, [f"{name}_output"], name, **attributes)
        self._nodes.append(node)
        return node.output[0]

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        self._weights[name] = numpy_helper.from_array(np.asarray(value), name)
        return name
