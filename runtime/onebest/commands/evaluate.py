"""``onebest evaluate``: a lhotse cut manifest -> word error rate and emission delay of each corpus in it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from onebest.cli import Command
from onebest.commands.transcribe import add_model_arguments, add_search_arguments, recognizer_options
from onebest.cuts import Cut, FloatArray, load_cuts, read_cuts, sort_cuts, spoken_text
from onebest.delay import (
    DELAY_HEADING,
    TimedToken,
    format_delay,
    matched_delays,
    summarize,
    timed_tokens,
)
from onebest.errors import ConfigError, DataError, ModelError
from onebest.normalize import is_shortened, normalize_text
from onebest.processes import map_in_processes
from onebest.recognizer import Recognizer
from onebest.targets import TargetStore
from onebest.terminal import LiveLine

OVERALL = "overall"
#: A chunk that holds any utterance whole; of longer audio the best there is.
FULL_CONTEXT_MS = 40_000


@dataclass(frozen=True)
class Decoded:
    """One cut: what was said, what was recognised (both normalised), and how long that took.

    ``delays`` has for each token recognised right how many encoder frames later it came than it was due.
    """

    id: str
    corpus: str
    reference: str
    hypothesis: str
    duration: float
    seconds: float
    delays: tuple[int, ...] = ()


@dataclass(frozen=True)
class Score:
    """Errors summed over cuts.

    Attributes:
        wer: (insertions + deletions + substitutions) / words, in percent.
        real_time_factor: seconds of decoding for a second of audio.
        emission_delay_ms: mean, p50 and p90 over the tokens; None where it was not measured.
    """

    cuts: int
    hours: float
    words: int
    insertions: int
    deletions: int
    substitutions: int
    wer: float
    real_time_factor: float
    emission_delay_ms: dict[str, float] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("manifest", type=Path, help="lhotse cut manifest, or a folder like LibriSpeech's")
    add_model_arguments(parser)
    add_search_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the scores and every transcript here")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N cuts only")
    parser.add_argument("--jobs", type=int, default=1, help="processes of a thread each (default: 1)")
    due = parser.add_mutually_exclusive_group()
    due.add_argument(
        "--targets",
        type=Path,
        metavar="FOLDER",
        help="when tokens are due: in a teacher's paths, from onebest targets (default: when the model "
        "itself has them at full context)",
    )
    due.add_argument("--no-delay", action="store_true", help="spare the pass at full context")


def run(arguments: argparse.Namespace) -> int:
    """Decode every cut, count the errors, print a table."""
    for option, number in (("--jobs", arguments.jobs), ("--limit", arguments.limit)):
        if number is not None and number < 1:
            raise ConfigError(f"{option} is {number}. It must be 1 or more.")
    if arguments.json:
        _make_writable(arguments.json)
    cuts = sort_cuts(islice(read_cuts(arguments.manifest), arguments.limit))
    if not any(normalize_text(spoken_text(cut)) for cut in cuts):
        raise DataError(
            f"{arguments.manifest}: no text in it. Expected at least one cut with audio and text."
        )
    if shortened := sum(is_shortened(spoken_text(cut)) for cut in cuts):
        print(
            f"{shortened} of {len(cuts)} texts have digits or letters beyond a to z, which are not compared: "
            "what is said there counts as an error. Spell them out.",
            file=sys.stderr,
        )
    make = partial(
        Decoder,
        arguments.model,
        recognizer_options(arguments),
        arguments.hotword,
        not arguments.no_delay,
        arguments.targets,
    )
    decoder = make()
    decoded: list[Decoded] = []
    with LiveLine(sys.stderr) as line:
        for result in _decode_all(cuts, decoder if arguments.jobs == 1 else make, arguments.jobs):
            decoded.append(result)
            line.show(f"{len(decoded)} of {len(cuts)} cuts", len(decoded) / len(cuts))
    scores = score_corpora(decoded)
    print(format_table(scores))
    if arguments.json:
        content = {
            "manifest": str(arguments.manifest),
            "model": decoder.recognizer.bundle.name,
            **recognizer_options(arguments),
            "hotwords": arguments.hotword,
            "due": decoder.due_by,
            "scores": {corpus: asdict(score) for corpus, score in scores.items()},
            "cuts": [asdict(cut) for cut in decoded],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _make_writable(path: Path) -> None:
    """Find out that a file can be written, before there is something to write; none is left behind.

    Raises:
        ConfigError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}). Name another file with --json.") from error


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
    delay = summarize(list(chain(*(cut.delays for cut in decoded))))
    return Score(
        cuts=len(decoded),
        hours=audio / 3600,
        words=words,
        insertions=counts["ins"],
        deletions=counts["del"],
        substitutions=counts["sub"],
        wer=100 * sum(counts.values()) / max(words, 1),
        real_time_factor=spent / audio,
        emission_delay_ms=delay and delay.to_dict(),
    )


