"""The torch model as three ONNX graphs in sherpa-onnx's ``conformer`` contract.

Axis legend: N streams, F feature frames (10 ms), T encoder frames (40 ms), J joiner width, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from onebest.frontend import SPEC
from onebest.layout import CHUNK_INPUT
from onebest_export import streams
from onebest_export.latency import latency_metadata
from onebest_export.streaming import ONE_CHUNK, StreamingEncoder, example_inputs
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING
from onebest_training.transducer import Transducer

OPSET = 17


def encoder_metadata(
    model: Transducer, chunk_frames: int, left_frames: int, right_frames: int = 0
) -> dict[str, str]:
    """Return the metadata of the encoder at one latency, as sherpa-onnx reads it.

    A chunk has ``chunk_frames``, of which the last ``right_frames`` come again with the next.
    ``num_encoder_layers`` and ``encoder_dim`` are there to size the states; see ``streaming``.
    """
    pad_frames = SUBSAMPLING * right_frames + PAD_FRAMES
    return {
        "model_type": "conformer",
        "version": "1",
        "model_author": "onebest",
        "comment": "streaming transducer",
        **latency_metadata(chunk_frames - right_frames, left_frames, pad_frames),
        "pad_length": str(pad_frames),
        "num_encoder_layers": str(2 * len(model.encoder.blocks)),
        "right_context": str(right_frames),
        "encoder_dim": str(model.config.encoder.width),
        "cnn_module_kernel": str(model.encoder.convolution_frames + 1),
        "front_end": json.dumps(SPEC.to_dict()),
    }


def export_encoder(
    model: Transducer, path: Path, chunk_frames: int, left_frames: int, right_frames: int = 0
) -> None:
    """Write the encoder; N, the chunk and the left context are free axes, the metadata names one latency.

    The right context is the graph's own.

    Its last input has a default, so it is not among those that a program must give: see ``streaming``.
    """
    encoder = StreamingEncoder(model, right_frames).eval()
    _export(
        encoder,
        example_inputs(encoder, chunk_frames, left_frames),
        path,
        ["x", "cached_attn", "cached_conv", "processed_lens", CHUNK_INPUT],
        ["encoder_out", "new_cached_attn", "new_cached_conv"],
        {
            "x": {0: "N", 1: "F"},
            "cached_attn": {1: "left", 2: "N"},
            "cached_conv": {2: "N"},
            "processed_lens": {0: "N"},
            "encoder_out": {0: "N", 1: "T"},
            "new_cached_attn": {1: "left", 2: "N"},
            "new_cached_conv": {2: "N"},
        },
        encoder_metadata(model, chunk_frames, left_frames, right_frames),
        [numpy_helper.from_array(np.array(ONE_CHUNK), CHUNK_INPUT)],
    )


def export_streams(
    model: Transducer, path: Path, chunk_frames: int, left_frames: int, right_frames: int = 0
) -> None:
    """Write the encoder for a few streams, see ``streams``; N, chunk and left context are free axes."""
    encoder = streams.StreamsEncoder(model, right_frames).eval()
    names, arguments = streams.example_inputs(encoder, chunk_frames, left_frames)
    memories = {
        name: {0: "left", 1: "B"} if value.dim() == 4 else {1: "B"}
        for name, value in zip(names[2:], arguments[2:], strict=True)
    }
    _export(
        encoder,
        arguments,
        path,
        names,
        ["encoder_out", "new_memory"],
        {
            "x": {0: "N", 1: "F"},
            "seen": {0: "N"},
            **memories,
            "encoder_out": {0: "N", 1: "T"},
            "new_memory": {1: "T", 2: "N"},
        },
        {"slots": str(streams.SLOTS), "count_period": str(encoder.wrap)},
    )


def export_decoder(model: Transducer, path: Path) -> None:
    """Write the predictor with its projection: y [N, context] -> decoder_out [N, J].

    With a language model inside, see ``onebest_training.fusion``, it is [N, J + V].
    """
    context = torch.zeros(2, model.config.context_size, dtype=torch.int64)
    _export(
        model.predictor,
        (context,),
        path,
        ["y"],
        ["decoder_out"],
        {"y": {0: "N"}, "decoder_out": {0: "N"}},
        {"context_size": str(model.config.context_size), "vocab_size": str(model.config.vocabulary_size)},
    )


def export_joiner(model: Transducer, path: Path) -> None:
    """Write the joiner: encoder_out [N, J] and the decoder's output -> logit [N, V]."""
    encoded = torch.zeros(2, model.config.joiner_width)
    predicted = model.predictor(torch.zeros(2, model.config.context_size, dtype=torch.int64))
    _export(
        model.joiner,
        (encoded, predicted),
        path,
        ["encoder_out", "decoder_out"],
        ["logit"],
        {"encoder_out": {0: "N"}, "decoder_out": {0: "N"}, "logit": {0: "N"}},
        {"joiner_dim": str(model.config.joiner_width)},
    )


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
    metadata: dict[str, str],
    defaults: Sequence[onnx.TensorProto] = (),
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            arguments,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load(str(path))
    graph.graph.initializer.extend(defaults)
    for key, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
