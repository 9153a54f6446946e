"""The log of a run: a row of JSON for every so many steps, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from onebest.errors import DataError
from onebest_training.checkpoint import Position
from onebest_training.speech import writing

Row = dict[str, Any]


def read_rows(run: Path) -> list[Row]:
    """Return the rows of a run's log; ``run`` is its folder, or the log itself.

    Raises:
        DataError: there is none, it is empty, or a row in the middle is damaged.
    """
    path = run / "log.jsonl" if run.is_dir() else run
    try:
        lines = path.read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line is not lines[-1] or _step_of(line) < math.inf]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a run's log ({error}).") from error
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise DataError(f"{path}: no run's log. Expected at least one row, and a step in each.")
    return rows


def corpus_and_chunk(key: str) -> tuple[str, int]:
    """Return the corpus and the frames a chunk of a measure's name, "wer/CORPUS/CHUNK".

    Raises:
        DataError: it has another form.
    """
    corpus, _, chunk = key.partition("/")[2].rpartition("/")
    if not chunk.isdecimal():
        raise DataError(f"{key}: no measure of a run. Expected wer/CORPUS/CHUNK, with a number of frames.")
    return corpus, int(chunk)


class RunLog:
    """``log.jsonl`` and TensorBoard's files in a run's folder.

    Args:
        folder: the run's.
        step: where the run goes on; what is logged of later steps is dropped, it will come again.

    Raises:
        DataError: the log cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        self._path = folder / "log.jsonl"
        self._drop_rows_after(step)
        with writing(folder):
            self._board = SummaryWriter(str(folder), purge_step=step + 1)

    def _drop_rows_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = [row for row in self._path.read_text("utf-8").splitlines() if _step_of(row) <= step]
        partial = self._path.with_suffix(".partial")
        with writing(self._path):
            partial.write_text("".join(row + "\n" for row in kept), "utf-8")
            os.replace(partial, self._path)

    def write(self, position: Position, values: dict[str, Any]) -> None:
        """Add a row; TensorBoard gets the numbers.

        Raises:
            DataError: it cannot be written.
        """
        row = {
            "step": position.step,
            "hours": round(position.seconds / 3600, 3),
            "minutes": round(position.wall_seconds / 60, 2),
            **values,
        }
        with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with writing(self._path.parent):
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, position.step)
            self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file.

        Raises:
            DataError: it cannot be written.
        """
        with writing(self._path.parent):
            self._board.close()


class Sum(NamedTuple):
    """Values added up, each times its weight, and the weights."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, total: float, weight: float) -> Sum:
        """Return the sum with another one."""
        return Sum(self.total + total, self.weight + weight)


Sums = dict[str, Sum]


class Means:
    """Means of losses since they were last taken, and the seconds of audio a second."""

    def __init__(self) -> None:
        self._sums: Sums = {}
        self._audio, self._wall = 0.0, 0.0

    def add(self, losses: dict[str, float], weight: float = 1.0) -> None:
        """Take in a batch's losses, with their weight among the step's.

        A loss that is not finite is left out, as its step is.
        """
        for name, value in losses.items():
            if math.isfinite(value):
                self._sums[name] = self._sums.get(name, Sum()).add(value * weight, weight)

    def add_time(self, audio: float, wall: float) -> None:
        """Take in a step's seconds of audio, and the seconds it took."""
        self._audio, self._wall = self._audio + audio, self._wall + wall

    def take(self, gather: Callable[[Sums], list[Sums]] = lambda sums: [sums]) -> dict[str, float]:
        """Return the means, each over the batches that had the loss, and start again.

        ``gather`` collects the sums of all processes.
        """
        merged: Sums = {}
        for sums in gather(self._sums):
            for name, part in sums.items():
                merged[name] = merged.get(name, Sum()).add(*part)
        means = {name: round(part.total / part.weight, 5) for name, part in merged.items()}
        means["audio_seconds_a_second"] = round(self._audio / max(self._wall, 1e-9), 1)
        self._sums, self._audio, self._wall = {}, 0.0, 0.0
        return means


def _step_of(row: str) -> float:
    """Return the step of a row, or infinity for one that a kill cut off."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
