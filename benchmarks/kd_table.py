"""Students with and without distillation, beside the paper's gains: benchmarks/results/kd_table.json.

    python benchmarks/kd_table.py DATA --whisper FOLDER --encoder FILE [--jobs N] [--work DIR] [--rows NAME]
    python benchmarks/kd_table.py --show [--work DIR]
    python benchmarks/kd_table.py --smoke

DATA holds train.jsonl.gz, unlabelled.jsonl.gz, dev.jsonl.gz and lm_text.txt.gz. FOLDER is Whisper base as
CTranslate2 or transformers store it, FILE the encoder of Whisper tiny.en from ``onebest convert-encoder``. A
row is a file of training/recipes/kd/rows. What is finished in --work is used again, and what was stopped goes
on; the result, of all rows finished so far, is written anew after every row, and --show prints it any time.
With --jobs what does not need one another runs side by side, a core for each job. --work takes 10 GB, most of
it the pre-trained encoder's output. --smoke runs all of it on made-up speech.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median_low

import torch
from kd_data import Inputs, write_manifests
from kd_recipes import (
    CHUNK_FRAMES,
    DEV,
    Recipes,
    TargetsConfig,
    Work,
    read_recipes,
    row_config,
    start_config,
    teacher_config,
)
from kd_results import Row, make_result, measure_run, print_table
from kd_tasks import Task, run_tasks

from onebest.cli import main as run_onebest
from onebest.errors import ConfigError
from onebest_training.checkpoint import load, write
from onebest_training.commands.estimate_tau import measure_delays
from onebest_training.config import TrainConfig
from onebest_training.features import FeatureStore
from onebest_training.strict import to_dict
from onebest_training.trainer import Trainer

ROOT = Path(__file__).parents[1]
PARTS = ("labelled", "unlabelled", DEV)


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = Work(arguments.work)
    if arguments.show:
        print_table(make_result(finished_rows(read_recipes(arguments.recipes), work)))
        return
    if arguments.smoke:
        from kd_smoke import make_smoke

        inputs, recipes = make_smoke(arguments.work / "speech", read_recipes(arguments.recipes))
    else:
        inputs, recipes = find_inputs(arguments), read_recipes(arguments.recipes)
    names = arguments.rows or list(recipes.rows)
    result = make_table(recipes, work, inputs, names, arguments.output, arguments.jobs, arguments.threads)
    print_table(result)
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--whisper", type=Path, help="folder of the teacher's pre-trained encoder")
    parser.add_argument("--encoder", type=Path, help="first weights of the student")
    parser.add_argument("--work", type=Path, help="default: work/kd, or work/kd-smoke")
    parser.add_argument("--recipes", type=Path, default=ROOT / "training" / "recipes" / "kd")
    parser.add_argument("--output", type=Path, help="default: the result's place; of a smoke, in --work")
    parser.add_argument("--rows", nargs="+", help="these rows only")
    parser.add_argument("--jobs", type=int, default=1, help="how much is done at once (default: 1)")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of a job (default: the cores, shared)"
    )
    parser.add_argument("--show", action="store_true", help="print what is finished, make nothing")
    parser.add_argument("--smoke", action="store_true", help="in small")
    arguments = parser.parse_args()
    without = arguments.smoke or arguments.show
    if not without and None in (arguments.data, arguments.whisper, arguments.encoder):
        parser.error("DATA, --whisper and --encoder are needed without --smoke or --show")
    arguments.threads = arguments.threads or max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    arguments.work = arguments.work or ROOT / "work" / ("kd-smoke" if arguments.smoke else "kd")
    results = arguments.work if arguments.smoke else ROOT / "benchmarks" / "results"
    arguments.output = arguments.output or results / "kd_table.json"
    return arguments


def find_inputs(arguments: argparse.Namespace) -> Inputs:
    data = arguments.data.resolve()  # manifests written elsewhere name their audio from here
    parts = [data / f"{part}.jsonl.gz" for part in ("train", "unlabelled", "dev")]
    texts = (data / "lm_text.txt.gz",)
    return Inputs(*parts, texts, str(arguments.whisper), arguments.encoder)


def make_table(
    recipes: Recipes,
    work: Work,
    inputs: Inputs,
    names: list[str],
    output: Path,
    jobs: int = 1,
    threads: int = 0,
) -> dict[str, object]:
    """Make what the rows need, run them, and write the result after each."""
    for name in names:
        if name not in recipes.rows:
            raise ConfigError(f"no row {name!r}. There are: {', '.join(recipes.rows)}.")

    def write_after_row(name: str) -> None:
        if name.startswith("row "):
            write_json(output, make_result(finished_rows(recipes, work)))

    write_manifests(inputs, recipes.table, work)
    truncate_encoder(inputs.encoder, work.encoder, recipes.table.student_blocks)
    size = str(recipes.table.vocabulary_size)
    once(work.tokens, "vocabulary", *texts_of(work, inputs), "--size", size, "--output", str(work.tokens))
    run_tasks(plan(recipes, work, inputs, names), jobs, write_after_row, threads)
    return make_result(finished_rows(recipes, work))


def plan(recipes: Recipes, work: Work, inputs: Inputs, names: Sequence[str]) -> list[Task]:
    """Return all there is to do for some rows: first what most waits for; of the rows, all with one seed."""
    rows = {name: recipes.rows[name] for name in names}
    used = {source.targets for row in rows.values() for source in row.sources} - {""}
    targets = {DEV: TargetsConfig(DEV), **{name: recipes.table.targets[name] for name in sorted(used)}}
    teacher = teacher_config(recipes, work, inputs.whisper)
    tasks: list[Task] = []

    def add(name: str, needs: Iterable[str], function: Callable[..., None], *arguments: object) -> None:
        tasks.append(Task(name, tuple(needs), partial(function, *arguments)))

    def prepare(kind: str, part: str, folder: Path, *options: str) -> None:
        add(f"{kind} {part}", (), once, folder, "prepare", str(work.manifest(part)), str(folder), *options)

    front_end = ("--front-end", teacher.model.encoder.pretrained)
    for part in (DEV, "labelled"):
        prepare("frames", part, work.frames(part), *front_end)
    for part in (DEV, "labelled"):
        prepare("store", part, work.store(part))
    add("teacher", (f"frames {DEV}", "frames labelled"), train, teacher, work.teacher)
    add("start", (f"store {DEV}", "store labelled"), train, start_config(recipes, work), work.start)
    for part in sorted({found.part for found in targets.values()} - {DEV, "labelled"}):
        prepare("frames", part, work.frames(part), *front_end)
    prepare("store", "unlabelled", work.store("unlabelled"))
    if any(found.lm_weight for found in targets.values()):
        add("language model", (), make_language_model, recipes, work, inputs)
    for name, found in targets.items():
        needs = ["teacher", f"frames {found.part}", *(["language model"] if found.lm_weight else ())]
        add(f"targets {name}", needs, make_targets, work, name, found)
    always = ["start", f"targets {DEV}", *(f"store {part}" for part in PARTS)]
    tau = ["tau"] if any(row.shift_is_tau for row in rows.values()) else []
    if tau:
        add("tau", always, make_tau, recipes, work)
    for turn in range(max(len(row.seeds) for row in rows.values())):
        for name, row in rows.items():
            if turn < len(row.seeds):
                needs = always + [f"targets {source.targets}" for source in row.sources if source.targets]
                if row.shift_is_tau or name == recipes.table.tau_of:  # whose first run is made for tau
                    needs += tau
                add(f"row {name} {row.seeds[turn]}", needs, make_row, recipes, work, name, row.seeds[turn])
    return tasks


def finished_rows(recipes: Recipes, work: Work) -> list[Row]:
    """Return all rows measured so far, without those that were made with another configuration."""
    tau, rows = read_tau(work) or 0, []
    for name, row in sorted(recipes.rows.items()):
        for seed in sorted(row.seeds):
            found = read_row(work, name, seed)
            if found and found.pop("config") == settings_of(row_config(recipes, work, name, seed, tau)):
                rows.append(found)
    return rows


def make_language_model(recipes: Recipes, work: Work, inputs: Inputs) -> None:
    """Train the language model that helps the teacher."""
    sizes = {"--width": recipes.table.lm_width, "--passes": recipes.table.lm_passes}
    size = [word for name, value in sizes.items() for word in (name, str(value))]
    options = ["--tokens", str(work.tokens), *size, "--output", str(work.language_model)]
    once(work.language_model, "train-lm", *texts_of(work, inputs), *options)


def texts_of(work: Work, inputs: Inputs) -> list[str]:
    """Return where the text of vocabulary and language model stands."""
    return [str(work.manifest("labelled")), *map(str, inputs.texts)]


def once(path: Path, *words: str) -> None:
    """Run a command of onebest unless what it makes is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run(*words)


