"""What a teacher says of utterances, read from a folder that ``onebest targets`` wrote.

For each utterance these are the nodes of its best paths, with the classes that the teacher weighs there. A
store is a folder with ``description.json`` and shards; each appears when it is complete.

Axis legend: T teacher frames (40 ms), U labels, N nodes of a path (T + U), K classes kept at a node.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onebest.delay import TimedToken
from onebest.errors import ConfigError, DataError
from onebest.vocabulary import BLANK

IntArray = npt.NDArray[np.int32]
HalfArray = npt.NDArray[np.float16]
#: Of the files of a store.
FORMAT = 1
DESCRIPTION = "description.json"
_REMAKE = "Remove the file and call onebest targets again as before."


class Tokens(Protocol):
    """A vocabulary with the hash of the sentencepiece model that it comes from."""

    digest: str

    def __len__(self) -> int:
        """How many tokens there are."""
        ...


@dataclass(frozen=True)
class TeacherPath:
    """One hypothesis of one utterance, as a path through the lattice; its nodes are in order.

    Attributes:
        frames: t of each node, from 0 to T-1, int32 [N].
        labels: u of each node, the labels emitted before it, int32 [N].
        tokens: what the teacher does there, int32 [N]: 0 is blank and leads to t+1, another one is label u+1
            and leads to u+1. The last one is blank.
        top_ids: the most likely classes, most likely first, int32 [N, K].
        top_log_probs: their log-probabilities, float16 [N, K].
        rest_log_prob: log of the mass of all other classes, float16 [N]; -inf where nothing is left.
        score: log-probability of the hypothesis; the N-best's weights are the softmax of their scores.

    Raises:
        DataError: shapes or types do not fit, or the nodes are no path.
    """

    frames: IntArray
    labels: IntArray
    tokens: IntArray
    top_ids: IntArray
    top_log_probs: HalfArray
    rest_log_prob: HalfArray
    score: float

    def __post_init__(self) -> None:
        nodes, kept = self.top_ids.shape if self.top_ids.ndim == 2 else (0, 0)
        expected = {
            "frames": (np.int32, (nodes,)),
            "labels": (np.int32, (nodes,)),
            "tokens": (np.int32, (nodes,)),
            "top_ids": (np.int32, (nodes, kept)),
            "top_log_probs": (np.float16, (nodes, kept)),
            "rest_log_prob": (np.float16, (nodes,)),
        }
        for name, (kind, shape) in expected.items():
            array = getattr(self, name)
            if array.dtype != kind or array.shape != shape or not array.size:
                raise DataError(
                    f"{name}: expected {np.dtype(kind)} {list(shape)} of at least one node and class, "
                    f"got {array.dtype} {list(array.shape)}."
                )
        emits = self.tokens != BLANK
        if (
            emits[-1]
            or self.tokens.min() < 0
            or not np.array_equal(self.labels, np.cumsum(emits) - emits)
            or not np.array_equal(self.frames, np.cumsum(~emits) - ~emits)
        ):
            raise DataError(
                "the nodes are no path: blank must lead to t+1, a label to u+1, the end is blank."
            )
        if np.isnan(self.top_log_probs).any() or np.isnan(self.rest_log_prob).any() or np.isnan(self.score):
            raise DataError("a log-probability is not a number.")

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.frames[-1]) + 1

    @property
    def reference(self) -> tuple[int, ...]:
        """The U labels of the path."""
        return tuple(map(int, self.tokens[self.tokens != BLANK]))

    @property
    def emissions(self) -> list[TimedToken]:
        """The labels with the frames that emit them."""
        emits = self.tokens != BLANK
        pairs = zip(self.tokens[emits].tolist(), self.frames[emits].tolist(), strict=True)
        return [TimedToken(*pair) for pair in pairs]


@dataclass(frozen=True)
class Description:
    """What a store is of; a run goes on, and a student learns, only where it fits.

    Attributes:
        teacher: hash of all that the teacher consists of.
        tokens: hash of the sentencepiece model (``TextEncoder.digest``).
        vocabulary_size: V.
        settings: plain values on which the targets depend besides.
        cuts: hash of the names of the cuts, in order.
        shards: how many files there are when it is complete.
    """

    teacher: str
    tokens: str
    vocabulary_size: int
    settings: dict[str, Any]
    cuts: str
    shards: int
    format: int = FORMAT

    @staticmethod
    def read(folder: Path) -> Description:
        """Read a store's description.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = folder / DESCRIPTION
        try:
            return Description(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{path}: no description of targets ({error}). Make them with: onebest targets"
            ) from error


