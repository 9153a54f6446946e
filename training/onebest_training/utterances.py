"""Utterances of feature stores, with what is said in them; what a run cannot use is counted in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onebest.cuts import Cut, spoken_text
from onebest.errors import DataError
from onebest.normalize import is_shortened
from onebest_training.config import DataConfig, SourceConfig, StageConfig
from onebest_training.features import FeatureStore, Layout
from onebest_training.speech import cut_text
from onebest_training.strict import require
from onebest_training.targets import TargetStore
from onebest_training.vocabulary import UNKNOWN, TextEncoder

log = logging.getLogger(__name__)
#: Utterances must have at least this many encoder frames a label, or no alignment exists.
FRAMES_PER_LABEL = 1.0
#: A teacher may have so many encoder frames more or fewer of a cut than its own store says.
_SPARE_FRAMES = 2
#: Kinds of labels for which no text is read, and none is missed.
_WITHOUT_TEXT = ("none", "silence")


@dataclass(frozen=True)
class Utterance:
    """A cut with where its features are, what is said, and where its cut in a teacher's store is."""

    cut: Cut
    store: FeatureStore
    text: str
    labels: tuple[int, ...]
    weight: float
    targets: TargetStore | None = None
    teacher: tuple[FeatureStore, Cut] | None = None


def load_utterances(
    store: FeatureStore, tokens: TextEncoder, max_seconds: float, source: SourceConfig | None = None
) -> list[Utterance]:
    """Return a store's usable utterances; what is left out is counted in the log by its cause.

    Args:
        store: features and cuts.
        tokens: turn text into labels.
        max_seconds: of the longest cut.
        source: weights, targets and whose labels; without one every cut counts once, with its own text.

    Raises:
        ConfigError: the targets are of another vocabulary.
        DataError: the targets are damaged, or a teacher's frames of a cut are not as many as its own.
    """
    source = source or SourceConfig("")
    targets = open_targets(source.targets, tokens)
    teacher = FeatureStore(Path(source.teacher_store)) if source.teacher_store else None
    teacher_cuts = {cut.id: (teacher, cut) for cut in teacher.cuts} if teacher else {}
    kept: list[Utterance] = []
    left_out: dict[str, int] = {}
    for cut in store.cuts:
        text, labels, cause = _reference(cut, tokens, targets, source.labels)
        weight = source.weights.get((cut.custom or {}).get("corpus", ""), source.default_weight)
        if targets is not None and cut.id not in targets:
            cause = "no target"
        elif not labels and source.labels not in _WITHOUT_TEXT:
            cause = cause or "no text"
        elif teacher and cut.id not in teacher_cuts:
            cause = "not in the teacher's store"
        cause = cause or _cause_to_leave_out(cut, labels, max_seconds, store.layout)
        if cause:
            left_out[cause] = left_out.get(cause, 0) + 1
        elif weight > 0:
            kept.append(Utterance(cut, store, text, labels, weight, targets, teacher_cuts.get(cut.id)))
            _check_lengths(kept[-1])
    for cause, count in left_out.items():
        log.warning("%d cuts left out: %s", count, cause)
    return kept


def open_targets(folder: str, tokens: TextEncoder) -> TargetStore | None:
    """Return a teacher's targets, or None without a folder.

    Raises:
        ConfigError: they are of another vocabulary.
        DataError: they are damaged or unfinished.
    """
    if not folder:
        return None
    targets = TargetStore(Path(folder))
    targets.check_tokens(tokens)
    return targets


def _reference(
    cut: Cut, tokens: TextEncoder, targets: TargetStore | None, whose: str
) -> tuple[str, tuple[int, ...], str]:
    """Return text and labels of a cut, and what is wrong with them or an empty string.

    They are the cut's own, or the teacher's where it has none or ``whose`` says so.
    """
    if whose in _WITHOUT_TEXT:
        return "", (), ""
    text = cut_text(cut)
    if targets is not None and cut.id in targets and (whose == "teacher" or not text):
        labels = targets.paths(cut.id)[0].reference
        return tokens.decode(list(labels)), labels, ""
    labels = tuple(tokens.encode(text))
    return text, labels, fault_of_text(cut, labels)


