"""What the tests of runs share: stopping one, and reading its log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onebest_training.checkpoint import Position
from onebest_training.config import TrainConfig
from onebest_training.trainer import Trainer

Row = dict[str, Any]


def read_log(folder: Path) -> list[Row]:
    return [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]


class KilledError(Exception):
    pass


def stop_after(step: int, trainer: Trainer | None = None) -> Callable[[Position, float], None]:
    """Progress that ends the run after a step, and saves before if it is given the trainer."""

    def progress(position: Position, loss: float) -> None:
        if position.step == step:
            if trainer is not None:
                trainer.save()
            raise KilledError

    return progress


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {as_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def write_toml(config: TrainConfig, path: Path) -> Path:
    path.write_text("".join(f"{name} = {as_toml(value)}\n" for name, value in asdict(config).items()))
    return path


def another_process_in(folder: Path) -> AbstractContextManager[None]:
    """One that writes into a folder, until it is killed at the end."""
    return _another_process("alone_in", folder)


def another_process_with(path: Path) -> AbstractContextManager[None]:
    """One that works on a file, until it is killed at the end."""
    return _another_process("alone_with", path)


@contextmanager
def _another_process(function: str, path: Path) -> Iterator[None]:
    code = f"""
import pathlib, sys
from onebest_training.speech import {function}
with {function}(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield
        process.kill()
