"""Small random encoders in the two layouts that icefall exports for sherpa-onnx; every state matters.

They take the decoder, joiner and tokens of the tiny model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from tiny_model import JOINED, LAST, Builder, make_decoder, make_joiner, port, write_tokens

LEFT, WIDTH, LAYERS, KERNEL = 12, 8, 3, 5
CONFORMER = {
    "model_type": "conformer",
    "version": "1",
    "model_author": "k2-fsa",
    "comment": "stateless5",
    "pad_length": 11,
    "decode_chunk_len": 64,
    "T": 75,
    "encoder_dim": WIDTH,
    "num_encoder_layers": LAYERS,
    "cnn_module_kernel": KERNEL,
    "left_context": LEFT,
    "right_context": 0,
    "chunk_size": 16,
}
ZIPFORMER2 = {
    "model_type": "zipformer2",
    "version": "1",
    "model_author": "k2-fsa",
    "comment": "streaming zipformer2",
    "decode_chunk_len": 32,
    "T": 45,
    "num_encoder_layers": "1,2",
    "encoder_dims": "8,12",
    "query_head_dims": "3,2",
    "value_head_dims": "2,3",
    "num_heads": "2,4",
    "left_context_len": "10,6",
    "cnn_module_kernels": "7,5",
}


def write_contract_model(folder: Path, encoder: onnx.ModelProto) -> Path:
    """Write a model as it comes from elsewhere: without a card."""
    folder.mkdir()
    for part, model in (("encoder", encoder), ("decoder", make_decoder()), ("joiner", make_joiner())):
        onnx.save(model, folder / f"{part}.onnx")
    write_tokens(folder)
    return folder


def make_conformer(**changed: object) -> onnx.ModelProto:
    """Return an encoder whose caches are the inputs of its layers, masked by ``processed_lens``."""
    build = Builder(seed=21)
    hidden, mask, caches = _stem(build, 15, WIDTH), _cache_mask(build), []
    for layer in range(LAYERS):
        attention, convolution = (
            build.node("Squeeze", build.part(name, layer, layer + 1, 0), build.constant([0]))
            for name in ("cached_attn", "cached_conv")
        )
        seen = build.node("Concat", attention, build.node("Transpose", hidden, perm=[1, 0, 2]), axis=0)
        scores = _scores(build, hidden, WIDTH, seen, WIDTH)
        mixed = _mix(build, build.node("Softmax", build.node("Add", scores, mask), axis=-1), seen)
        hidden = _residual(build, hidden, mixed, WIDTH, WIDTH)
        by_time = build.node("Transpose", hidden, perm=[1, 0, 2])
        past = build.node("Concat", convolution, by_time, axis=0)
        hidden = _convolve(build, build.node("Transpose", past, perm=[1, 2, 0]), WIDTH, KERNEL)
        new = build.part(seen, -LEFT, LAST, 0), build.part(past, 1 - KERNEL, LAST, 0)
        caches.append([build.node("Unsqueeze", cache, build.constant([0])) for cache in new])
    build.node("MatMul", hidden, build.weight(WIDTH, JOINED, scale=1.2), name="encoder_out")
    build.node("Concat", *(new[0] for new in caches), name="new_cached_attn", axis=0)
    build.node("Concat", *(new[1] for new in caches), name="new_cached_conv", axis=0)
    states = [
        port("{}cached_attn", LAYERS, LEFT, "N", WIDTH),
        port("{}cached_conv", LAYERS, KERNEL - 1, "N", WIDTH),
    ]
    lengths = port("processed_lens", "N", kind=TensorProto.INT64)
    return _finish(build, 75, 16, states, {**CONFORMER, **changed}, [lengths])


def make_zipformer2(**changed: object) -> onnx.ModelProto:
    """Return an encoder with the six states a layer, the state of the embedding, and the count."""
    build = Builder(seed=22)
    metadata = {**ZIPFORMER2, **changed}
    stacks = zip(*(map(int, str(metadata[key]).split(",")) for key in _STACK_KEYS), strict=True)
    hidden, width = _embed(build, _stem(build, 17, 8)), 8
    states, layer = [], 0
    for layers, dim, query, value, heads, left, kernel in stacks:
        hidden, width = build.node("MatMul", hidden, build.weight(width, dim, scale=0.6)), dim
        for _ in range(layers):
            sizes = (dim, query * heads, value * heads, left, kernel)
            hidden = _zipformer2_layer(build, hidden, layer, sizes)
            states += _zipformer2_ports(layer, sizes)
            layer += 1
    build.node("MatMul", hidden, build.weight(width, JOINED, scale=1.5), name="encoder_out")
    build.node("Add", "processed_lens", build.constant(np.int64(16)), name="new_processed_lens")
    states += [
        port("{}embed_states", "N", 128, 3, 19),
        port("{}processed_lens", "N", kind=TensorProto.INT64),
    ]
    return _finish(build, int(metadata["T"]), int(metadata["decode_chunk_len"]) // 4, states, metadata, [])


_STACK_KEYS = (
    "num_encoder_layers",
    "encoder_dims",
    "query_head_dims",
    "value_head_dims",
    "num_heads",
    "left_context_len",
    "cnn_module_kernels",
)


def _finish(build, window, frames, states, metadata, others):
    """Return the model: features, states and other inputs in, frames and new states out."""

    def named(prefix):
        made = [onnx.ValueInfoProto.FromString(state.SerializeToString()) for state in states]
        for state in made:
            state.name = state.name.format(prefix)
        return made

    inputs = [port("x", "N", window, 80), *named(""), *others]
    return build.model(inputs, [port("encoder_out", "N", frames, JOINED), *named("new_")], metadata)


def _stem(build, kernel, width):
    """Return frames [N,T,D]: a convolution over the window, four feature frames a step."""
    scaled = build.node("Mul", build.node("Add", "x", _number(build, 8.0)), _number(build, 0.125))
    channels = build.node("Transpose", scaled, perm=[0, 2, 1])
    stem = build.node("Conv", channels, build.weight(width, 80, kernel, scale=0.08), strides=[4])
    return build.node("Tanh", build.node("Transpose", stem, perm=[0, 2, 1]))


def _number(build, value):
    return build.constant(np.float32(value))


def _cache_mask(build):
    """Return [N,1,left+16]: -1e4 where the cache has no frame yet; it has ``processed_lens`` / 4."""
    frames = build.node("Div", "processed_lens", build.constant(np.int64(4)))
    frames = build.node("Unsqueeze", frames, build.constant([1, 2]))
    age = build.constant(np.concatenate([np.arange(LEFT, 0, -1), np.zeros(16, np.int64)])[None, None])
    missing = build.node("Cast", build.node("Greater", age, frames), to=TensorProto.FLOAT)
    return build.node("Mul", missing, _number(build, -1e4))


def _scores(build, hidden, width, keys, key_width):
    """Return scores [N,T,left+T] of frames [N,T,D] for keys [left+T,N,K]."""
    query = build.node("MatMul", hidden, build.weight(width, key_width, scale=0.6))
    return build.node("MatMul", query, build.node("Transpose", keys, perm=[1, 2, 0]))


def _mix(build, weights, values):
    return build.node("MatMul", weights, build.node("Transpose", values, perm=[1, 0, 2]))


def _residual(build, hidden, added, added_width, width):
    mapped = build.node("MatMul", added, build.weight(added_width, width, scale=0.7))
    return build.node("Tanh", build.node("Add", hidden, mapped))


def _convolve(build, past, width, kernel):
    """Return frames [N,T,D] of a depthwise convolution over [N,D,kernel-1+T]."""
    convolved = build.node("Conv", past, build.weight(width, 1, kernel, scale=0.7), group=width)
    return build.node("Tanh", build.node("Transpose", convolved, perm=[0, 2, 1]))


def _embed(build, hidden):
    """Return the frames with what the embedding's state and the count say; write the new state."""
    said = build.node(
        "MatMul",
        build.node("ReduceMean", "embed_states", axes=[1, 2], keepdims=0),
        build.weight(19, 8, scale=0.5),
    )
    count = build.node("Cast", "processed_lens", to=TensorProto.FLOAT)
    wave = build.node("Sin", build.node("Mul", count, _number(build, 0.02)))
    said = build.node("Add", said, build.node("Unsqueeze", wave, build.constant([1])))
    mean = build.node("ReduceMean", hidden, axes=[1], keepdims=0)
    new = build.node("Tanh", build.node("MatMul", mean, build.weight(8, 128 * 19, scale=1.0)))
    new = build.node("Reshape", new, build.constant([-1, 128, 1, 19]))
    build.node("Concat", build.part("embed_states", 1, LAST, 2), new, name="new_embed_states", axis=2)
    return build.node("Add", hidden, build.node("Unsqueeze", said, build.constant([1])))


