"""A model's folder -> checked graphs, vocabulary and sizes, and the three steps made with them.

A bundle is ``encoder*.onnx``, ``decoder*.onnx``, ``joiner*.onnx`` and ``tokens.txt``, in the layout that
sherpa-onnx reads as a ``conformer`` model, and ``card.json`` with the hash of each. A folder without a card
loads as well. Sizes come from the graphs' metadata, and whatever does not fit is a ``ModelError``.

Axis legend: N batch, F feature frames (10 ms), T encoder frames (40 ms), L layers, E width of a cached row,
J joiner width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onebest.card import BundleFiles, find_files, read_card
from onebest.errors import ModelError
from onebest.frontend import NUM_BINS, check_spec
from onebest.graph import Graph
from onebest.search import Context
from onebest.vocabulary import Vocabulary, parse_vocabulary

FloatArray = npt.NDArray[np.float32]

SUBSAMPLING = 4
FRAME_MS = 10
ENCODER_FRAME_MS = SUBSAMPLING * FRAME_MS


@dataclass(frozen=True)
class Sizes:
    """The sizes that a model's metadata gives.

    Attributes:
        chunk_frames: feature frames that a step of the encoder moves on by.
        pad_frames: feature frames that a step sees beyond those.
        left_context: rows of the first state, encoder frames.
        num_layers: L.
        encoder_dim: E.
        kernel: the second state has one row less than this.
        joiner_dim: J.
        context_size: tokens that the decoder sees.
        vocab_size: V.
    """

    chunk_frames: int
    pad_frames: int
    left_context: int
    num_layers: int
    encoder_dim: int
    kernel: int
    joiner_dim: int
    context_size: int
    vocab_size: int

    @property
    def window_frames(self) -> int:
        """Feature frames that a step of the encoder reads."""
        return self.chunk_frames + self.pad_frames


class EncoderState(NamedTuple):
    """What the encoder remembers of one stream.

    Attributes:
        caches: its state tensors, each with a batch axis of one.
        processed_frames: feature frames that it has moved past.
    """

    caches: tuple[npt.NDArray[Any], ...]
    processed_frames: int


#: The batch axis of both caches of a conformer.
_BATCH_AXIS = 2
#: Frames of a stream that one call of the joiner takes, at most.
_FRAMES_A_JOIN = 16


@dataclass(frozen=True)
class Bundle:
    """A model that is loaded and checked. Nothing in it changes, so any number of streams may share it."""

    folder: Path
    card: dict[str, Any]
    sizes: Sizes
    vocabulary: Vocabulary
    encoder: Graph
    decoder: Graph
    joiner: Graph

    @property
    def name(self) -> str:
        """The model's name: the card's, or the folder's where there is no card."""
        return str(self.card.get("name", self.folder.name))

    def start_state(self) -> EncoderState:
        """Return the encoder's state before the first frame: zeros."""
        sizes = self.sizes
        attention = np.zeros((sizes.num_layers, sizes.left_context, 1, sizes.encoder_dim), np.float32)
        convolution = np.zeros((sizes.num_layers, sizes.kernel - 1, 1, sizes.encoder_dim), np.float32)
        return EncoderState((attention, convolution), 0)

    @property
    def frames_a_join(self) -> int:
        """Encoder frames of a stream that one call of the joiner may take."""
        return 1 if self.joiner.mixes_batch else _FRAMES_A_JOIN

    def encode(
        self, windows: FloatArray, states: Sequence[EncoderState]
    ) -> tuple[FloatArray, list[EncoderState]]:
        """Run one step of the encoder for N streams; each gets what it would get alone.

        Args:
            windows: feature frames [N, F, 80], ``pad_frames`` more than the step moves on by.
            states: what the step before returned for each stream.

        Returns:
            Encoder frames [N, T, J], T = (F - pad_frames) / 4, and the states behind them.
        """
        if self.encoder.mixes_batch and len(states) > 1:
            alone = [self.encode(windows[n : n + 1], [state]) for n, state in enumerate(states)]
            return np.concatenate([frames for frames, _ in alone]), [state for _, (state,) in alone]
        moved = windows.shape[1] - self.sizes.pad_frames
        processed = np.array([state.processed_frames for state in states], np.int64)
        caches = [_stack(parts) for parts in zip(*(state.caches for state in states), strict=True)]
        frames, *caches = self.encoder.run(windows, *caches, processed)
        if frames.shape[1] != moved // SUBSAMPLING:
            raise ModelError(
                f"{self.encoder.path}: {windows.shape[1]} feature frames gave {frames.shape[1]} "
                f"encoder frames instead of {moved // SUBSAMPLING}. Export the model again."
            )
        split = zip(*(_split(cache) for cache in caches), strict=True)
        return frames, [
            EncoderState(parts, state.processed_frames + moved)
            for parts, state in zip(split, states, strict=True)
        ]

    def predict(self, contexts: Sequence[Context]) -> FloatArray:
        """Return the decoder's outputs [R, J] for R times the last ``context_size`` tokens."""
        return self.decoder.run_rows(np.array(contexts, np.int64))

    def join(self, frames: FloatArray, predictions: FloatArray) -> FloatArray:
        """Return the logits [R, V] of frames [R, J], each with its prediction [R, J]."""
        return self.joiner.run_rows(frames, predictions)

    def at_latency(self, chunk_ms: int | None, left_context: int | None) -> Bundle:
        """Return this model with another chunk length or left context; None keeps the model's own.

        Raises:
            ModelError: the length is no multiple of 40 ms, or the graph has this axis fixed.
        """
        sizes = self.sizes
        if chunk_ms is not None:
            if chunk_ms < ENCODER_FRAME_MS or chunk_ms % ENCODER_FRAME_MS:
                raise ModelError(
                    f"A chunk of {chunk_ms} ms was asked for. Choose a multiple of {ENCODER_FRAME_MS} ms."
                )
            sizes = replace(sizes, chunk_frames=chunk_ms // FRAME_MS)
        if left_context is not None:
            if left_context < 1:
                raise ModelError(f"A left context of {left_context} frames was asked for. Choose 1 or more.")
            sizes = replace(sizes, left_context=left_context)
        _check_graphs(self.encoder, self.decoder, self.joiner, sizes)
        return replace(self, sizes=sizes)


def _stack(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, _BATCH_AXIS)


def _split(cache: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return a cache by stream. Copies: a view would keep the whole batch in memory."""
    count = cache.shape[_BATCH_AXIS]
    return [cache] if count == 1 else [part.copy() for part in np.split(cache, count, _BATCH_AXIS)]


def load_bundle(folder: str | Path, threads: int = 1) -> Bundle:
    """Load and check the model in a folder.

    Args:
        folder: where the model's files are.
        threads: threads of the encoder; decoder and joiner are too small to share out.

    Raises:
        ModelError: a file is missing, altered or damaged, or the parts do not fit each other.
    """
    folder = Path(folder)
    card = read_card(folder)
    files = find_files(folder, card)
    vocabulary = parse_vocabulary(files.tokens.read_bytes(), str(files.tokens))
    encoder = Graph.load(files.encoder, threads)
    decoder, joiner = Graph.load(files.decoder, 1), Graph.load(files.joiner, 1)
    sizes = _read_sizes(encoder, decoder, joiner)
    _check_front_end(encoder, card, files)
    if len(vocabulary) != sizes.vocab_size:
        raise ModelError(
            f"{files.tokens} has {len(vocabulary)} tokens, the model {sizes.vocab_size}. "
            "Take the tokens.txt that was exported with the model."
        )
    _check_graphs(encoder, decoder, joiner, sizes)
    return Bundle(folder, card, sizes, vocabulary, encoder, decoder, joiner)


def _read_sizes(encoder: Graph, decoder: Graph, joiner: Graph) -> Sizes:
    kind = encoder.metadata("model_type")
    if kind != "conformer":
        raise ModelError(
            f"{encoder.path}: model_type is {kind!r}, this version runs 'conformer'. "
            "Export the model with onebest export."
        )
    sizes = Sizes(
        chunk_frames=encoder.size("decode_chunk_len"),
        pad_frames=encoder.size("pad_length"),
        left_context=encoder.size("left_context"),
        num_layers=encoder.size("num_encoder_layers"),
        encoder_dim=encoder.size("encoder_dim"),
        kernel=encoder.size("cnn_module_kernel"),
        joiner_dim=joiner.size("joiner_dim"),
        context_size=decoder.size("context_size"),
        vocab_size=decoder.size("vocab_size"),
    )
    if encoder.size("T") != sizes.window_frames or sizes.chunk_frames % SUBSAMPLING:
        raise ModelError(
            f"{encoder.path}: expected T to be decode_chunk_len plus pad_length and the "
            f"chunk in units of {SUBSAMPLING}, found {encoder.size('T')}, {sizes.chunk_frames} "
            f"and {sizes.pad_frames}. Export the model again."
        )
    return sizes


def _check_front_end(encoder: Graph, card: dict[str, Any], files: BundleFiles) -> None:
    if "front_end" in card:
        check_spec(card["front_end"], f"{files.folder / 'card.json'}")
    written = encoder.metadata("front_end", default="")
    if not written:
        return
    try:
        spec = json.loads(written)
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{encoder.path}: the metadata key 'front_end' is no JSON ({error}). Export the model again."
        ) from error
    check_spec(spec if isinstance(spec, dict) else {}, str(encoder.path))


def _check_graphs(encoder: Graph, decoder: Graph, joiner: Graph, sizes: Sizes) -> None:
    """Compare what the graphs take and give, in order, with the sizes; None is the batch."""
    chunk, joined = sizes.chunk_frames // SUBSAMPLING, sizes.joiner_dim
    attention = (sizes.num_layers, sizes.left_context, None, sizes.encoder_dim)
    convolution = (sizes.num_layers, sizes.kernel - 1, None, sizes.encoder_dim)
    encoder.check(
        inputs=[
            ("float", (None, sizes.window_frames, NUM_BINS)),
            ("float", attention),
            ("float", convolution),
            ("int64", (None,)),
        ],
        outputs=[("float", (None, chunk, joined)), ("float", attention), ("float", convolution)],
    )
    decoder.check(inputs=[("int64", (None, sizes.context_size))], outputs=[("float", (None, joined))])
    joiner.check(inputs=[("float", (None, joined))] * 2, outputs=[("float", (None, sizes.vocab_size))])
