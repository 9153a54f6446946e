"""What an encoder takes and remembers, from its metadata: sherpa-onnx's ``conformer`` and ``zipformer2``.

Both are contracts of position: the features, then the states, which start at zero and come back behind the
encoder's frames in the same order. A ``conformer`` takes the number of feature frames it has moved past as
well; a ``zipformer2`` keeps such a count among its states.

Axis legend: N batch, L layers, E width of a cached row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onebest.errors import ModelError
from onebest.graph import Graph, Port

Array = npt.NDArray[Any]

SUBSAMPLING = 4
#: An encoder's input beyond the contract, with a default: frames (40 ms) a chunk, for calls with several.
CHUNK_INPUT = "chunk_frames"
#: What a zipformer2's convolutions before the encoder remember: channels, frames, bins.
_EMBED_STATE = (128, 3, 19)


@dataclass(frozen=True)
class Cache:
    """One state tensor of an encoder.

    Attributes:
        shape: its axes; None is the batch.
        element: ``float`` or ``int64``.
    """

    shape: tuple[int | None, ...]
    element: str = "float"

    @property
    def port(self) -> Port:
        """The input or output that carries it."""
        return self.element, self.shape

    @property
    def axis(self) -> int:
        """The batch axis."""
        return self.shape.index(None)

    @property
    def nbytes(self) -> int:
        """Bytes of the state of one stream."""
        return math.prod(axis or 1 for axis in self.shape) * self._kind.itemsize

    @property
    def _kind(self) -> np.dtype[Any]:
        return np.dtype(np.float32 if self.element == "float" else np.int64)

    def zeros(self) -> Array:
        """Return the state of one stream before the first frame."""
        return np.zeros([1 if axis is None else axis for axis in self.shape], self._kind)

    def stack(self, streams: Sequence[Array]) -> Array:
        """Return the states of N streams as one."""
        return streams[0] if len(streams) == 1 else np.concatenate(streams, self.axis)

    def split(self, batch: Array) -> list[Array]:
        """Return a state of N streams one by one; copies, for a view would keep the whole batch."""
        count = batch.shape[self.axis]
        return [batch] if count == 1 else [part.copy() for part in np.split(batch, count, self.axis)]


@dataclass(frozen=True)
class Layout:
    """What an encoder takes and gives.

    Attributes:
        chunk_frames: feature frames that a step moves on by.
        pad_frames: feature frames that a step sees beyond those.
        caches: its states in their order.
        takes_count: whether the number of feature frames moved past is an input behind the states.
        left_context: encoder frames (40 ms) that a conformer looks back on, the second axis of its first
            state; None for others.
        right_context: encoder frames of ``pad_frames``, which a step looks ahead and the next brings out.
    """

    chunk_frames: int
    pad_frames: int
    caches: tuple[Cache, ...]
    takes_count: bool
    left_context: int | None = None
    right_context: int = 0

    @property
    def look_ahead_frames(self) -> int:
        """Feature frames of the right context."""
        return self.right_context * SUBSAMPLING

    def at_latency(self, chunk_frames: int | None, left_context: int | None) -> Layout:
        """Return the layout with another chunk or left context; None keeps this one's.

        Args:
            chunk_frames: feature frames of a chunk, those that it looks ahead included.
            left_context: in encoder frames.

        Raises:
            ModelError: the left context of this model cannot be chosen, or the chunk is no longer than what
                it looks ahead.
        """
        changed = self
        if chunk_frames is not None:
            if chunk_frames <= self.look_ahead_frames:
                raise ModelError(
                    f"A chunk of {chunk_frames * 10} ms was asked for, and this model looks "
                    f"{self.look_ahead_frames * 10} ms ahead. Choose a longer chunk."
                )
            changed = replace(self, chunk_frames=chunk_frames - self.look_ahead_frames)
        if left_context is None:
            return changed
        if self.left_context is None:
            raise ModelError("This model's left context is part of it. Leave out left_context.")
        (layers, _, *others), *rest = (cache.shape for cache in self.caches)
        caches = (Cache((layers, left_context, *others)), *map(Cache, rest))
        return replace(changed, caches=caches, left_context=left_context)


def read_layout(encoder: Graph) -> Layout:
    """Return the layout that an encoder's metadata describes.

    Raises:
        ModelError: its type is another, or a key is missing or does not fit the others.
    """
    kind = encoder.metadata("model_type")
    if kind not in _READERS:
        raise ModelError(
            f"{encoder.path}: model_type is {kind!r}, this version runs {', '.join(map(repr, _READERS))}. "
            "Take a streaming transducer of such a type, or export one with onebest export."
        )
    layout = _READERS[kind](encoder)
    if layout.pad_frames < 0 or layout.chunk_frames % SUBSAMPLING:
        raise ModelError(
            f"{encoder.path}: expected T to be at least decode_chunk_len and this in units of {SUBSAMPLING}, "
            f"found {encoder.size('T')} and {layout.chunk_frames}. Export the model again."
        )
    return layout


def _read_conformer(encoder: Graph) -> Layout:
    layers, width = encoder.size("num_encoder_layers"), encoder.size("encoder_dim")
    left, kernel = encoder.size("left_context"), encoder.size("cnn_module_kernel")
    chunk, pad = encoder.size("decode_chunk_len"), encoder.size("pad_length")
    if encoder.size("T") != chunk + pad:
        raise ModelError(
            f"{encoder.path}: expected T to be decode_chunk_len plus pad_length, found {encoder.size('T')}, "
            f"{chunk} and {pad}. Export the model again."
        )
    caches = Cache((layers, left, None, width)), Cache((layers, kernel - 1, None, width))
    looks_ahead = encoder.metadata("right_context", default="0").strip() != "0"
    right = encoder.size("right_context") if looks_ahead else 0
    return Layout(chunk, pad, caches, True, left, right if right * SUBSAMPLING <= pad else 0)


def _read_zipformer2(encoder: Graph) -> Layout:
    keys = (
        "num_encoder_layers",
        "encoder_dims",
        "query_head_dims",
        "value_head_dims",
        "num_heads",
        "left_context_len",
        "cnn_module_kernels",
    )
    vectors = [encoder.sizes(key) for key in keys]
    if len({len(vector) for vector in vectors}) != 1:
        lengths = ", ".join(f"{key} {len(vector)}" for key, vector in zip(keys, vectors, strict=True))
        raise ModelError(f"{encoder.path}: its stacks differ in number ({lengths}). Export the model again.")
    caches = []
    for layers, width, query, value, heads, left, kernel in zip(*vectors, strict=True):
        key = Cache((left, None, query * heads))
        nonlinear = Cache((1, None, left, 3 * width // 4))
        values = Cache((left, None, value * heads))
        convolution = Cache((None, width, kernel // 2))
        caches += [key, nonlinear, values, values, convolution, convolution] * layers
    caches += [Cache((None, *_EMBED_STATE)), Cache((None,), "int64")]
    chunk = encoder.size("decode_chunk_len")
    return Layout(chunk, encoder.size("T") - chunk, tuple(caches), takes_count=False)


_READERS = {"conformer": _read_conformer, "zipformer2": _read_zipformer2}
