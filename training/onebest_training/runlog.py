"""The log of a run: a row of JSON for every so many steps, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from onebest_training.checkpoint import Position


class RunLog:
    """``log.jsonl`` and TensorBoard's files in a run's folder.

    Args:
        folder: the run's.
        step: where the run goes on; what is logged of later steps is dropped, it will come again.
    """

    def __init__(self, folder: Path, step: int):
        self._path = folder / "log.jsonl"
        self._drop_rows_after(step)
        self._board = SummaryWriter(str(folder), purge_step=step + 1)

    def _drop_rows_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = [row for row in self._path.read_text("utf-8").splitlines() if _step_of(row) <= step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(row + "\n" for row in kept), "utf-8")
        os.replace(partial, self._path)

    def write(self, position: Position, values: dict[str, Any]) -> None:
        """Add a row; TensorBoard gets the numbers."""
        row = {
            "step": position.step,
            "hours": round(position.seconds / 3600, 3),
            "minutes": round(position.wall_seconds / 60, 2),
            **values,
        }
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, position.step)
        self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._board.close()


class Means:
    """Means of losses since they were last taken, and the seconds of audio a second."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._audio, self._wall = 0.0, 0.0

    def add(self, losses: dict[str, float], audio: float, wall: float) -> None:
        """Take in a step's losses, its seconds of audio, and the seconds it took.

        A loss that is not finite is left out, as its step is.
        """
        for name, value in losses.items():
            if math.isfinite(value):
                self._values.setdefault(name, []).append(value)
        self._audio, self._wall = self._audio + audio, self._wall + wall

    def take(self) -> dict[str, float]:
        """Return the means, each over the steps that had the loss, and start again."""
        means = {name: round(sum(values) / len(values), 5) for name, values in self._values.items()}
        means["audio_seconds_a_second"] = round(self._audio / max(self._wall, 1e-9), 1)
        self._values, self._audio, self._wall = {}, 0.0, 0.0
        return means


def _step_of(row: str) -> float:
    """Return the step of a row, or infinity for one that a kill cut off."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
