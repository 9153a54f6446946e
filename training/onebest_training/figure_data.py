"""What figures are drawn from: a checkpoint's view of an utterance, and what runs and tables measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from onebest.errors import DataError
from onebest_training.batches import pad_batch
from onebest_training.checkpoint import load_model
from onebest_training.decode import TAIL_FRAMES
from onebest_training.features import FeatureStore
from onebest_training.figures import DelayPoint, LatticeView, short_names
from onebest_training.lattice import occupancies, viterbi
from onebest_training.references import LatticeNodes, references_of
from onebest_training.runlog import corpus_and_chunk, read_rows
from onebest_training.speech import cut_text
from onebest_training.targets import BLANK, TargetStore, TeacherPath
from onebest_training.utterances import Utterance

LEFT_FRAMES = 128


@torch.inference_mode()
def view_lattice(
    checkpoint: Path, store: Path, cut_id: str, targets: Path | None = None, chunk: int = 0
) -> LatticeView:
    """Compute the whole lattice of a cut, and its best path, with a checkpoint's averaged model.

    The labels are those of the teacher's best path, or without targets those of the cut's own text.

    Args:
        checkpoint: of the student.
        store: features of the cut.
        cut_id: names it.
        targets: a teacher's.
        chunk: frames a chunk; 0 for full context.

    Raises:
        DataError: there is no such cut, it has no target or no labels, or too many for its frames.
        ConfigError: the targets are of another vocabulary, or the store is of another front end.
        ModelError: the checkpoint cannot be read.
    """
    model, tokens, saved = load_model(checkpoint)
    features = FeatureStore(store)
    features.check_front_end(model.config.encoder, saved.front_end)
    cut = next((cut for cut in features.cuts if cut.id == cut_id), None)
    if cut is None:
        raise DataError(f"{store}: no cut {cut_id}. The first one there is {features.cuts[0].id}.")
    path = None
    if targets is not None:
        teacher = TargetStore(targets)
        teacher.check_tokens(tokens)
        path = teacher.paths(cut_id)[0]
    text = cut_text(cut)
    labels = tuple(tokens.encode(text)) if path is None else path.reference
    batch = pad_batch([features.read(cut)], [TAIL_FRAMES], [Utterance(cut, features, text, labels, 1.0)])
    references = references_of(batch)
    if not int(references.label_lengths[0]):
        raise DataError(f"cut {cut_id}: no labels, or too many for its {int(batch.frame_lengths[0])} frames.")
    encoded = model.encoder(batch.features, batch.frame_lengths, chunk, LEFT_FRAMES)
    nodes = LatticeNodes(references, 0, None, encoded.shape[1])
    blank, label = nodes.planes(nodes.logits(model, model.projection(encoded)))
    planes = blank, label[:, :, :-1], references.frame_lengths, references.label_lengths
    by_blank, by_label = occupancies(*planes)
    by_blank[:, :, :-1] += by_label
    student = viterbi(*planes)[0].tolist()
    pieces = tuple(tokens.pieces()[label] for label in labels)
    return LatticeView(cut_id, pieces, by_blank[0].numpy(), tuple(student), _emissions(path))


def _emissions(path: TeacherPath | None) -> tuple[int, ...] | None:
    return None if path is None else tuple(path.frames[path.tokens != BLANK].tolist())


def read_delays(sources: list[Path], corpora: list[str]) -> list[DelayPoint]:
    """Return what runs measured last, and every row of tables.

    Args:
        sources: folders of runs or their log.jsonl, and kd_table.json files.
        corpora: those wanted; all if there are none.

    Raises:
        DataError: a source cannot be read, or nothing in them has both an error rate and a delay.
    """
    points: list[DelayPoint] = []
    runs = [path for path in sources if path.suffix != ".json"]
    for name, run in zip(short_names(runs), runs, strict=True):
        points += _points_of_run(name, run)
    for path in (path for path in sources if path.suffix == ".json"):
        points += _points_of_table(path)
    kept = [point for point in points if not corpora or point.corpus in corpora]
    if not kept:
        known = ", ".join(sorted({point.corpus for point in points})) or "none"
        raise DataError(f"no error rate with an emission delay to draw. Corpora with both: {known}.")
    return kept


def _points_of_run(name: str, run: Path) -> list[DelayPoint]:
    last: dict[str, Any] = {}
    for row in read_rows(run):
        last.update(row)
    points = []
    for key in (key for key in last if key.startswith("wer/")):
        corpus, chunk = corpus_and_chunk(key)
        delays = [last.get(f"emission_delay_{part}_ms/{corpus}/{chunk}") for part in ("p50", "p90")]
        latency = f"{40 * chunk} ms" if chunk else "offline"
        if delays[0] is not None and delays[1] is not None:
            points.append(DelayPoint(f"{name}, {latency}", corpus, last[key], delays[0], delays[1]))
    return points


def _points_of_table(path: Path) -> list[DelayPoint]:
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        return [
            DelayPoint(row["name"], corpus, wer, delay["p50"], delay["p90"])
            for row in rows
            if (delay := row["emission_delay_ms"])
            for corpus, wer in row["wer"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a table as benchmarks/kd_table.py writes it ({error}).") from error
