"""``onebest evaluate``: a lhotse cut manifest -> the word error rate of each corpus in it."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from onebest.cli import Command
from onebest.commands.transcribe import add_model_arguments
from onebest.cuts import Cut, load_cuts, read_cuts, sort_cuts
from onebest.errors import DataError
from onebest.normalize import normalize_text
from onebest.recognizer import Recognizer
from onebest.terminal import LiveLine

OVERALL = "overall"


@dataclass(frozen=True)
class Decoded:
    """One cut: what was said, what was recognised (both normalised), and how long that took."""

    id: str
    corpus: str
    reference: str
    hypothesis: str
    duration: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """Errors summed over cuts.

    Attributes:
        wer: (insertions + deletions + substitutions) / words, in percent.
        real_time_factor: seconds of decoding for a second of audio.
    """

    cuts: int
    hours: float
    words: int
    insertions: int
    deletions: int
    substitutions: int
    wer: float
    real_time_factor: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("manifest", type=Path, help="lhotse cut manifest, or a folder like LibriSpeech's")
    add_model_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the scores and every transcript here")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N cuts only")
    parser.add_argument("--jobs", type=int, default=1, help="processes of a thread each (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Decode every cut, count the errors, print a table."""
    cuts = sort_cuts(islice(read_cuts(arguments.manifest), arguments.limit))
    if not cuts:
        raise DataError(f"{arguments.manifest}: no cut in it. Expected at least one with audio and text.")
    recognizer = partial(Recognizer, arguments.model, chunk_ms=arguments.chunk_ms)
    model = recognizer().bundle.name
    decoded: list[Decoded] = []
    with LiveLine(sys.stderr) as line:
        for result in _decode_all(cuts, recognizer, arguments.jobs):
            decoded.append(result)
            line.show(f"{len(decoded)} of {len(cuts)} cuts", len(decoded) / len(cuts))
    scores = score_corpora(decoded)
    print(format_table(scores))
    if arguments.json:
        content = {
            "manifest": str(arguments.manifest),
            "model": model,
            "chunk_ms": arguments.chunk_ms,
            "scores": {corpus: asdict(score) for corpus, score in scores.items()},
            "cuts": [asdict(cut) for cut in decoded],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def score_corpora(decoded: list[Decoded]) -> dict[str, Score]:
    """Return the score of each corpus by name, and of all cuts as ``overall``, which comes last."""
    names = sorted({cut.corpus for cut in decoded})
    scores = {name: _score([cut for cut in decoded if cut.corpus == name]) for name in names}
    return {**scores, OVERALL: _score(decoded)}


def _score(decoded: list[Decoded]) -> Score:
    from kaldialign import edit_distance

    distances = [edit_distance(cut.reference.split(), cut.hypothesis.split()) for cut in decoded]
    words = sum(len(cut.reference.split()) for cut in decoded)
    counts = {kind: int(sum(distance[kind] for distance in distances)) for kind in ("ins", "del", "sub")}
    audio, spent = sum(cut.duration for cut in decoded), sum(cut.seconds for cut in decoded)
    return Score(
        cuts=len(decoded),
        hours=audio / 3600,
        words=words,
        insertions=counts["ins"],
        deletions=counts["del"],
        substitutions=counts["sub"],
        wer=100 * sum(counts.values()) / max(words, 1),
        real_time_factor=spent / audio,
    )


def format_table(scores: dict[str, Score]) -> str:
    """Return the scores as lines of text."""
    width = max(len(name) for name in ("corpus", *scores))
    lines = [
        f"{'corpus':{width}}  {'cuts':>6}  {'hours':>6}  {'words':>7}  {'WER %':>6}"
        f"  {'ins':>5}  {'del':>5}  {'sub':>5}  {'RTF':>6}"
    ]
    lines += [
        f"{name:{width}}  {score.cuts:6}  {score.hours:6.2f}  {score.words:7}  {score.wer:6.2f}"
        f"  {score.insertions:5}  {score.deletions:5}  {score.substitutions:5}  {score.real_time_factor:6.3f}"
        for name, score in scores.items()
    ]
    return "\n".join(lines)


def _decode_all(cuts: list[Cut], recognizer: partial[Recognizer], jobs: int) -> Iterator[Decoded]:
    """Give every cut decoded, in order; the processes share the recordings out among them."""
    recordings = [list(group) for _, group in groupby(cuts, key=lambda cut: cut.recording.id)]
    if jobs == 1:
        made = recognizer()
        for group in recordings:
            yield from _decode_recording(made, group)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=_start_worker, initargs=(recognizer,)) as pool:
        for results in pool.imap(_decode_in_worker, recordings):
            yield from results


_worker: dict[str, Any] = {}


def _start_worker(recognizer: partial[Recognizer]) -> None:
    _worker["recognizer"] = recognizer()


def _decode_in_worker(cuts: list[Cut]) -> list[Decoded]:
    return list(_decode_recording(_worker["recognizer"], cuts))


def _decode_recording(recognizer: Recognizer, cuts: list[Cut]) -> Iterator[Decoded]:
    for cut, samples in load_cuts(cuts):
        start = time.perf_counter()
        hypothesis = recognizer.transcribe(samples).text
        seconds = time.perf_counter() - start
        reference = " ".join(segment.text or "" for segment in cut.supervisions)
        corpus = (cut.custom or {}).get("corpus", "unnamed")
        reference, hypothesis = normalize_text(reference), normalize_text(hypothesis)
        yield Decoded(cut.id, corpus, reference, hypothesis, cut.duration, seconds)


command = Command("measure the word error rate on a lhotse manifest", add_arguments, run)
