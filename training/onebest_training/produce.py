"""Targets of many cuts, shard by shard: a kill loses only shards in the making, and nothing is done twice.

Which cuts a shard holds follows from the manifest alone, and a shard depends on nothing but its cuts. So it
does not matter who makes which: one process, or the actors of a Ray cluster that share a file system.

The teacher is whatever ``Production.open_teacher`` reads: a checkpoint with its front end and language model.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from onebest.cuts import Cut, read_cuts
from onebest.errors import DataError
from onebest.frontend import FloatArray
from onebest_training.encoder import FRAMES_PER_SECOND
from onebest_training.features import FeatureStore
from onebest_training.speech import (
    UNREADABLE,
    alone_in,
    cut_text,
    in_order,
    load_usable,
    log_left_out,
    needs_extra,
)
from onebest_training.strict import require
from onebest_training.targets import (
    Description,
    TargetStore,
    TeacherPath,
    shard_path,
    write_description,
    write_shard,
)
from onebest_training.teacher import TargetOptions, Teacher
from onebest_training.utterances import FRAMES_PER_LABEL, fault_of_text

log = logging.getLogger(__name__)
LABELS = ("text", "search")
MIN_SECONDS = 0.1


@dataclass(frozen=True)
class Production:
    """All that the targets of a manifest depend on.

    Attributes:
        source: lhotse cuts, a folder like LibriSpeech's, or a store with what the teacher reads.
        teacher: the checkpoint.
        options: what is wanted of it.
        language_model: path, or None.
        labels: "text" takes the path of a cut's own text, and searches where there is none; "search" always
            searches.
        max_seconds: longer cuts are left out.
        shard_seconds: audio in a shard.
        batch_seconds: padded audio that the teacher hears at a time.
        device: to run on.
    """

    source: Path
    teacher: Path
    options: TargetOptions = field(default_factory=TargetOptions)
    language_model: Path | None = None
    labels: str = "text"
    max_seconds: float = 30.0
    shard_seconds: float = 600.0
    batch_seconds: float = 120.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(self.labels in LABELS, f"labels to be one of {', '.join(LABELS)}, not {self.labels!r}")
        seconds = self.max_seconds, self.shard_seconds, self.batch_seconds
        require(all(number > 0 for number in seconds), "seconds above 0")

    def open_teacher(self) -> Teacher:
        """Read the teacher, ready for use."""
        return Teacher(self.teacher, self.options, self.language_model, self.device)

    def open_store(self) -> FeatureStore | None:
        """Open the source if it is a store."""
        is_store = (self.source / "store.json").is_file()
        return FeatureStore(self.source) if is_store else None

    def shards(self) -> list[list[Cut]]:
        """Return the cuts of each shard, in order.

        Raises:
            DataError: the manifest cannot be read, is empty, or a cut has no audio or no name of its own.
        """
        shards: list[list[Cut]] = []
        seconds = self.shard_seconds
        store = self.open_store()
        for cut in in_order(store.cuts if store else read_cuts(self.source)):
            if seconds >= self.shard_seconds:
                shards.append([])
                seconds = 0.0
            shards[-1].append(cut)
            seconds += cut.duration
        if not shards:
            raise DataError(f"{self.source}: no cut in it. Expected at least one.")
        return shards

    def describe(self, teacher: Teacher, shards: list[list[Cut]]) -> Description:
        """Return the description of the store."""
        names = "\n".join(f"{cut.id} {cut_text(cut)}" for shard in shards for cut in shard)
        settings = {
            **asdict(self.options),
            "labels": self.labels,
            "max_seconds": self.max_seconds,
            "shard_seconds": self.shard_seconds,
            "batch_seconds": self.batch_seconds,
            "from_store": self.open_store() is not None,
        }
        return Description(
            teacher.digest,
            teacher.tokens.digest,
            len(teacher.tokens),
            settings,
            hashlib.sha256(names.encode()).hexdigest(),
            len(shards),
        )


class ShardMaker:
    """Makes shards; a process or an actor holds one.

    Attributes:
        teacher: what makes them.
        shards: the cuts of each.
    """

    def __init__(self, production: Production, folder: Path):
        self._production, self._folder = production, folder
        self.teacher = production.open_teacher()
        self.shards = production.shards()
        self._store = production.open_store()
        if self._store:
            self._store.check_front_end(self.teacher.encoder, self.teacher.front_end.digest)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Make shard ``job["number"]``; return the job with the seconds of audio in it."""
        number = int(job["number"])
        self.make(number)
        return {"number": number, "seconds": sum(cut.duration for cut in self.shards[number])}

    def make(self, number: int) -> None:
        """Make and write a shard.

        Raises:
            DataError: it cannot be written, or the teacher's frames do not fit or are not finite.
        """
        cuts = self.shards[number]
        left_out = {cut.id: cause for cut in cuts if (cause := self._cause(cut))}
        wanted = [cut for cut in cuts if cut.id not in left_out]
        found: dict[str, list[TeacherPath]] = {}
        for batch in _batches(self._features(wanted), self._production.batch_seconds):
            found.update(self._paths(batch))
        for cut in wanted:
            if cut.id not in found:
                left_out[cut.id] = UNREADABLE
            elif not found[cut.id]:
                del found[cut.id]
                left_out[cut.id] = "nothing recognised"
        ordered = {cut.id: found[cut.id] for cut in cuts if cut.id in found}
        write_shard(shard_path(self._folder, number), ordered, left_out)

    def _cause(self, cut: Cut) -> str:
        """Return why a cut can have no target, or an empty string."""
        if not MIN_SECONDS <= cut.duration <= self._production.max_seconds:
            return f"not of {MIN_SECONDS:g} to {self._production.max_seconds:g} s"
        if self._production.labels == "search":
            return ""
        has_text, text = any((s.text or "").strip() for s in cut.supervisions), cut_text(cut)
        if has_text and not text:
            return "a text without a letter"
        labels = self.teacher.tokens.encode(text)
        if fault := fault_of_text(cut, labels):
            return fault
        if FRAMES_PER_LABEL * len(labels) + 2 > cut.duration * FRAMES_PER_SECOND:
            return "more text than the audio can hold"
        return ""

    def _features(self, cuts: list[Cut]) -> list[tuple[Cut, FloatArray]]:
        """Return what the teacher reads of each cut, but for those that cannot be read."""
        if self._store:
            return [(cut, self._store.read(cut)) for cut in cuts]
        features = []
        for cut, samples in load_usable(cuts, Counter()):
            try:
                features.append((cut, self.teacher.front_end(samples)))
            except DataError as error:
                raise DataError(f"cut {cut.id}: {error}") from error
        return features

    def _paths(self, batch: list[tuple[Cut, FloatArray]]) -> dict[str, list[TeacherPath]]:
        projected, lengths = self.teacher.encode([features for _, features in batch])
        texts = ["" if self._production.labels == "search" else cut_text(cut) for cut, _ in batch]
        silent = [row for row, text in enumerate(texts) if not text]
        labels = [[tuple(self.teacher.tokens.encode(text))] for text in texts]
        if silent:
            for row, searched in zip(
                silent, self.teacher.search(projected[silent], lengths[silent]), strict=True
            ):
                labels[row] = [one for one in searched if one]
        return {
            cut.id: self._ordered_paths(cut, projected[row, : lengths[row]], labels[row])
            for row, (cut, _) in enumerate(batch)
        }

    def _ordered_paths(
        self, cut: Cut, projected: Tensor, hypotheses: list[tuple[int, ...]]
    ) -> list[TeacherPath]:
        if not projected.isfinite().all():
            raise DataError(f"cut {cut.id}: what the teacher makes of it is not finite. Name another one.")
        try:
            paths = [self.teacher.path(projected, labels) for labels in hypotheses]
        except DataError as error:
            raise DataError(f"cut {cut.id}: {error}") from error
        return sorted(paths, key=lambda path: -path.score)


