"""``onebest targets``: a teacher and speech -> what the teacher says of it, for students to learn."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from onebest.cli import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source",
        type=Path,
        help="lhotse cut manifest, a folder like LibriSpeech's, or a store with what the teacher reads",
    )
    parser.add_argument("store", type=Path, help="folder to write; an unfinished one in it is finished")
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of the teacher")
    parser.add_argument("--labels", choices=("text", "search"), default="text", help="whose labels")
    parser.add_argument("--beam", type=int, default=4, help="hypotheses in the search")
    parser.add_argument("--hypotheses", type=int, default=1, help="of which so many are kept")
    parser.add_argument("--kept", type=int, default=16, help="classes kept at a node")
    parser.add_argument("--language-model", type=Path, help="of the same tokens")
    parser.add_argument("--language-model-weight", type=float, default=0.0)
    parser.add_argument("--max-seconds", type=float, default=30.0, help="longer cuts are left out")
    parser.add_argument("--shard-seconds", type=float, default=600.0, help="audio in a shard")
    parser.add_argument("--batch-seconds", type=float, default=120.0, help="audio heard at a time")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    parser.add_argument("--ray-actors", type=int, default=0, help="share the work out by Ray")


def run(arguments: argparse.Namespace) -> int:
    """Open the teacher, make what is missing of the store under a progress bar."""
    import rich.progress

    from onebest_training.beam import SearchOptions
    from onebest_training.parallel import set_threads
    from onebest_training.produce import Production, Progress, produce
    from onebest_training.teacher import TargetOptions

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_threads(arguments.threads)
    search = SearchOptions(arguments.beam, arguments.language_model_weight)
    production = Production(
        arguments.source.resolve(),
        arguments.teacher.resolve(),
        TargetOptions(arguments.kept, arguments.hypotheses, search),
        arguments.language_model and arguments.language_model.resolve(),
        arguments.labels,
        arguments.max_seconds,
        arguments.shard_seconds,
        arguments.batch_seconds,
        arguments.device,
    )
    with rich.progress.Progress() as bar:
        task = bar.add_task("targets", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.seconds, total=progress.total)

        store = produce(production, arguments.store, show, arguments.ray_actors)
    print(f"{arguments.store}: {len(store)} cuts with targets, {len(store.left_out)} without")
    return 0


command = Command("store what a teacher says of speech, for students to learn", add_arguments, run)
