"""A model's folder -> checked graphs, vocabulary and sizes, and the three steps made with them.

A bundle is ``encoder*.onnx``, ``decoder*.onnx``, ``joiner*.onnx`` and ``tokens.txt``, in the layout that
sherpa-onnx reads as a ``conformer`` or ``zipformer2`` model, and ``card.json`` with the hash of each and of
``streams*.onnx``, which not every bundle has. A folder without a card loads as well. Sizes come from the
graphs' metadata, and whatever does not fit is a ``ModelError``.

Axis legend: N batch, F feature frames (10 ms), T encoder frames (40 ms), R rows, J joiner width,
P decoder width, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onebest.card import BundleFiles, find_files, read_card, read_number
from onebest.errors import ModelError
from onebest.frontend import NUM_BINS, check_spec
from onebest.graph import Graph, Port
from onebest.layout import CHUNK_INPUT, SUBSAMPLING, Cache, Layout, read_layout
from onebest.models import find_model
from onebest.search import Context
from onebest.streams import EncoderState, LiveState, State, StreamsEncoder
from onebest.vocabulary import Vocabulary, parse_vocabulary

FloatArray = npt.NDArray[np.float32]

FRAME_MS = 10
ENCODER_FRAME_MS = SUBSAMPLING * FRAME_MS
#: Ten minutes; every stream has room for it in memory from its start.
MOST_LEFT_CONTEXT = 15000


@dataclass(frozen=True)
class Sizes:
    """The sizes that a model's metadata gives.

    Attributes:
        layout: what the encoder takes and remembers.
        joiner_dim: J.
        decoder_dim: P, width of the decoder's output: J, or more where the joiner takes more of it.
        context_size: tokens that the decoder sees.
        vocab_size: V.
    """

    layout: Layout
    joiner_dim: int
    decoder_dim: int
    context_size: int
    vocab_size: int

    @property
    def chunk_frames(self) -> int:
        """Feature frames that a step of the encoder moves on by."""
        return self.layout.chunk_frames

    @property
    def pad_frames(self) -> int:
        """Feature frames that a step sees beyond those."""
        return self.layout.pad_frames

    @property
    def window_frames(self) -> int:
        """Feature frames that a step of the encoder reads."""
        return self.chunk_frames + self.pad_frames

    @property
    def chunk_ms(self) -> int:
        """Audio that a step waits for: what it moves on by and what it looks ahead."""
        return (self.chunk_frames + self.layout.look_ahead_frames) * FRAME_MS

    @property
    def left_context(self) -> int | None:
        """Encoder frames that a conformer looks back on; None for others."""
        return self.layout.left_context


#: Feature frames between two of the positions that a card counts.
_FRAMES_A_POSITION = 2
#: Calls of the encoder take those streams whose states fit a core's cache together: to stack larger ones and
#: take them apart costs more than products of more rows save.
_STATE_BYTES_A_CALL = 2**21
#: So many chunks of a stream in one call cost as little as a chunk each of as many streams.
_FEWEST_CHUNKS_TOGETHER = 4
#: Frames of a stream that one call of the joiner takes, at most.
_FRAMES_A_JOIN = 5
#: Chunks of a stream that one call of the encoder takes, and encoder frames where there are several, at most.
#: More is no faster.
_CHUNKS_A_CALL, _FRAMES_A_CALL = 8, 256


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
    streams: StreamsEncoder | None = None

    @property
    def name(self) -> str:
        """The model's name: the card's, or the folder's where there is no card."""
        return str(self.card.get("name", self.folder.name))

    @property
    def silence_frames(self) -> tuple[int, int]:
        """Feature frames that the encoder remembers, and those after which its count of them starts again.

        The count is in chunks; a model whose card names no period of its positions has none.
        """
        period = int(read_number(self.card, "encoder", "position_period")) * _FRAMES_A_POSITION
        chunk = self.sizes.chunk_frames
        return (self.sizes.left_context or 0) * SUBSAMPLING, math.lcm(chunk, period) if period else chunk

    def start_state(self) -> EncoderState:
        """Return the encoder's state before the first frame: zeros."""
        return EncoderState(tuple(cache.zeros() for cache in self.sizes.layout.caches), 0)

    @property
    def pause_frames(self) -> int:
        """Encoder frames without a token after which a stream begins anew; 0 if it never does.

        A model that was trained on single utterances hears better what comes after a pause if it does not
        remember what came before, perhaps by somebody else.
        """
        return int(read_number(self.card, "pause_ms")) // ENCODER_FRAME_MS

    @property
    def start_margin(self) -> float:
        """Nats by which the first token of a stream, or behind a pause, has to be likelier than the blank.

        A noise that is like speech for a moment makes a token that is little likelier.
        """
        return read_number(self.card, "start_margin")

    @property
    def frames_a_join(self) -> int:
        """Encoder frames of a stream that one call of the joiner may take."""
        return 1 if self.joiner.mixes_batch else _FRAMES_A_JOIN

    @property
    def chunks_a_call(self) -> int:
        """Chunks of a stream that one call of the encoder may take."""
        if CHUNK_INPUT not in self.encoder.option_names:
            return 1
        return max(1, min(_CHUNKS_A_CALL, _FRAMES_A_CALL * SUBSAMPLING // self.sizes.chunk_frames))

    @property
    def takes_part_of_a_chunk(self) -> bool:
        """Whether the last window of a stream may be shorter than the others."""
        return self.encoder.input_axis(0, 1) is None

    @property
    def fewest_chunks_together(self) -> int:
        """Where fewer chunks of a stream wait they take a call each, several streams in one."""
        return 2 if self.streams is None else _FEWEST_CHUNKS_TOGETHER

    def streams_a_call(self, window_frames: int, states: Sequence[State]) -> int:
        """Streams whose windows of such a length one call of the encoder takes best."""
        if self.streams and self._suits_streams(window_frames, states):
            return self.streams.slots
        state_bytes = sum(cache.nbytes for cache in self.sizes.layout.caches)
        return max(1, _STATE_BYTES_A_CALL // state_bytes)

    def _suits_streams(self, window_frames: int, states: Sequence[State]) -> bool:
        """Whether there is a chunk each of several streams, or of one that was among several before."""
        live = len(states) > 1 or isinstance(states[0], LiveState)
        return live and window_frames <= self.sizes.window_frames

    def encode(self, windows: FloatArray, states: Sequence[State]) -> tuple[FloatArray, Sequence[State]]:
        """Run one step of the encoder for N streams; each gets what it would get alone and chunk by chunk.

        Args:
            windows: feature frames [N, F, 80], ``pad_frames`` more than the step moves on by: a chunk, some
                whole ones, ``chunks_a_call`` at most, or what is left of the last.
            states: what the step before returned for each stream.

        Returns:
            Encoder frames [N, T, J], T = (F - pad_frames) / 4, and the states behind them.
        """
        moved = windows.shape[1] - self.sizes.pad_frames
        if self.streams:
            left = self.sizes.left_context or 0
            if self._suits_streams(windows.shape[1], states):
                return self.streams.encode(windows, states, left, moved)
            states = [self.streams.restore(state, left) for state in states]
        return self._encode(windows, cast("Sequence[EncoderState]", states), moved)

    def _encode(
        self, windows: FloatArray, states: Sequence[EncoderState], moved: int
    ) -> tuple[FloatArray, list[EncoderState]]:
        if self.encoder.mixes_batch and len(states) > 1:
            alone = [self._encode(windows[n : n + 1], [state], moved) for n, state in enumerate(states)]
            return np.concatenate([frames for frames, _ in alone]), [state for _, (state,) in alone]
        layout = self.sizes.layout
        by_cache = zip(*(state.caches for state in states), strict=True)
        inputs = [cache.stack(parts) for cache, parts in zip(layout.caches, by_cache, strict=True)]
        if layout.takes_count:
            inputs.append(np.array([state.processed_frames for state in states], np.int64))
        several = moved > self.sizes.chunk_frames
        chunk = {CHUNK_INPUT: np.array(self.sizes.chunk_frames // SUBSAMPLING)} if several else None
        frames, *outputs = self.encoder.run(windows, *inputs, options=chunk)
        if frames.shape[1] != moved // SUBSAMPLING:
            raise ModelError(
                f"{self.encoder.path}: {windows.shape[1]} feature frames gave {frames.shape[1]} "
                f"encoder frames instead of {moved // SUBSAMPLING}. Export the model again."
            )
        by_stream = zip(*map(Cache.split, layout.caches, outputs), strict=True)
        return frames, [
            EncoderState(caches, state.processed_frames + moved)
            for caches, state in zip(by_stream, states, strict=True)
        ]

    def predict(self, contexts: Sequence[Context]) -> FloatArray:
        """Return the decoder's outputs [R, P] for R times the last ``context_size`` tokens."""
        return self.decoder.run_rows(np.array(contexts, np.int64))

    def join(self, frames: FloatArray, predictions: FloatArray) -> FloatArray:
        """Return the logits [R, V] of frames [R, J], each with its prediction [R, P]."""
        return self.joiner.run_rows(frames, predictions)

    def at_latency(self, chunk_ms: int | None, left_context: int | None) -> Bundle:
        """Return this model with another chunk length or left context; None keeps the model's own.

        Raises:
            ModelError: the length is no multiple of 40 ms, or the graph has this axis fixed.
        """
        if chunk_ms is not None and (chunk_ms < ENCODER_FRAME_MS or chunk_ms % ENCODER_FRAME_MS):
            raise ModelError(
                f"A chunk of {chunk_ms} ms was asked for. Choose a multiple of {ENCODER_FRAME_MS} ms."
            )
        if left_context is not None and not 1 <= left_context <= MOST_LEFT_CONTEXT:
            raise ModelError(
                f"A left context of {left_context} frames was asked for. Choose 1 to {MOST_LEFT_CONTEXT}."
            )
        layout = self.sizes.layout.at_latency(chunk_ms and chunk_ms // FRAME_MS, left_context)
        sizes = replace(self.sizes, layout=layout)
        _check_graphs(self.encoder, self.decoder, self.joiner, sizes)
        return replace(self, sizes=sizes)


def load_bundle(folder: str | Path, threads: int = 1) -> Bundle:
    """Load and check the model in a folder.

    Args:
        folder: where the model's files are, or OWNER/NAME of one that ``onebest pull`` fetched.
        threads: threads of the encoder; decoder and joiner are too small to share out.

    Raises:
        ModelError: a file is missing, altered or damaged, or the parts do not fit each other.
    """
    folder = find_model(folder)
    card = read_card(folder)
    files = find_files(folder, card)
    symbols = parse_vocabulary(files.tokens.read_bytes(), str(files.tokens))
    optimized = card.get("optimized") is True
    encoder = Graph.load(files.encoder, threads, optimized)
    decoder, joiner = (Graph.load(path, 1, optimized) for path in (files.decoder, files.joiner))
    sizes = _read_sizes(encoder, decoder, joiner)
    _check_front_end(encoder, card, files)
    vocabulary = symbols.without_disambiguation(sizes.vocab_size)
    if len(vocabulary) != sizes.vocab_size:
        raise ModelError(
            f"{files.tokens} has {len(vocabulary)} tokens, the model {sizes.vocab_size}. "
            "Take the tokens.txt that was exported with the model."
        )
    _check_graphs(encoder, decoder, joiner, sizes)
    streams = StreamsEncoder(files.streams, threads, sizes.layout) if files.streams else None
    bundle = Bundle(folder, card, sizes, vocabulary, encoder, decoder, joiner, streams)
    _ = bundle.silence_frames, bundle.pause_frames, bundle.start_margin  # what the card says of them is sound
    return bundle


def _read_sizes(encoder: Graph, decoder: Graph, joiner: Graph) -> Sizes:
    joined = joiner.size("joiner_dim")
    return Sizes(
        layout=read_layout(encoder),
        joiner_dim=joined,
        decoder_dim=joiner.input_axis(1, -1) or joined,
        context_size=decoder.size("context_size"),
        vocab_size=decoder.size("vocab_size"),
    )


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
    check_spec(spec, str(encoder.path))


def _check_graphs(encoder: Graph, decoder: Graph, joiner: Graph, sizes: Sizes) -> None:
    """Compare what the graphs take and give, in order, with the sizes; None is the batch."""
    layout, joined, predicted = sizes.layout, sizes.joiner_dim, sizes.decoder_dim
    caches = [cache.port for cache in layout.caches]
    count: list[Port] = [("int64", (None,))] if layout.takes_count else []
    features: Port = ("float", (None, sizes.window_frames, NUM_BINS))
    frames: Port = ("float", (None, sizes.chunk_frames // SUBSAMPLING, joined))
    encoder.check(inputs=[features, *caches, *count], outputs=[frames, *caches])
    decoder.check(inputs=[("int64", (None, sizes.context_size))], outputs=[("float", (None, predicted))])
    parts: list[Port] = [("float", (None, joined)), ("float", (None, predicted))]
    joiner.check(inputs=parts, outputs=[("float", (None, sizes.vocab_size))])
