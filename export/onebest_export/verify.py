"""ONNX against torch over many chunks with state, the three graphs joined as a recogniser joins them.

Axis legend: N streams, F feature frames (10 ms), T encoder frames (40 ms), J joiner width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from onebest.errors import ModelError
from onebest.frontend import NUM_BINS
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING
from onebest_training.transducer import Transducer

FloatArray = npt.NDArray[np.float32]
#: Largest difference of a log-probability between float32 ONNX and torch.
TOLERANCE = 1e-3
#: Smallest share of best tokens in which int8 must agree with torch.
INT8_AGREEMENT = 0.9
CHUNKS, STREAMS = 40, 2


@dataclass(frozen=True)
class Difference:
    """How far ONNX is from torch.

    Attributes:
        log_prob: largest absolute difference of a log-probability.
        agreement: share of nodes at which both have the same best token.
    """

    log_prob: float
    agreement: float


def synthetic_features(frames: int, streams: int, seed: int = 0) -> FloatArray:
    """Return features [N, F, 80] with the level, the slope and the slow changes of speech."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(streams, frames, NUM_BINS)).astype(np.float32)
    kernel = np.exp(-np.arange(25, dtype=np.float32) / 6)
    smooth = np.apply_along_axis(lambda row: np.convolve(row, kernel, "same"), 1, steps)
    return np.asarray(smooth + np.linspace(-5, -9, NUM_BINS, dtype=np.float32), np.float32)


def compare(
    model: Transducer,
    encoder: Path,
    decoder: Path,
    joiner: Path,
    chunk_frames: int,
    left_frames: int,
    features: FloatArray,
) -> Difference:
    """Run features [N, F, 80] through both, chunk by chunk, and compare the joiner's output for random contexts."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(str(p), options, ["CPUExecutionProvider"])
        for p in (encoder, decoder, joiner)
    ]
    ours = _run_torch(model, features, chunk_frames, left_frames)
    theirs = _run_onnx(sessions, model, features, chunk_frames, left_frames)
    return Difference(
        float(np.abs(ours - theirs).max()), float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    )


def check_float(difference: Difference) -> None:
    """Refuse a float32 export that is not torch's equal.

    Raises:
        ModelError: the log-probabilities differ by more than ``TOLERANCE``.
    """
    if not difference.log_prob <= TOLERANCE:
        raise ModelError(
            f"the exported graphs differ from torch by {difference.log_prob:.2g} in log-probability "
            f"(at most {TOLERANCE:g} is allowed); nothing was written. Please report this with the config."
        )


def check_int8(difference: Difference) -> None:
    """Refuse an int8 export that too often has another best token.

    Raises:
        ModelError: fewer than ``INT8_AGREEMENT`` of the best tokens are torch's.
    """
    if not difference.agreement >= INT8_AGREEMENT:
        raise ModelError(
            f"the int8 graphs agree with torch on {difference.agreement:.1%} of best tokens only "
            f"({INT8_AGREEMENT:.0%} is needed); nothing was written. Export with --float instead."
        )


def _contexts(model: Transducer, frames: int, streams: int) -> npt.NDArray[np.int64]:
    size = (streams, frames, model.config.context_size)
    contexts = np.random.default_rng(1).integers(1, model.config.vocabulary_size, size)
    contexts[:, 0] = -1
    contexts[:, 0, -1] = 0
    return contexts


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)


def _windows(features: FloatArray, chunk_frames: int) -> list[FloatArray]:
    advance = SUBSAMPLING * chunk_frames
    count = (features.shape[1] - PAD_FRAMES) // advance
    return [features[:, advance * i : advance * (i + 1) + PAD_FRAMES] for i in range(count)]


@torch.inference_mode()
def _run_torch(model: Transducer, features: FloatArray, chunk_frames: int, left_frames: int) -> FloatArray:
    state, parts = model.encoder.initial_state(len(features), left_frames), []
    for window in _windows(features, chunk_frames):
        encoded, state = model.encoder.forward_chunk(torch.from_numpy(window), state)
        parts.append(model.projection(encoded))
    encoded = torch.cat(parts, 1)
    contexts = torch.from_numpy(_contexts(model, encoded.shape[1], len(features)))
    return _log_softmax(model.joiner(encoded, model.predictor(contexts)).numpy())


def _run_onnx(
    sessions: list[onnxruntime.InferenceSession],
    model: Transducer,
    features: FloatArray,
    chunk_frames: int,
    left_frames: int,
) -> FloatArray:
    encoder, decoder, joiner = sessions
    blocks, width = len(model.encoder.blocks), 2 * model.config.encoder.width
    attention = np.zeros((blocks, left_frames, len(features), width), np.float32)
    convolution = np.zeros((blocks, model.encoder.convolution_frames, len(features), width), np.float32)
    processed, parts = np.zeros(len(features), np.int64), []
    for window in _windows(features, chunk_frames):
        encoded, attention, convolution = encoder.run(
            None,
            {"x": window, "cached_attn": attention, "cached_conv": convolution, "processed_lens": processed},
        )
        processed = processed + SUBSAMPLING * chunk_frames
        parts.append(encoded)
    encoded = np.concatenate(parts, 1)
    contexts = _contexts(model, encoded.shape[1], len(features))
    decoded = decoder.run(None, {"y": contexts.reshape(-1, contexts.shape[-1])})[0]
    logits = joiner.run(None, {"encoder_out": encoded.reshape(decoded.shape), "decoder_out": decoded})[0]
    return _log_softmax(logits).reshape(*encoded.shape[:2], -1)
