"""A tiny model that keeps the contract to the letter, with random weights and a memory that matters.

Two layers; each attends over its cache and the chunk, and convolves over its second cache and the chunk, so
a mistake with either state changes tokens. It loads in onebest and in sherpa-onnx.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onebest.frontend import SPEC

LAYERS, LEFT, WIDTH, KERNEL, JOINED, CONTEXT = 2, 8, 12, 4, 16, 2
CHUNK, PAD = 32, 3
SYMBOLS = [
    "<blk>",
    "<sos/eos>",
    "<unk>",
    "▁a",
    "▁the",
    "b",
    "c",
    "▁d",
    "e",
    "f",
    "▁g",
    "h",
    "'",
    "▁i",
    "j",
    "k",
    "<0xC3>",
    "<0xA9>",
    "▁",
    "s",
    "t",
    "▁u",
    "v",
    "w",
]
LAST = np.iinfo(np.int64).max


class Builder:
    """Collects nodes and weights of one graph."""

    def __init__(self, seed: int):
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, scale: float) -> str:
        return self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def part(self, data: str, first: Any, last: Any, axis: int, name: str = "") -> str:
        first, last = (edge if isinstance(edge, str) else self.constant([edge]) for edge in (first, last))
        return self.node("Slice", data, first, last, self.constant([axis]), name=name)

    def model(self, inputs: list[Any], outputs: list[Any], metadata: dict[str, Any]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(made, {key: str(value) for key, value in metadata.items()})
        onnx.checker.check_model(made)
        return made


def port(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _layer(build: Builder, layer: int, hidden: str) -> tuple[str, str, str]:
    """Return the layer's output [N,T,E] and its new caches [1,left,N,E] and [1,K-1,N,E]."""
    attention = build.node("Squeeze", build.part("cached_attn", layer, layer + 1, 0), build.constant([0]))
    convolution = build.node("Squeeze", build.part("cached_conv", layer, layer + 1, 0), build.constant([0]))
    seen = build.node("Concat", build.node("Transpose", attention, perm=[1, 0, 2]), hidden, axis=1)
    query = build.node("MatMul", hidden, build.weight(WIDTH, WIDTH, scale=0.6))
    scores = build.node("MatMul", query, build.node("Transpose", seen, perm=[0, 2, 1]))
    mixed = build.node("MatMul", build.node("Softmax", scores, axis=-1), seen)
    hidden = build.node(
        "Tanh", build.node("Add", hidden, build.node("MatMul", mixed, build.weight(WIDTH, WIDTH, scale=0.6)))
    )
    past = build.node("Concat", build.node("Transpose", convolution, perm=[1, 0, 2]), hidden, axis=1)
    convolved = build.node(
        "Conv",
        build.node("Transpose", past, perm=[0, 2, 1]),
        build.weight(WIDTH, 1, KERNEL, scale=0.7),
        group=WIDTH,
    )
    moved = build.part(build.node("Shape", hidden), 1, 2, 0)
    new_attention = build.node("Transpose", build.part(seen, moved, LAST, 1), perm=[1, 0, 2])
    new_convolution = build.node("Transpose", build.part(past, moved, LAST, 1), perm=[1, 0, 2])
    output = build.node("Tanh", build.node("Transpose", convolved, perm=[0, 2, 1]))
    first = build.constant([0])
    new_attention = build.node("Unsqueeze", new_attention, first)
    return output, new_attention, build.node("Unsqueeze", new_convolution, first)


def make_encoder(chunk: int = CHUNK, fixed: bool = False, **changed: Any) -> onnx.ModelProto:
    """Return the encoder; ``fixed`` fixes time and left context, ``changed`` alters metadata."""
    build = Builder(seed=5)
    scaled = build.node(
        "Mul", build.node("Add", "x", build.constant(np.float32(8.0))), build.constant(np.float32(0.125))
    )
    stem = build.node(
        "Conv",
        build.node("Transpose", scaled, perm=[0, 2, 1]),
        build.weight(WIDTH, 80, 7, scale=0.12),
        strides=[4],
    )
    hidden = build.node("Tanh", build.node("Transpose", stem, perm=[0, 2, 1]))
    caches = []
    for layer in range(LAYERS):
        hidden, *new = _layer(build, layer, hidden)
        caches.append(new)
    length = build.node("Cast", "processed_lens", to=TensorProto.FLOAT)
    unused = build.node("ReduceSum", build.node("Mul", length, build.constant(np.float32(0.0))), keepdims=0)
    hidden = build.node("Add", hidden, unused)
    build.node("MatMul", hidden, build.weight(WIDTH, JOINED, scale=1.2), name="encoder_out")
    build.node("Concat", *(new[0] for new in caches), name="new_cached_attn", axis=0)
    build.node("Concat", *(new[1] for new in caches), name="new_cached_conv", axis=0)
    left = LEFT if fixed else "left"
    inputs = [
        port("x", "N", chunk + PAD if fixed else "T", 80),
        port("cached_attn", LAYERS, left, "N", WIDTH),
        port("cached_conv", LAYERS, KERNEL - 1, "N", WIDTH),
        port("processed_lens", "N", kind=TensorProto.INT64),
    ]
    outputs = [
        port("encoder_out", "N", "C", JOINED),
        port("new_cached_attn", LAYERS, left, "N", WIDTH),
        port("new_cached_conv", LAYERS, KERNEL - 1, "N", WIDTH),
    ]
    metadata = {
        "model_type": "conformer",
        "version": 1,
        "T": chunk + PAD,
        "decode_chunk_len": chunk,
        "num_encoder_layers": LAYERS,
        "left_context": LEFT,
        "encoder_dim": WIDTH,
        "pad_length": PAD,
        "cnn_module_kernel": KERNEL,
        "front_end": json.dumps(SPEC.to_dict()),
    }
    return build.model(inputs, outputs, {**metadata, **changed})


