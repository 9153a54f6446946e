"""The torch model as three ONNX graphs in sherpa-onnx's ``conformer`` contract.

That contract has two state tensors, which its callers start at zero and only stack, split and hand back; what is in
them is the model's own. Ours: keys and values side by side in ``cached_attn`` [L, left, N, 2D]; in ``cached_conv``
[L, K-1, N, 2D] the convolutions' inputs in the first D channels, and the frames seen so far in channel D of the very
first row. ``processed_lens`` restarts when a caller resets after an endpoint although the state persists, so it is
taken in and not believed.

Axis legend: N streams, F feature frames (10 ms), T encoder frames (40 ms), L blocks, K convolution kernel, D width,
J joiner width, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from onebest.frontend import NUM_BINS, SPEC
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING, EncoderState
from onebest_training.transducer import Transducer

OPSET = 17


class StreamingEncoder(nn.Module):
    """One chunk of N streams with the contract's inputs and outputs."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.encoder, self.projection = model.encoder, model.projection
        self.width = model.config.encoder.width
        #: The count of frames is kept below twice this; it must exceed any left context and keep the position.
        self.wrap = 4 * len(model.encoder.positions)

    def forward(
        self, x: Tensor, cached_attn: Tensor, cached_conv: Tensor, processed_lens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x [N, F, 80]; return encoder_out [N, T, J] and the two new states."""
        seen = cached_conv[0, 0, :, self.width]
        state = EncoderState(cached_attn, cached_conv[..., : self.width], seen.to(torch.int64))
        encoded, new = self.encoder.forward_chunk(x, state)
        frames = new.frames.to(torch.float32)
        frames = torch.where(frames >= 2 * self.wrap, frames - self.wrap, frames)
        spare = torch.zeros_like(new.convolution)
        count = nn.functional.pad(frames[None, None, :, None], (0, self.width - 1))
        count = nn.functional.pad(count, (0, 0, 0, 0, 0, spare.shape[1] - 1, 0, spare.shape[0] - 1))
        convolution = torch.cat((new.convolution, spare + count), 3)
        ignored = (processed_lens * 0).to(torch.float32)[:, None, None]
        return self.projection(encoded) + ignored, new.attention, convolution


def encoder_metadata(model: Transducer, chunk_frames: int, left_frames: int) -> dict[str, str]:
    """Return the metadata of the encoder at one latency, as sherpa-onnx reads it."""
    return {
        "model_type": "conformer",
        "version": "1",
        "model_author": "onebest",
        "comment": "streaming transducer",
        "T": str(SUBSAMPLING * chunk_frames + PAD_FRAMES),
        "decode_chunk_len": str(SUBSAMPLING * chunk_frames),
        "pad_length": str(PAD_FRAMES),
        "num_encoder_layers": str(len(model.encoder.blocks)),
        "left_context": str(left_frames),
        "right_context": "0",
        "chunk_size": str(chunk_frames),
        "encoder_dim": str(2 * model.config.encoder.width),
        "cnn_module_kernel": str(model.encoder.convolution_frames + 1),
        "front_end": json.dumps(SPEC.to_dict()),
    }


def export_encoder(model: Transducer, path: Path, chunk_frames: int, left_frames: int) -> None:
    """Write the encoder; N, the chunk and the left context are free axes, the metadata names one latency."""
    wrapped = StreamingEncoder(model).eval()
    state = model.encoder.initial_state(2, left_frames)
    convolution = torch.cat((state.convolution, state.convolution), 3)
    features = torch.zeros(2, SUBSAMPLING * chunk_frames + PAD_FRAMES, NUM_BINS)
    _export(
        wrapped,
        (features, state.attention, convolution, torch.zeros(2, dtype=torch.int64)),
        path,
        ["x", "cached_attn", "cached_conv", "processed_lens"],
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
        encoder_metadata(model, chunk_frames, left_frames),
    )


def export_decoder(model: Transducer, path: Path) -> None:
    """Write the predictor with its projection: y [N, context] -> decoder_out [N, J]."""
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
    """Write the joiner: encoder_out [N, J], decoder_out [N, J] -> logit [N, V]."""
    part = torch.zeros(2, model.config.joiner_width)
    _export(
        model.joiner,
        (part, part),
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
    for key, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
