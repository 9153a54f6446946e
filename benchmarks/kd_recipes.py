"""The recipes of the distillation table: TOML files -> the configuration of each run, its paths filled in."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from onebest.errors import ConfigError
from onebest_training.config import LossConfig, SourceConfig, TrainConfig, load_config
from onebest_training.strict import from_dict, require

#: Frames a chunk with which each kind of student is trained and measured; 0 is full context.
CHUNK_FRAMES = {"offline": 0, "streaming": 16}
DEV = "dev"


@dataclass(frozen=True)
class TargetsConfig:
    """A store of targets.

    Attributes:
        part: of the data, that the teacher listens to.
        labels: "text" for its path through what was said, "search" for what it hears.
        lm_weight: of the language model in its probabilities and its search; 0 does without.
    """

    part: str
    labels: str = "text"
    lm_weight: float = 0.0


@dataclass(frozen=True)
class TableConfig:
    """What the rows have in common besides their start.

    Attributes:
        labelled_corpus: whose speakers are the labelled part.
        labelled_share: of all audio.
        corpora: all that is trained on and measured.
        vocabulary_size: of everybody.
        student_blocks: blocks of the pre-trained encoder that the student keeps.
        tau_of: the row, without distillation, whose student's delay behind the teacher on dev is tau.
        targets: the stores of targets that rows may name.
        lm_width, lm_passes: size of the language model, and passes over its text.
    """

    labelled_corpus: str
    labelled_share: float
    vocabulary_size: int
    student_blocks: int
    tau_of: str
    corpora: tuple[str, ...]
    targets: dict[str, TargetsConfig] = field(default_factory=dict)
    lm_width: int = 512
    lm_passes: int = 4

    def __post_init__(self) -> None:
        require(0 < self.labelled_share < 1, "a labelled_share between 0 and 1")


@dataclass(frozen=True)
class RowConfig:
    """A row of the table.

    Attributes:
        student: a key of ``CHUNK_FRAMES``.
        targets: what the teacher gives, in words.
        sources: parts of the data and the targets to learn from, by name.
        loss: of the only stage.
        shift_is_tau: whether its shift is what ``onebest estimate-tau`` measures instead of what it says.
        seeds: one run each.
    """

    student: str
    targets: str
    sources: tuple[SourceConfig, ...]
    loss: LossConfig
    shift_is_tau: bool = False
    seeds: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        require(self.student in CHUNK_FRAMES, f"a student of {', '.join(CHUNK_FRAMES)}")
        require(len(self.seeds) > 0, "at least one seed")


class Recipes(NamedTuple):
    """All files of a folder of recipes; the paths in them are still names."""

    table: TableConfig
    teacher: TrainConfig
    start: TrainConfig
    student: TrainConfig
    rows: dict[str, RowConfig]


class Work(NamedTuple):
    """Where everything lies that the table is made from, and in."""

    folder: Path

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens.model"

    @property
    def language_model(self) -> Path:
        return self.folder / "language-model.pt"

    @property
    def encoder(self) -> Path:
        return self.folder / "student-encoder.pt"

    @property
    def tau(self) -> Path:
        return self.folder / "tau.json"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def start(self) -> Path:
        return self.folder / "start"

    def manifest(self, part: str) -> Path:
        return self.folder / "manifests" / f"{part}.jsonl.gz"

    def store(self, part: str) -> Path:
        return self.folder / "stores" / part

    def frames(self, part: str) -> Path:
        return self.folder / "frames" / part

    def targets(self, name: str) -> Path:
        return self.folder / "targets" / name

    def run(self, name: str, seed: int) -> Path:
        return self.folder / "rows" / f"{name}-{seed}"


def read_recipes(folder: Path) -> Recipes:
    """Read a folder: table.toml, teacher.toml, start.toml, student.toml and rows/*.toml.

    Raises:
        ConfigError: a file is missing or wrong, or names a row or targets that are not there.
    """
    table = from_dict(TableConfig, _read(folder / "table.toml"), "table.toml")
    rows = {
        path.stem: from_dict(RowConfig, _read(path), path.name)
        for path in sorted((folder / "rows").glob("*.toml"))
    }
    for name, row in rows.items():
        for source in row.sources:
            if source.targets and source.targets not in table.targets:
                known = ", ".join(table.targets)
                raise ConfigError(
                    f"{name}.toml: no targets {source.targets!r} in table.toml. There are: {known}."
                )
    if table.tau_of not in rows:
        raise ConfigError(f"table.toml: tau_of is no row: {table.tau_of!r}. There are: {', '.join(rows)}.")
    runs = [load_config(folder / f"{name}.toml") for name in ("teacher", "start", "student")]
    return Recipes(table, *runs, rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}).") from error


def teacher_config(recipes: Recipes, work: Work, whisper: str) -> TrainConfig:
    """Return the teacher's run; ``whisper`` is the source of its pre-trained encoder."""
    config = recipes.teacher
    encoder = replace(config.model.encoder, pretrained=config.model.encoder.pretrained + whisper)
    config = replace(config, model=replace(config.model, encoder=encoder))
    return _with_paths(config, work, work.frames)


def start_config(recipes: Recipes, work: Work) -> TrainConfig:
    """Return the run that all students start from."""
    config = _with_paths(recipes.start, work, work.store)
    return replace(config, initial_encoder=str(work.encoder))


def row_config(recipes: Recipes, work: Work, name: str, seed: int, tau: int) -> TrainConfig:
    """Return the run of a row with a seed; tau is in frames."""
    row, chunk = recipes.rows[name], CHUNK_FRAMES[recipes.rows[name].student]
    teacher = str(work.teacher / "checkpoint.pt") if row.loss.teacher else ""
    loss = replace(row.loss, teacher=teacher, shift=tau if row.shift_is_tau else row.loss.shift)
    data = replace(recipes.student.data, train=row.sources, dev_targets=DEV)
    stages = tuple(replace(stage, loss=loss, chunk_frames=(chunk,)) for stage in recipes.student.stages)
    config = replace(
        recipes.student,
        data=data,
        stages=stages,
        seed=seed,
        evaluate_chunk_frames=(chunk,),
        initial_encoder=str(work.encoder),  # for its learning rate; its weights come with the start
        initial_model=str(work.start / "checkpoint.pt"),
    )
    return _with_paths(config, work, work.store)


def _with_paths(config: TrainConfig, work: Work, parts: Callable[[str], Path]) -> TrainConfig:
    def resolve(source: SourceConfig) -> SourceConfig:
        targets = str(work.targets(source.targets)) if source.targets else ""
        frames = str(work.frames(source.teacher_store)) if source.teacher_store else ""
        return replace(source, store=str(parts(source.store)), targets=targets, teacher_store=frames)

    data = replace(
        config.data,
        train=tuple(resolve(source) for source in config.data.train),
        dev=str(parts(config.data.dev)),
        dev_targets=str(work.targets(DEV)) if config.data.dev_targets else "",
        tokens=str(work.tokens),
    )
    return replace(config, data=data)