def make_decoder(**changed: Any) -> onnx.ModelProto:
    """Return the decoder: an embedding of each of the last tokens, -1 counting as nothing."""
    build = Builder(seed=2)
    known = build.node("GreaterOrEqual", "y", build.constant(np.int64(0)))
    known = build.node("Cast", known, to=TensorProto.FLOAT)
    rows = build.node(
        "Gather",
        build.weight(len(SYMBOLS), JOINED, scale=1.0),
        build.node("Max", "y", build.constant(np.int64(0))),
    )
    rows = build.node("Mul", rows, build.node("Unsqueeze", known, build.constant([2])))
    flat = build.node("Reshape", rows, build.constant([-1, CONTEXT * JOINED]))
    build.node("MatMul", flat, build.weight(CONTEXT * JOINED, JOINED, scale=0.25), name="decoder_out")
    metadata = {"context_size": CONTEXT, "vocab_size": len(SYMBOLS), **changed}
    tokens = port("y", "N", CONTEXT, kind=TensorProto.INT64)
    return build.model([tokens], [port("decoder_out", "N", JOINED)], metadata)


def make_joiner(**changed: Any) -> onnx.ModelProto:
    """Return the joiner, its bias such that the blank wins about every second frame."""
    build = Builder(seed=3)
    total = build.node("Tanh", build.node("Add", "encoder_out", "decoder_out"))
    bias = np.zeros(len(SYMBOLS), np.float32)
    bias[0] = 2.4
    build.node(
        "Add",
        build.node("MatMul", total, build.weight(JOINED, len(SYMBOLS), scale=0.6)),
        build.constant(bias),
        name="logit",
    )
    inputs = [port("encoder_out", "N", JOINED), port("decoder_out", "N", JOINED)]
    return build.model(inputs, [port("logit", "N", len(SYMBOLS))], {"joiner_dim": JOINED, **changed})


def write_tokens(folder: Path) -> None:
    lines = [f"{symbol} {token}\n" for token, symbol in enumerate(SYMBOLS)]
    (folder / "tokens.txt").write_text("".join(lines), "utf-8")


def write_card(folder: Path, **changed: Any) -> None:
    """Write a card that fits the files in the folder."""
    names = {
        "encoder": "encoder.onnx",
        "decoder": "decoder.onnx",
        "joiner": "joiner.onnx",
        "tokens": "tokens.txt",
    }
    files = {
        part: {"file": name, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for part, name in names.items()
    }
    card = {
        "format": "onebest-bundle",
        "version": 1,
        "name": "tiny",
        "files": files,
        "front_end": SPEC.to_dict(),
        "architecture": {},
        "training": {},
        "wer": {},
        **changed,
    }
    (folder / "card.json").write_text(json.dumps(card))


def write_bundle(folder: Path, encoder: onnx.ModelProto | None = None) -> Path:
    """Write all five files of the tiny model and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(encoder or make_encoder(), folder / "encoder.onnx")
    onnx.save(make_decoder(), folder / "decoder.onnx")
    onnx.save(make_joiner(), folder / "joiner.onnx")
    write_tokens(folder)
    write_card(folder)
    return folder


def make_audio(seconds: float = 3.0, seed: int = 0, rate: int = 16000) -> np.ndarray:
    """Return float32 samples [S] that change all the time: gliding tones in noise that comes and goes."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(
        np.sin(2 * np.pi * (low + 300 * np.sin(speed * time)) * time) * (np.sin(beat * time) > 0)
        for low, speed, beat in random.uniform([150, 1, 5], [2500, 3, 25], (4, 3))
    )
    noise = random.standard_normal(len(time)) * (np.sin(7 * time) > 0.2)
    return (0.08 * tones + 0.05 * noise).astype(np.float32)