def format_table(scores: dict[str, Score]) -> str:
    """Return the scores as lines of text; the emission delay's mean, median and 90th percentile in ms."""
    width = max(len(name) for name in ("corpus", *scores))
    has_delay = any(score.emission_delay_ms for score in scores.values())
    lines = [
        f"{'corpus':{width}}  {'cuts':>6}  {'hours':>6}  {'words':>7}  {'WER %':>6}"
        f"  {'ins':>5}  {'del':>5}  {'sub':>5}  {'RTF':>6}" + (DELAY_HEADING if has_delay else "")
    ]
    lines += [
        f"{name:{width}}  {score.cuts:6}  {score.hours:6.2f}  {score.words:7}  {score.wer:6.2f}"
        f"  {score.insertions:5}  {score.deletions:5}  {score.substitutions:5}  {score.real_time_factor:6.3f}"
        + (format_delay(score.emission_delay_ms) if has_delay else "")
        for name, score in scores.items()
    ]
    return "\n".join(lines)


class Decoder:
    """Decodes cuts, and tells how late their tokens came; each process has one.

    Args:
        model: of the recognizer.
        options: the recognizer's others.
        hotwords: that every cut expects.
        measures_delay: whether to tell that, where the model allows it.
        targets: folder with a teacher's paths, or None for the model's own tokens at full context.

    Attributes:
        recognizer: what is measured.
        due_by: "targets", "full context", or None where no delay is measured.

    Raises:
        ConfigError: the targets are of another vocabulary, or the model cannot write a hotword.
        DataError: the targets are damaged or unfinished.
        ModelError: as ``Recognizer`` does.
    """

    def __init__(
        self,
        model: Path | None,
        options: dict[str, Any],
        hotwords: Sequence[str] = (),
        measures_delay: bool = False,
        targets: Path | None = None,
    ):
        self.recognizer = Recognizer(model, **options)
        self.recognizer.stream(hotwords=hotwords)  # no cut is read before the model can write them
        self._hotwords = hotwords
        self.due_by: str | None = None
        vocabulary = self.recognizer.bundle.vocabulary
        self._ids = {vocabulary.spell(token): token for token in range(len(vocabulary))}
        self._targets = self._whole = None
        if targets:
            self._targets, self.due_by = TargetStore(targets), "targets"
            size = self._targets.description.vocabulary_size
            if size != len(vocabulary):
                raise ConfigError(
                    f"{targets}: made with {size} tokens, the model has {len(vocabulary)}. Name targets of a "
                    "teacher with the model's vocabulary."
                )
        elif measures_delay:
            with contextlib.suppress(ModelError):  # one exported for a single chunk length
                whole = {**options, "chunk_ms": FULL_CONTEXT_MS}
                self._whole = Recognizer(self.recognizer.bundle, **whole)
                self.due_by = "full context"

    def __call__(self, cuts: list[Cut]) -> Iterator[Decoded]:
        """Give the cuts of one recording decoded."""
        for cut, samples in load_cuts(cuts):
            start = time.perf_counter()
            result = self.recognizer.transcribe(samples, hotwords=self._hotwords)
            hypothesis = result.text
            seconds = time.perf_counter() - start
            corpus = (cut.custom or {}).get("corpus", "unnamed")
            reference, hypothesis = normalize_text(spoken_text(cut)), normalize_text(hypothesis)
            delays = (
                matched_delays(self._due(cut, samples), timed_tokens(result.tokens, self._ids))
                if self.due_by
                else ()
            )
            yield Decoded(cut.id, corpus, reference, hypothesis, cut.duration, seconds, tuple(delays))

    def _due(self, cut: Cut, samples: FloatArray) -> list[TimedToken]:
        """Return when the tokens of a cut are due; none if nobody has said."""
        if self._targets:
            return self._targets.paths(cut.id)[0].emissions if cut.id in self._targets else []
        if self._whole is None:
            return []
        return timed_tokens(self._whole.transcribe(samples, hotwords=self._hotwords).tokens, self._ids)


def _decode_all(cuts: list[Cut], decoder: Decoder | partial[Decoder], jobs: int) -> Iterator[Decoded]:
    """Give every cut decoded, in order; the processes share the recordings out among them."""
    recordings = [list(group) for _, group in groupby(cuts, key=lambda cut: cut.recording.id)]
    if isinstance(decoder, Decoder):
        for group in recordings:
            yield from decoder(group)
        return
    for results in map_in_processes(_decode_in_worker, recordings, jobs, partial(_start_worker, decoder)):
        yield from results


_worker: dict[str, Decoder] = {}


def _start_worker(make: partial[Decoder]) -> None:
    _worker["decoder"] = make()


def _decode_in_worker(cuts: list[Cut]) -> list[Decoded]:
    return list(_worker["decoder"](cuts))


command = Command("measure word error rate and emission delay on a lhotse manifest", add_arguments, run)
