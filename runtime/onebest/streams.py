"""The encoder for a few live streams at once, whose memories stay where they are.

What a stream remembers is a row for each frame of each kind of memory, and a step adds some. So a step
appends to an array that has room, and the encoder reads the rows before the end in place. Nothing that was
written changes: who holds an older value goes on from it as before.

Axis legend: N streams, F feature frames (10 ms), T encoder frames (40 ms), M kinds of memory, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from onebest.errors import ModelError
from onebest.graph import Graph
from onebest.layout import SUBSAMPLING, Layout

FloatArray = npt.NDArray[np.float32]

#: An array has room for so many steps: then what is still needed moves to another.
_STEPS_OF_ROOM = 4


#: Arrays by their shape that nobody needs any more.
Spare = dict[tuple[int, ...], list[FloatArray]]


class _Array:
    """Rows [M, any, D], of which the first ``used`` are written; they go to ``spare`` when nobody needs them.

    For memory that is new to a process costs more than all that is written to it.
    """

    def __init__(self, shape: tuple[int, int, int], used: int, spare: Spare):
        try:
            self.rows = spare.setdefault(shape, []).pop()
        except IndexError:
            self.rows = np.empty(shape, np.float32)
        self.used, self.spare = used, spare

    def __del__(self) -> None:
        self.spare[self.rows.shape].append(self.rows)


class Memory(NamedTuple):
    """The rows that a stream remembers: those of an array up to an end."""

    array: _Array
    end: int

    @classmethod
    def start(cls, kinds: int, kept: int, width: int, step: int, spare: Spare) -> Memory:
        """Return a memory of ``kept`` rows that are to be filled.

        Args:
            kinds, width: M and D.
            kept: rows that are ever needed.
            step: rows that are usually appended at a time.
            spare: where arrays come from and go to.
        """
        return cls(_Array((kinds, kept + _STEPS_OF_ROOM * step, width), kept, spare), kept)

    def last(self, count: int) -> FloatArray:
        """Return a view of the last rows, [M, count, D], for as long as there is this memory."""
        return self.array.rows[:, self.end - count : self.end]

    def append(self, rows: FloatArray, kept: int) -> Memory:
        """Return a memory with rows [M, T, D] behind these, of which at least ``kept`` are still there."""
        array, end, count = self.array, self.end, rows.shape[1]
        if array.used != end or end + count > array.rows.shape[1]:
            kinds, size, width = array.rows.shape
            array, end = _Array((kinds, max(size, kept + count), width), kept, array.spare), kept
            array.rows[:, :kept] = self.last(kept)
        array.rows[:, end : end + count] = rows
        array.used = end + count
        return Memory(array, end + count)


class EncoderState(NamedTuple):
    """What the encoder remembers of one stream, as its contract has it.

    Attributes:
        caches: its state tensors, each with a batch axis of one.
        processed_frames: feature frames that it has moved past.
    """

    caches: tuple[npt.NDArray[Any], ...]
    processed_frames: int


class LiveState(NamedTuple):
    """The same where the encoder for a few streams has it.

    Attributes:
        memory: rows of keys and values of each block in turn, then of the inputs of each convolution.
        processed_frames: feature frames that it has moved past.
    """

    memory: Memory
    processed_frames: int


State: TypeAlias = EncoderState | LiveState


class StreamsEncoder:
    """The encoder for a few streams at once, a chunk each; every one gets what the encoder gives it alone.

    It is loaded when it is first needed: one stream alone never needs it.

    Args:
        path: its file; its weights are in the encoder's beside it.
        threads: that work on one operator.
        layout: the encoder's; the left context may be another.
    """

    def __init__(self, path: Path, threads: int, layout: Layout):
        self._path, self._threads = path, threads
        self._spare: Spare = {}
        attention, self._convolution = layout.caches
        self._attended, self._width = attention.shape[0] or 0, attention.shape[-1] or 0

    def load(self) -> None:
        """Load it now.

        Raises:
            ModelError: onnxruntime cannot read it, or it is not for this encoder.
        """
        _ = self._graph

    @cached_property
    def _graph(self) -> Graph:
        graph = Graph.load(self._path, self._threads, optimized=True)
        self._check(graph)
        return graph

    @cached_property
    def slots(self) -> int:
        """Streams that one call takes at most."""
        return self._graph.size("slots")

    @cached_property
    def _memory_shapes(self) -> list[tuple[int, ...]]:
        """Of each kind of memory, what stands for -1, the frames, and 1, the stream."""
        ports = self._graph.session.get_inputs()[2:][: self._kinds]
        return [(-1, 1, *port.shape[2:]) for port in ports]

    @property
    def _kinds(self) -> int:
        return (len(self._graph.input_names) - 2) // self.slots

    def _check(self, graph: Graph) -> None:
        kinds, rest = divmod(len(graph.input_names) - 2, graph.size("slots"))
        rows = {int(np.prod(port.shape[2:])) for port in graph.session.get_inputs()[2:]}
        convolutions = self._convolution.shape[0] or 0
        if rest or not 0 <= kinds - self._attended < convolutions or rows != {self._width}:
            raise ModelError(f"{self._path} is not for the encoder beside it. Export the model again.")

    def encode(
        self, windows: FloatArray, states: Sequence[State], left: int, moved: int
    ) -> tuple[FloatArray, list[LiveState]]:
        """Run one step of N streams, ``slots`` at most.

        Args:
            windows: feature frames [N, F, 80].
            states: of each stream.
            left: encoder frames of left context.
            moved: feature frames that the step moves on by.

        Returns:
            Encoder frames [N, T, J], and the states behind them.
        """
        before = [self._live(state, left, moved // SUBSAMPLING) for state in states]
        seen = np.array([state.processed_frames // SUBSAMPLING for state in before], np.int64)
        memories = [array for state in before for array in self._memories(state.memory, left)]
        empty = [array[:, :0] for array in memories[: self._kinds]] * (self.slots - len(before))
        frames, added = self._graph.run(windows, seen, *memories, *empty)
        kept = max(left, self._inputs)
        return frames, [
            LiveState(state.memory.append(added[:, :, number], kept), state.processed_frames + moved)
            for number, state in enumerate(before)
        ]

    @property
    def _inputs(self) -> int:
        """Frames that the convolutions look back on."""
        return self._convolution.shape[1] or 0

    def _memories(self, memory: Memory, left: int) -> list[FloatArray]:
        """Return views of what each kind of memory has of the frames that are needed."""
        sizes = [left] * self._attended + [self._inputs] * (self._kinds - self._attended)
        return [
            memory.last(size)[kind].reshape(shape)
            for kind, (size, shape) in enumerate(zip(sizes, self._memory_shapes, strict=True))
        ]

    def _live(self, state: State, left: int, step: int) -> LiveState:
        """Return a state as it is here, with room for steps of so many frames."""
        if isinstance(state, LiveState):
            return state
        attention, convolution = state.caches
        kept = max(left, self._inputs)
        memory = Memory.start(self._kinds, kept, self._width, step, self._spare)
        rows = memory.last(kept)
        rows[: self._attended, -left:] = attention[:, :, 0]
        rows[self._attended :, -self._inputs :] = convolution[: self._kinds - self._attended, :, 0]
        return LiveState(memory, state.processed_frames)

    def restore(self, state: State, left: int) -> EncoderState:
        """Return a state as the contract has it."""
        if isinstance(state, EncoderState):
            return state
        attention = state.memory.last(left)[: self._attended, :, None].copy()
        convolution = self._convolution.zeros()
        inputs = state.memory.last(self._inputs)[self._attended :]
        convolution[: len(inputs), :, 0] = inputs
        convolution[-1, 0, 0, 0] = self._count(state.processed_frames // SUBSAMPLING)
        return EncoderState((attention, convolution), state.processed_frames)

    def _count(self, seen: int) -> int:
        """Return the number of frames as the contract's state has it, where it falls back by a period."""
        period = self._graph.size("count_period")
        return seen if seen < 2 * period else seen % period + period