def run(*words: str) -> None:
    """Run a command of onebest, or end with its status."""
    logging.info("onebest %s", " ".join(words))
    if status := run_onebest(words):
        raise SystemExit(status)


def make_targets(work: Work, name: str, targets: TargetsConfig) -> None:
    """Let the teacher listen to a part of the data, or go on with that."""
    options = ["--teacher", str(work.teacher / "checkpoint.pt"), "--labels", targets.labels]
    if targets.lm_weight:
        options += ["--language-model", str(work.language_model)]
        options += ["--language-model-weight", str(targets.lm_weight)]
    run("targets", str(work.frames(targets.part)), str(work.targets(name)), *options)


def train(config: TrainConfig, folder: Path) -> None:
    """Run or finish a run of training."""
    total, path = sum(stage.steps for stage in config.stages), folder / "checkpoint.pt"
    if path.exists() and load(path).position.step == total:
        return
    logging.info("%s: %d steps", folder, total)
    Trainer(config, folder).run()


def truncate_encoder(source: Path, path: Path, blocks: int) -> None:
    """Keep the lowest blocks of first weights."""
    if not path.exists():
        weights = torch.load(source, weights_only=True)
        kept = {
            name: value
            for name, value in weights.items()
            if not name.startswith("blocks.") or int(name.split(".")[1]) < blocks
        }
        write(kept, path)


