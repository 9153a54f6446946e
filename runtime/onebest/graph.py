"""One ONNX file: loaded, its metadata read, its inputs and outputs checked, run by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import (  # type: ignore[attr-defined]
    GraphOptimizationLevel,
    InferenceSession,
    SessionOptions,
)

from onebest.errors import ModelError

#: Element type and shape of one input or output; None is an axis that must be free.
Port = tuple[str, tuple[int | None, ...]]
#: onnxruntime's errors come as exceptions; its log would repeat them on standard error.
_ONLY_FATAL = 4
#: How the names of operators begin that take the steps of int8 from a whole tensor.
_DYNAMIC_STEPS = b"DynamicQuantize"


@dataclass(frozen=True)
class Graph:
    """An ONNX file, ready to run. Names of inputs and outputs are free: their order decides.

    Attributes:
        path: the file.
        session: the file as onnxruntime runs it.
        input_names: its inputs in their order.
        option_names: its inputs that have a default.
        mixes_batch: whether what a row of a batch gives depends on the others. It does where the steps of
            int8 activations come from the values at hand, which onnxruntime takes from the whole tensor.
    """

    path: Path
    session: InferenceSession
    input_names: tuple[str, ...]
    option_names: frozenset[str]
    mixes_batch: bool
    _metadata: dict[str, str]

    @classmethod
    def load(cls, path: Path, threads: int, optimized: bool = False) -> Graph:
        """Load a file for the CPU.

        Args:
            path: the file.
            threads: threads that work on one operator.
            optimized: whether onebest wrote it as onnxruntime's optimiser leaves it.

        Raises:
            ModelError: onnxruntime cannot read it.
        """
        options = SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ONLY_FATAL
        # Planning which buffer follows which takes two thirds of the time to load, and saves none to run.
        options.enable_mem_reuse = False
        if optimized:
            options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise ModelError(
                f"{path} cannot be loaded ({_first_line(error)}). "
                "Get it again, or update onebest if the file is newer."
            ) from error
        names = tuple(port.name for port in session.get_inputs())
        with_default = frozenset(port.name for port in session.get_overridable_initializers())
        metadata = session.get_modelmeta().custom_metadata_map
        mixes_batch = not optimized and _contains(path, _DYNAMIC_STEPS)
        return cls(path, session, names, with_default, mixes_batch, metadata)

    def run(
        self, *inputs: npt.NDArray[Any], options: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Return all outputs in their order.

        Args:
            inputs: one array for each of ``input_names``.
            options: by name, those of ``option_names`` that are not to have their default.

        Raises:
            ModelError: the graph fails, so its parts do not fit each other.
        """
        feeds = dict(zip(self.input_names, inputs, strict=True), **(options or {}))
        try:
            outputs: Any = self.session.run(None, feeds)
        except Exception as error:  # as above
            shapes = [array.shape for array in inputs]
            raise ModelError(
                f"{self.path} fails on inputs {shapes} ({_first_line(error)}). Export the model again."
            ) from error
        return list(outputs)

    def run_rows(self, *inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the first output for inputs of R rows; each row gets what it would get alone.

        Raises:
            ModelError: as ``run``.
        """
        if not self.mixes_batch:
            return self.run(*inputs)[0]
        rows = range(len(inputs[0]))
        return np.concatenate([self.run(*(part[row : row + 1] for part in inputs))[0] for row in rows])

    def metadata(self, key: str, default: str | None = None) -> str:
        """Return a metadata value.

        Raises:
            ModelError: the key is missing and there is no default.
        """
        value = self._metadata.get(key, default)
        if value is None:
            raise ModelError(
                f"{self.path} lacks the metadata key {key!r}; it has {sorted(self._metadata)}. "
                "Export the model again with onebest export."
            )
        return value

    def size(self, key: str) -> int:
        """Return a metadata value that must be a positive whole number.

        Raises:
            ModelError: it is missing or something else.
        """
        return self._read_sizes(key, "a positive whole number", [self.metadata(key)])[0]

    def sizes(self, key: str) -> tuple[int, ...]:
        """Return a metadata value that must be positive whole numbers with commas between them.

        Raises:
            ModelError: it is missing or something else.
        """
        wanted = "positive whole numbers with commas between them"
        return self._read_sizes(key, wanted, self.metadata(key).split(","))

    def _read_sizes(self, key: str, wanted: str, parts: Sequence[str]) -> tuple[int, ...]:
        """Return the parts of a value as numbers; spaces around one do not count, as in sherpa-onnx."""
        parts = [part.strip() for part in parts]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise ModelError(
                f"{self.path}: the metadata key {key!r} is {self.metadata(key)!r}, expected {wanted}. Export "
                "the model again."
            )
        return tuple(map(int, parts))

    def input_axis(self, index: int, axis: int) -> int | None:
        """Return an axis of an input, or None where the graph has no such axis or leaves it open."""
        sizes = [port.shape for port in self.session.get_inputs()][index : index + 1]
        size = sizes[0][axis] if sizes and -len(sizes[0]) <= axis < len(sizes[0]) else None
        return size if isinstance(size, int) else None

    def check(self, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        """Compare inputs and outputs with what is expected, by position.

        Raises:
            ModelError: their number, an element type or an axis differs, or the batch axis is fixed.
        """
        for kind, found, expected in (
            ("input", self.session.get_inputs(), inputs),
            ("output", self.session.get_outputs(), outputs),
        ):
            if len(found) != len(expected):
                raise ModelError(
                    f"{self.path} has {len(found)} {kind}s, expected {len(expected)}. "
                    "Export the model again with onebest export."
                )
            for port, (element, shape) in zip(found, expected, strict=True):
                if port.type != f"tensor({element})" or not _fits(port.shape, shape):
                    raise ModelError(
                        f"{self.path}: {kind} {port.name!r} is {port.type} {port.shape}, expected "
                        f"tensor({element}) {['any' if axis is None else axis for axis in shape]}. Export it "
                        "again, or choose the chunk length and left context it was made for."
                    )


def _contains(path: Path, word: bytes) -> bool:
    """Return whether a file has these bytes, without reading it into memory."""
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(word) >= 0


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].strip()


def _fits(found: Sequence[int | str | None], expected: Sequence[int | None]) -> bool:
    return len(found) == len(expected) and all(
        not isinstance(axis, int) or axis == wanted for axis, wanted in zip(found, expected, strict=True)
    )
