"""int8 graphs as onnxruntime runs them, saved: a session that loads one has nothing left to optimise.

Two steps, neither of which depends on the processor. Sums that a layer norm follows become one operator with
it, the residual connections' sum an output beside the norm. Then onnxruntime fuses what it can (its level
"extended") and the result is saved. So a graph holds operators of onnxruntime's own, ``com.microsoft``, which
every build of it has on the CPU.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
from onnx import helper
from onnxruntime import (  # type: ignore[attr-defined]
    GraphOptimizationLevel,
    InferenceSession,
    SessionOptions,
)

#: The domain of onnxruntime's own operators, and its version.
OWN_DOMAIN, _OWN_VERSION = "com.microsoft", 1
#: onnxruntime warns of an input that has a default.
_ONLY_ERRORS = 3
#: What onnxruntime would fuse to no gain: its GELU with a bias takes twice as long as the two alone.
_NOT_FASTER = ["BiasGeluFusion"]


def optimize(path: Path) -> None:
    """Replace a graph by the one that onnxruntime makes of it; inputs, outputs and metadata stay."""
    model = onnx.load(str(path))
    fuse_norms(model)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        source, target = Path(name) / "source.onnx", Path(name) / "target.onnx"
        onnx.save(model, str(source))
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        options.log_severity_level = _ONLY_ERRORS
        InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=_NOT_FASTER
        )
        optimized = onnx.load(str(target))
    _name_domains(optimized)
    onnx.checker.check_model(optimized)
    onnx.save(optimized, str(path))


def fuse_norms(model: onnx.ModelProto) -> None:
    """Join each layer norm with the sum that it follows, and that sum with a bias added before it."""
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    weights = {item.name for item in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(port.name for port in graph.output)
    fused: dict[str, onnx.NodeProto] = {}
    gone: set[str] = set()
    for node in graph.node:
        total = producers.get(node.input[0]) if node.op_type == "LayerNormalization" else None
        if total is None or total.op_type != "Add" or weights & set(total.input):
            continue
        terms, biases = list(total.input), list[str]()
        for place, term in enumerate(terms):
            inner = producers.get(term)
            if inner is None or inner.op_type != "Add" or uses[term] > 1 or biases:
                continue
            rest = [name for name in inner.input if name not in weights]
            if len(rest) == 1:
                terms[place], biases = rest[0], [name for name in inner.input if name in weights]
                gone.add(inner.name)
        gone.add(total.name)
        fused[node.name] = helper.make_node(
            "SkipLayerNormalization",
            [*terms, *node.input[1:], *biases],
            [node.output[0], "", "", total.output[0]],
            node.name,
            domain=OWN_DOMAIN,
            epsilon=next(item.f for item in node.attribute if item.name == "epsilon"),
        )
    nodes = [fused.get(node.name, node) for node in graph.node if node.name not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid(OWN_DOMAIN, _OWN_VERSION))


def _name_domains(model: onnx.ModelProto) -> None:
    """Name the domains of the operators that are there; onnxruntime names all that it knows."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