def make_tau(recipes: Recipes, work: Work) -> None:
    """Measure tau in frames: by how much a student without distillation is later than the teacher on dev."""
    if read_tau(work) is None:
        name = recipes.table.tau_of
        seed, chunk = recipes.rows[name].seeds[0], CHUNK_FRAMES[recipes.rows[name].student]
        make_row(recipes, work, name, seed)
        checkpoint = work.run(name, seed) / "checkpoint.pt"
        delays, _ = measure_delays(checkpoint, work.targets(DEV), work.store(DEV), chunk)
        if not delays:
            logging.warning("%s recognises nothing, tau is 0", name)
        tau = max(0, median_low(delays)) if delays else 0
        write_json(work.tau, {"tau": tau, "tokens": len(delays), "row": name})
        logging.info("tau: %d frames, the median of %d tokens of %s", tau, len(delays), name)


def read_tau(work: Work) -> int | None:
    return int(json.loads(work.tau.read_text("utf-8"))["tau"]) if work.tau.exists() else None


def read_row(work: Work, name: str, seed: int) -> Row | None:
    """Return what was measured of a finished run, with its configuration; None if it is not finished."""
    path = work.run(name, seed) / "result.json"
    found: Row | None = json.loads(path.read_text("utf-8")) if path.exists() else None
    return found


def settings_of(config: TrainConfig) -> object:
    """Return a configuration as JSON gives it back."""
    return json.loads(json.dumps(to_dict(config)))


def make_row(recipes: Recipes, work: Work, name: str, seed: int) -> None:
    """Train and measure a row's student with a seed, unless that is done."""
    config = row_config(recipes, work, name, seed, read_tau(work) or 0)
    folder, row = work.run(name, seed), recipes.rows[name]
    settings = settings_of(config)
    if found := read_row(work, name, seed):
        if found["config"] != settings:
            raise ConfigError(f"{folder}: made with another configuration. Remove it to make it again.")
        return
    train(config, folder)
    parts = {source.store for source in row.sources}
    hours = {part: hours_of(work.store(part)) if part in parts else 0.0 for part in PARTS if part != DEV}
    result = {
        "name": name,
        "student": row.student,
        "targets": row.targets,
        **{f"{part}_hours": round(found, 3) for part, found in hours.items()},
        "steps": sum(stage.steps for stage in config.stages),
        "seed": seed,
        "shift": config.stages[0].loss.shift,
        **measure_run(row, config, folder / "checkpoint.pt"),
    }
    write_json(folder / "result.json", {**result, "config": settings})


def hours_of(store: Path) -> float:
    return sum(cut.duration for cut in FeatureStore(store).cuts) / 3600


def write_json(path: Path, content: object) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n", "utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