def fault_of_text(cut: Cut, labels: Sequence[int]) -> str:
    """Return what is said in a cut that its labels do not say, or an empty string."""
    if is_shortened(spoken_text(cut)):
        return "a text with digits, or with letters that are none of a to z"
    return "a text with letters that the vocabulary lacks" if UNKNOWN in labels else ""


def _check_lengths(utterance: Utterance) -> None:
    """Refuse what a teacher said of other audio under a cut's name, such as the same at another speed."""
    own = _frames_in(utterance.store, utterance.cut)
    found: dict[str, float] = {}
    if utterance.targets is not None and utterance.cut.id in utterance.targets:
        paths = utterance.targets.paths(utterance.cut.id)
        found[f"its target in {utterance.targets.folder}"] = paths[0].num_frames
    if utterance.teacher is not None:
        found["its cut in the teacher's store"] = _frames_in(*utterance.teacher)
    for name, frames in found.items():
        if abs(frames - own) > _SPARE_FRAMES:
            raise DataError(
                f"cut {utterance.cut.id} has {own:.0f} frames of 40 ms, but {name} has {frames:.0f}. Make "
                "both of the same audio at the same speed."
            )


def _frames_in(store: FeatureStore, cut: Cut) -> float:
    return float(cut.custom["num_frames"] / store.layout.subsampling)


def _cause_to_leave_out(cut: Cut, labels: Sequence[int], max_seconds: float, layout: Layout) -> str:
    if cut.duration > max_seconds:
        return f"longer than {max_seconds:g} s"
    if cut.custom["num_frames"] / layout.subsampling < FRAMES_PER_LABEL * len(labels) + 2:
        return "more text than the audio can hold"
    return ""


def load_training(config: DataConfig, tokens: TextEncoder) -> list[Utterance]:
    """Return the utterances of all stores of a run.

    Raises:
        DataError: nothing usable is left.
    """
    utterances = [
        utterance
        for source in config.train
        for utterance in load_utterances(FeatureStore(Path(source.store)), tokens, config.max_seconds, source)
    ]
    if not utterances:
        raise DataError("no utterance to train on is left; see the log for what was left out and why.")
    return utterances


def check_delays(stages: Sequence[StageConfig], utterances: Sequence[Utterance]) -> None:
    """Make sure that no stage wants its student later, or its window wider, than any utterance is long.

    Raises:
        ConfigError: one does.
    """
    longest = max(_frames_in(utterance.store, utterance.cut) for utterance in utterances)
    for stage in stages:
        late = max(stage.loss.shift, stage.loss.window, stage.loss.embedding_delay)
        bound = f"shift, window and embedding_delay below the {longest:.0f} frames of the longest utterance"
        require(late < longest, f"{bound}, not {late} as in stage {stage.name}")


def load_dev(config: DataConfig, tokens: TextEncoder) -> dict[str, list[Utterance]]:
    """Return the first ``dev_cuts`` utterances of each corpus of the dev store.

    Raises:
        DataError: nothing usable is in it, or a target is not as long as its cut.
    """
    corpora: dict[str, list[Utterance]] = {}
    targets = open_targets(config.dev_targets, tokens)
    for utterance in load_utterances(FeatureStore(Path(config.dev)), tokens, max_seconds=1e9):
        corpus = (utterance.cut.custom or {}).get("corpus", "dev")
        corpora.setdefault(corpus, []).append(replace(utterance, targets=targets))
        _check_lengths(corpora[corpus][-1])
    if not corpora:
        raise DataError(f"{config.dev}: no utterance to measure on. Expected cuts with text.")
    return {
        name: sorted(members, key=lambda u: u.cut.id)[: config.dev_cuts] for name, members in corpora.items()
    }
