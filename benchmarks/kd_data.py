"""The data of the distillation table: one part with its text, and all else without."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from kd_recipes import DEV, TableConfig, Work

from onebest.cuts import Cut, read_cuts
from onebest.errors import DataError


class Inputs(NamedTuple):
    """What the table is made from.

    Attributes:
        train: manifest of speech with text, of which a part counts as labelled.
        unlabelled: manifest of speech without, or None.
        dev: manifest of what is measured on.
        texts: for the vocabulary and the language model, besides that of the labelled part.
        whisper: source of the teacher's pre-trained encoder, as ``onebest prepare`` knows it.
        encoder: first weights of the student, made by ``onebest convert-encoder``.
    """

    train: Path
    unlabelled: Path | None
    dev: Path
    texts: tuple[Path, ...]
    whisper: str
    encoder: Path


def split(train: list[Cut], unlabelled: list[Cut], table: TableConfig) -> tuple[list[Cut], list[Cut]]:
    """Return the labelled cuts, whole speakers up to their share of all audio, and all others without text.

    Raises:
        DataError: the corpus that is to be labelled is too small for its share.
    """
    train, unlabelled = (_of_corpora(cuts, table.corpora) for cuts in (train, unlabelled))
    wanted = table.labelled_share * sum(cut.duration for cut in (*train, *unlabelled))
    speakers: dict[str, list[Cut]] = {}
    for cut in train:
        if cut.custom["corpus"] == table.labelled_corpus:
            speakers.setdefault(cut.custom.get("speaker", cut.id), []).append(cut)
    order = sorted(speakers)
    random.Random(0).shuffle(order)
    labelled: list[Cut] = []
    while order and sum(cut.duration for cut in labelled) < wanted:
        labelled += speakers[order.pop()]
    if sum(cut.duration for cut in labelled) < wanted:
        raise DataError(
            f"{table.labelled_corpus} has less than {table.labelled_share:.0%} of all audio. "
            "Make labelled_share smaller."
        )
    taken = {cut.id for cut in labelled}
    rest = [cut for cut in (*train, *unlabelled) if cut.id not in taken]
    return labelled, [_without_text(cut) for cut in rest]


def _of_corpora(cuts: list[Cut], corpora: tuple[str, ...]) -> list[Cut]:
    return [cut for cut in cuts if cut.custom["corpus"] in corpora]


def _without_text(cut: Cut) -> Cut:
    cut.supervisions = []
    return cut


def write_manifests(inputs: Inputs, table: TableConfig, work: Work) -> None:
    """Write the manifests of the parts, once."""
    from lhotse.cut import CutSet

    if work.manifest(DEV).exists():
        return
    work.manifest(DEV).parent.mkdir(parents=True, exist_ok=True)
    unlabelled = list(read_cuts(inputs.unlabelled)) if inputs.unlabelled else []
    labelled, rest = split(list(read_cuts(inputs.train)), unlabelled, table)
    dev = _of_corpora(list(read_cuts(inputs.dev)), table.corpora)
    for part, cuts in {"labelled": labelled, "unlabelled": rest, DEV: dev}.items():
        CutSet.from_cuts(cuts).to_file(work.manifest(part))