class _RemoteMaker(ShardMaker):
    """Makes shards in an actor, whose errors would arrive as Ray's, without what they were."""

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Make shard ``job["number"]``; return the job with the seconds of audio, and what is wrong or ""."""
        try:
            return {**super().__call__(job), "error": ""}
        except DataError as error:
            return {**job, "seconds": 0.0, "error": str(error)}


def _batches(
    readable: list[tuple[Cut, FloatArray]], batch_seconds: float
) -> Iterator[list[tuple[Cut, FloatArray]]]:
    batch: list[tuple[Cut, FloatArray]] = []
    for cut, features in sorted(readable, key=lambda pair: len(pair[1])):
        if batch and cut.duration * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        batch.append((cut, features))
    if batch:
        yield batch


class Progress(NamedTuple):
    """How far a production is: seconds of audio in finished shards, and in all."""

    seconds: float
    total: float


def produce(
    production: Production,
    folder: Path,
    progress: Callable[[Progress], None] = lambda progress: None,
    actors: int = 0,
) -> TargetStore:
    """Make the targets of a manifest, those that are not there yet; what is left out is counted in the log.

    Args:
        production: of what.
        folder: of the store; an unfinished one in it is finished.
        progress: is told after each shard.
        actors: of Ray that share the work; 0 does without Ray.

    Raises:
        ConfigError: the teacher's parts or the source do not fit each other, or Ray is missing.
        DataError: the manifest is of no use, no cut gets a target, or the folder is of another production, in
            use, or cannot be written.
        ModelError: a file of the teacher cannot be read.
    """
    require(actors >= 0, "actors of 0 or more")
    if actors:
        with needs_extra("ray"):
            import_module("ray.data")
    maker = ShardMaker(production, folder)
    shards = maker.shards
    with alone_in(folder):
        write_description(production.describe(maker.teacher, shards), folder)
        seconds = [sum(cut.duration for cut in shard) for shard in shards]
        todo = [number for number in range(len(shards)) if not shard_path(folder, number).exists()]
        done = sum(seconds) - sum(seconds[number] for number in todo)
        progress(Progress(done, sum(seconds)))
        jobs = [{"number": number} for number in todo]
        for job in _on_ray(production, folder, jobs, actors) if actors else map(maker, jobs):
            done += job["seconds"]
            progress(Progress(done, sum(seconds)))
    store = TargetStore(folder)
    log_left_out(Counter(store.left_out.values()), sum(map(len, shards)))
    if not len(store):
        raise DataError(f"{folder}: not one of {len(store.left_out)} cuts got a target; the log says why.")
    return store


def _on_ray(
    production: Production, folder: Path, jobs: list[dict[str, Any]], actors: int
) -> Iterator[dict[str, Any]]:
    """Make shards by a pool of actors; paths must lead to the same files on every machine.

    Raises:
        DataError: as ``ShardMaker.make`` does.
    """
    import ray.data

    if not jobs:
        return
    made = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(
        _RemoteMaker,  # type: ignore[arg-type]  # a class, of which each actor makes one
        fn_constructor_args=(production, folder.resolve()),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if production.device.startswith("cuda") else 0,
    )
    for job in made.iter_rows():
        if job["error"]:
            raise DataError(job["error"])
        yield job
