"""``onebest train``: a TOML file -> a run's folder with its checkpoint and log; called again, it goes on.

Several processes share a run under ``torchrun --nproc-per-node N --no-python onebest train ...``.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onebest.cli import Command

if TYPE_CHECKING:
    from onebest_training.checkpoint import Position
    from onebest_training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", type=Path, help="the run's TOML file")
    parser.add_argument("run", type=Path, help="folder of the run; an unfinished run in it is resumed")
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda or cuda:N; under torchrun cuda takes one GPU a process"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    parser.add_argument(
        "--change-config", action="store_true", help="go on although the configuration has changed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the configuration, build the trainer, train under a progress bar."""
    from onebest_training.bf16 import advise
    from onebest_training.config import load_config
    from onebest_training.parallel import leave, set_threads
    from onebest_training.trainer import Trainer

    set_threads(arguments.threads)
    config = load_config(arguments.config)
    is_first = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(level=logging.INFO if is_first else logging.ERROR, format="%(message)s")
    try:
        trainer = Trainer(config, arguments.run, arguments.device, arguments.change_config)
        if is_first:
            advise(config.bf16, trainer.device)
            _run_under_a_bar(trainer)
        else:
            trainer.run()
    finally:
        leave()
    return 0


def _run_under_a_bar(trainer: Trainer) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    stages = trainer.config.stages
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        total = sum(stage.steps for stage in stages)
        task = progress.add_task("training", total=total, completed=trainer.position.step)

        def show(position: Position, loss: float) -> None:
            name = stages[position.stage].name
            progress.update(task, completed=position.step, description=f"{name} loss {loss:.3f}")

        trainer.run(show)


command = Command("train a model, or go on training it", add_arguments, run)
