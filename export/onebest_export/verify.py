"""ONNX against torch over many chunks with state, the three graphs joined as a recogniser joins them.

Torch's own search gives the contexts: a trained model's best token is nearly always the blank, so how often
the best tokens are equal says something only where a token comes out, and behind the tokens that came before.

Axis legend: N streams, F feature frames (10 ms), T encoder frames (40 ms), C context, J joiner width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from onebest.bundle import Bundle
from onebest.errors import ModelError
from onebest.frontend import NUM_BINS
from onebest.graph import Graph
from onebest.search import Context, search, start_state
from onebest.streams import State
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING
from onebest_training.transducer import BLANK, Transducer

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
#: Largest difference of a log-probability between float32 ONNX and torch.
TOLERANCE = 1e-3
#: What int8 may change in the encoder's output and in the tokens. Speech in a model in training gave 0.02 and
#: 1.0; with one scale for a matrix instead of one for each output channel, 0.05 and 0.8.
INT8_ERROR, INT8_AGREEMENT = 0.1, 0.9
#: Two tokens whose log-probabilities differ by less are a tie, which either may win.
TIE = 0.5
CHUNKS, STREAMS = 40, 2


@dataclass(frozen=True)
class Difference:
    """How far ONNX is from torch.

    Attributes:
        log_prob: largest absolute difference of a log-probability.
        encoder_error: root mean square of the difference of the encoder's outputs, relative to theirs.
        agreement: share of the frames with a token where ONNX's best token is torch's best, ties allowed.
    """

    log_prob: float
    encoder_error: float
    agreement: float


def worst(differences: Iterable[Difference]) -> Difference:
    """Return the largest differences and the lowest agreement."""
    found = list(differences)
    return Difference(
        max(d.log_prob for d in found), max(d.encoder_error for d in found), min(d.agreement for d in found)
    )


def synthetic_features(frames: int, streams: int, seed: int = 0) -> FloatArray:
    """Return features [N, F, 80] with the level, the slope and the slow changes of speech."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(streams, frames, NUM_BINS)).astype(np.float32)
    kernel = np.exp(-np.arange(25, dtype=np.float32) / 6)
    smooth = np.apply_along_axis(lambda row: np.convolve(row, kernel, "same"), 1, steps)
    return np.asarray(smooth + np.linspace(-5, -9, NUM_BINS, dtype=np.float32), np.float32)


def compare(
    model: Transducer,
    paths: Sequence[Path],
    chunk_frames: int,
    left_frames: int,
    features: FloatArray,
    right_frames: int = 0,
) -> Difference:
    """Run features [N, F, 80] through both, chunk by chunk.

    Args:
        model: the model in evaluation mode.
        paths: encoder, decoder and joiner.
        chunk_frames, left_frames: in encoder frames.
        features: at least one chunk.
        right_frames: last encoder frames of a chunk that come again with the next.
    """
    encoder, decoder, joiner = (Graph.load(path, 1) for path in paths)
    windows = _windows(features, chunk_frames, right_frames)
    ours = _encode_torch(model, windows, left_frames, right_frames)
    theirs = _encode_onnx(encoder, windows, left_frames)
    contexts = np.stack([_contexts_on_path(model, ours), _random_contexts(model, ours)])
    expected = _join_torch(model, ours, contexts)
    found = _join_onnx(decoder, joiner, theirs, contexts)
    return Difference(
        float(np.abs(expected - found).max()),
        float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)),
        token_agreement(expected[0], found[0]),
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
    """Refuse an int8 export that hears or says something else too often.

    Raises:
        ModelError: the encoder's error is above ``INT8_ERROR``, or the agreement below ``INT8_AGREEMENT``.
    """
    if not (difference.encoder_error <= INT8_ERROR and difference.agreement >= INT8_AGREEMENT):
        raise ModelError(
            f"the int8 graphs differ from torch: the encoder's error is {difference.encoder_error:.1%} "
            f"({INT8_ERROR:.0%} is allowed), {difference.agreement:.1%} of tokens agree "
            f"({INT8_AGREEMENT:.0%} must); nothing was written. Export with --float instead."
        )


def check_streams(bundle: Bundle) -> None:
    """Refuse a bundle whose encoder for several streams gives another result than the one for one.

    Raises:
        ModelError: the outputs differ by more than ``TOLERANCE``.
    """
    if bundle.streams is None:
        return
    step, pad = bundle.sizes.chunk_frames, bundle.sizes.pad_frames
    features = synthetic_features(CHUNKS * step + pad, STREAMS)
    together: Sequence[State] = [bundle.start_state()] * STREAMS
    alone = list(together)
    for first in range(0, CHUNKS * step, step):
        windows = features[:, first : first + step + pad]
        expected = []
        for stream, state in enumerate(alone):
            frames, (alone[stream],) = bundle.encode(windows[stream : stream + 1], [state])
            expected.append(frames)
        found, together = bundle.encode(windows, together)
        if not (difference := float(np.abs(found - np.concatenate(expected)).max())) <= TOLERANCE:
            raise ModelError(
                f"the encoder for several streams differs by {difference:.2g} from that for one (at most "
                f"{TOLERANCE:g} is allowed); nothing was written. Please report this with the config."
            )