def shard_path(folder: Path, number: int) -> Path:
    """Return where a store's shard lies."""
    return folder / f"shard-{number:05}.targets"


def _unpack(record: bytes, nodes: int, kept: int, score: float) -> TeacherPath:
    tokens = np.frombuffer(record, "<u2", nodes).astype(np.int32)
    rest = np.frombuffer(record, "<f2", nodes, 2 * nodes)
    ids = np.frombuffer(record, "<u2", nodes * kept, 4 * nodes).astype(np.int32)
    top = np.frombuffer(record, "<f2", nodes * kept, (4 + 2 * kept) * nodes)
    return make_path(
        tokens,
        ids.reshape(nodes, kept),
        top.astype(np.float16).reshape(nodes, kept),
        rest.astype(np.float16),
        score,
    )


def make_path(
    tokens: IntArray, top_ids: IntArray, top_log_probs: HalfArray, rest_log_prob: HalfArray, score: float
) -> TeacherPath:
    """Return the path that the tokens make, each blank a step in t, each label one in u."""
    emits = tokens != BLANK
    frames, labels = np.cumsum(~emits) - ~emits, np.cumsum(emits) - emits
    return TeacherPath(
        frames.astype(np.int32),
        labels.astype(np.int32),
        tokens,
        top_ids,
        top_log_probs,
        rest_log_prob,
        score,
    )


@dataclass(frozen=True)
class _Entry:
    """Where a path lies: its shard, the byte it begins at, its sizes, its score and its checksum."""

    shard: Path
    start: int
    nodes: int
    kept: int
    score: float
    checksum: int


class TargetStore:
    """Targets opened for reading: the index in memory, the paths read from disk one by one.

    Args:
        folder: written by ``onebest targets``.

    Attributes:
        description: what it is of.
        left_out: why a cut has no target, by cut.

    Raises:
        DataError: the folder is no store or an unfinished one, or a shard is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.description = Description.read(folder)
        self.left_out: dict[str, str] = {}
        self._entries: dict[str, list[_Entry]] = {}
        shards = [shard_path(folder, number) for number in range(self.description.shards)]
        missing = sum(not shard.exists() for shard in shards)
        if missing:
            raise DataError(
                f"{folder}: {missing} of {len(shards)} shards are missing. Call onebest targets again as "
                "before; it makes what is missing."
            )
        for shard in shards:
            self._open(shard)

    def _open(self, shard: Path) -> None:
        try:
            with open(shard, "rb") as file:
                header = json.loads(file.readline())
                start = file.tell()
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']} instead of {FORMAT}")
            for cut, nodes, kept, score, checksum in header["paths"]:
                entry = _Entry(shard, start, nodes, kept, score, checksum)
                self._entries.setdefault(cut, []).append(entry)
                start += 4 * nodes * (1 + kept)
            self.left_out.update(header["left_out"])
            if (size := shard.stat().st_size) != start:
                raise ValueError(f"{size} bytes instead of {start}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{shard}: damaged ({error}). {_REMAKE}") from error

    def __contains__(self, cut: str) -> bool:
        return cut in self._entries

    def __len__(self) -> int:
        """How many cuts have a target."""
        return len(self._entries)

    def paths(self, cut: str) -> list[TeacherPath]:
        """Return the paths of a cut, the best first.

        Raises:
            DataError: it has none, or its shard is damaged.
        """
        if cut not in self._entries:
            cause = self.left_out.get(cut, "it was not among the cuts that they were made of")
            raise DataError(f"{self.folder}: no target for cut {cut}: {cause}.")
        return [self._read(cut, entry) for entry in self._entries[cut]]

    def _read(self, cut: str, entry: _Entry) -> TeacherPath:
        with open(entry.shard, "rb") as file:
            file.seek(entry.start)
            record = file.read(4 * entry.nodes * (1 + entry.kept))
        if zlib.crc32(record) != entry.checksum:
            raise DataError(f"{entry.shard}: the target of cut {cut} is damaged. {_REMAKE}")
        return _unpack(record, entry.nodes, entry.kept, entry.score)

    def check_tokens(self, tokens: Tokens) -> None:
        """Make sure that the targets speak of a student's tokens.

        Raises:
            ConfigError: the vocabulary is another one.
        """
        if self.description.tokens != tokens.digest:
            raise ConfigError(
                f"{self.folder}: made with another vocabulary ({self.description.vocabulary_size} tokens, "
                f"{self.description.tokens[:12]}) than the student's ({len(tokens)}, {tokens.digest[:12]}). "
                "Give the student the teacher's vocabulary, or make targets with a teacher of its own."
            )