def _zipformer2_layer(build, hidden, layer, sizes):
    """Return the frames behind a layer [N,T,D]; write its six new states."""
    width, key_width, value_width, left, kernel = sizes
    nonlinear = 3 * width // 4

    def grow(name, new, axis, keep):
        grown = build.node("Concat", f"cached_{name}_{layer}", new, axis=axis)
        build.part(grown, -keep, LAST, axis, name=f"new_cached_{name}_{layer}")
        return grown

    def project(size):
        return build.node("MatMul", hidden, build.weight(width, size, scale=0.6))

    def by_time(size):
        return build.node("Transpose", project(size), perm=[1, 0, 2])

    keys = grow("key", by_time(key_width), 0, left)
    weights = build.node("Softmax", _scores(build, hidden, width, keys, key_width), axis=-1)
    inner = grow("nonlin_attn", build.node("Unsqueeze", project(nonlinear), build.constant([0])), 2, left)
    inner = build.node("MatMul", weights, build.node("Squeeze", inner, build.constant([0])))
    hidden = _residual(build, hidden, inner, nonlinear, width)
    for number in (1, 2):
        values = grow(f"val{number}", by_time(value_width), 0, left)
        hidden = _residual(build, hidden, _mix(build, weights, values), value_width, width)
        channels = build.node("Transpose", hidden, perm=[0, 2, 1])
        past = grow(f"conv{number}", channels, 2, kernel // 2)
        hidden = _convolve(build, past, width, kernel // 2 + 1)
    return hidden


def _zipformer2_ports(layer, sizes):
    width, key_width, value_width, left, kernel = sizes
    return [
        port(f"{{}}cached_key_{layer}", left, "N", key_width),
        port(f"{{}}cached_nonlin_attn_{layer}", 1, "N", left, 3 * width // 4),
        port(f"{{}}cached_val1_{layer}", left, "N", value_width),
        port(f"{{}}cached_val2_{layer}", left, "N", value_width),
        port(f"{{}}cached_conv1_{layer}", "N", width, kernel // 2),
        port(f"{{}}cached_conv2_{layer}", "N", width, kernel // 2),
    ]