def _windows(features: FloatArray, chunk_frames: int, right_frames: int) -> list[FloatArray]:
    advance = SUBSAMPLING * (chunk_frames - right_frames)
    pad = SUBSAMPLING * right_frames + PAD_FRAMES
    count = (features.shape[1] - pad) // advance
    return [features[:, advance * i : advance * (i + 1) + pad] for i in range(count)]


@torch.inference_mode()
def _encode_torch(
    model: Transducer, windows: list[FloatArray], left_frames: int, right_frames: int
) -> FloatArray:
    state, parts = model.encoder.initial_state(len(windows[0]), left_frames), []
    for window in windows:
        encoded, state = model.encoder.forward_chunk(torch.from_numpy(window), state, right_frames)
        parts.append(model.projection(encoded))
    return torch.cat(parts, 1).numpy()


def _encode_onnx(encoder: Graph, windows: list[FloatArray], left_frames: int) -> FloatArray:
    streams, parts = len(windows[0]), []
    rows, width, kernel = map(encoder.size, ("num_encoder_layers", "encoder_dim", "cnn_module_kernel"))
    attention = np.zeros((rows, left_frames, streams, width), np.float32)
    convolution = np.zeros((rows, kernel - 1, streams, width), np.float32)
    processed = np.zeros(streams, np.int64)
    for window in windows:
        encoded, attention, convolution = encoder.run(window, attention, convolution, processed)
        processed = processed + window.shape[1] - encoder.size("pad_length")
        parts.append(encoded)
    return np.concatenate(parts, 1)


class _TorchNetwork:
    """The model's predictor and joiner, as the runtime's search asks for them."""

    def __init__(self, model: Transducer):
        self._model = model

    frames_a_join = 16

    @torch.inference_mode()
    def predict(self, contexts: Sequence[Context]) -> FloatArray:
        return self._model.predictor(torch.tensor(contexts)).numpy()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def join(self, frames: FloatArray, predictions: FloatArray) -> FloatArray:
        logits = self._model.joiner(torch.from_numpy(frames), torch.from_numpy(predictions))
        return logits.numpy()  # type: ignore[no-any-return]


def _contexts_on_path(model: Transducer, encoded: FloatArray) -> IntArray:
    """Return the context of every frame in torch's own greedy search, [N, T, C]."""
    size, network = model.config.context_size, _TorchNetwork(model)
    speaks = np.arange(model.config.vocabulary_size) != BLANK
    contexts = np.empty((*encoded.shape[:2], size), np.int64)
    state = start_state(network, size)
    for stream, found in enumerate(search(network, encoded, [state] * len(encoded), speaks)[0]):
        contexts[stream] = context = state.context
        for token, frame, _ in found:
            context = (*context[1:], token)
            contexts[stream, frame + 1 :] = context
    return contexts


def _random_contexts(model: Transducer, encoded: FloatArray) -> IntArray:
    size = (*encoded.shape[:2], model.config.context_size)
    return np.random.default_rng(1).integers(0, model.config.vocabulary_size, size)


@torch.inference_mode()
def _join_torch(model: Transducer, encoded: FloatArray, contexts: IntArray) -> FloatArray:
    logits = model.joiner(torch.from_numpy(encoded), model.predictor(torch.from_numpy(contexts)))
    return log_softmax(logits.numpy())


def _join_onnx(decoder: Graph, joiner: Graph, encoded: FloatArray, contexts: IntArray) -> FloatArray:
    decoded = decoder.run(contexts.reshape(-1, contexts.shape[-1]))[0]
    repeated = np.broadcast_to(encoded, (len(contexts), *encoded.shape)).reshape(-1, encoded.shape[-1])
    return log_softmax(joiner.run(repeated, decoded)[0]).reshape(*contexts.shape[:-1], -1)


def log_softmax(logits: FloatArray) -> FloatArray:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)


def token_agreement(ours: FloatArray, theirs: FloatArray) -> float:
    """Return ``Difference.agreement`` of log-probabilities [N, T, V]; without a single token it is 1."""
    best = theirs.argmax(-1)
    spoken = (ours.argmax(-1) != BLANK) | (best != BLANK)
    lost = ours.max(-1) - np.take_along_axis(ours, best[..., None], -1)[..., 0]
    return float((lost[spoken] < TIE).mean()) if spoken.any() else 1.0
