"""Text for speech that has none: a large recogniser writes it, filters keep what it made up out.

Everything that the recogniser says is kept in a journal beside the manifest, one JSON object a line behind
one with the settings. A run that was stopped goes on there, and other filters need no second run.

Axis legend: S samples.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onebest.cuts import Cut
from onebest.errors import ConfigError, DataError
from onebest.frontend import FloatArray
from onebest.normalize import normalize_text
from onebest_training.speech import (
    alone_with,
    in_order,
    load_usable,
    log_left_out,
    make_folder,
    require_writable,
    writing,
)
from onebest_training.strict import from_dict, require

#: Whisper's window.
MAX_SECONDS = 30.0
#: Shorter audio holds no word.
MIN_SECONDS = 0.1
#: As many times in a row makes a phrase of up to so many words a loop.
_LOOP, _PHRASE = 4, 8
#: Ends of the names of manifests.
_MANIFESTS = (".jsonl", ".jsonl.gz")
#: Batches whose audio is sorted by length at a time.
_POOL_BATCHES = 10


@dataclass(frozen=True)
class Transcript:
    """What a recogniser made of one utterance.

    Attributes:
        text: as it came.
        avg_logprob: mean log-probability of a token.
        no_speech_prob: probability that nobody speaks.
    """

    text: str
    avg_logprob: float
    no_speech_prob: float

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text by bytes that zlib makes of them; repeats raise it."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data))


class Transcriber(Protocol):
    """Anything that writes down a batch of utterances; ``settings`` tells its journals apart."""

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values on which its output depends."""

    def __call__(self, utterances: list[FloatArray]) -> list[Transcript]:
        """Write down utterances, each [S] at 16 kHz."""


@dataclass(frozen=True)
class Filters:
    """What a transcript must pass to become a label; the first three are Whisper's own thresholds.

    Attributes:
        compression_ratio: at most; above it the text repeats itself.
        no_speech_prob: at most.
        avg_logprob: at least.
        characters_per_second: of normalised text, at least and at most.
    """

    compression_ratio: float = 2.4
    no_speech_prob: float = 0.6
    avg_logprob: float = -1.0
    characters_per_second: tuple[float, float] = (1.0, 25.0)

    def __post_init__(self) -> None:
        thresholds = self.compression_ratio, self.no_speech_prob, self.avg_logprob
        require(not any(map(math.isnan, thresholds)), "thresholds that are numbers")
        low, high = self.characters_per_second
        require(0 <= low < high, "characters_per_second from the fewest to the most")


def cause_to_leave_out(transcript: Transcript, seconds: float, filters: Filters) -> str:
    """Return why a transcript of so many seconds is no label, or an empty string."""
    text = normalize_text(transcript.text)
    slowest, fastest = filters.characters_per_second
    causes = {
        "no text": not text,
        "no speech": transcript.no_speech_prob > filters.no_speech_prob,
        "repeats": transcript.compression_ratio > filters.compression_ratio or _has_loop(text.split()),
        "improbable text": transcript.avg_logprob < filters.avg_logprob,
        "too few characters a second": len(text) < slowest * seconds,
        "too many characters a second": len(text) > fastest * seconds,
    }
    return next((cause for cause, applies in causes.items() if applies), "")


def _has_loop(words: list[str]) -> bool:
    return any(
        words[start : start + size] * _LOOP == words[start : start + size * _LOOP]
        for size in range(1, _PHRASE + 1)
        for start in range(len(words) - size * _LOOP + 1)
    )


class Journal:
    """The transcripts so far, by cut; a line that a kill cut short is taken off.

    Raises:
        DataError: the file is of other settings or damaged, or cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.transcripts: dict[str, Transcript] = {}
        header = {"settings": settings}
        lines = self._whole_lines()
        if not lines:
            self._append([header])
        elif lines[0] != header:
            raise DataError(
                f"{path} was begun with other settings: {json.dumps(lines[0])}. Give another output, or "
                "remove it to start anew."
            )
        try:
            for line in lines[1:]:
                name = line.pop("id")
                self.transcripts[name] = from_dict(Transcript, line, str(name))
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise DataError(f"{path}: damaged ({error}). Remove it to start anew.") from error

    def add(self, transcripts: dict[str, Transcript]) -> None:
        """Write transcripts down; they are safe when this returns."""
        self._append([{"id": name, **dataclasses.asdict(t)} for name, t in transcripts.items()])
        self.transcripts.update(transcripts)

    def _whole_lines(self) -> list[Any]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        with writing(self.path):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise DataError(f"{self.path}: damaged ({error}). Remove it to start anew.") from error

    def _append(self, rows: Iterable[Any]) -> None:
        with writing(self.path), open(self.path, "ab") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def label(
    cuts: Iterable[Cut],
    transcriber: Transcriber,
    output: Path,
    filters: Filters,
    progress: Callable[[float], None] = lambda seconds: None,
    batch_seconds: float = 120.0,
) -> int:
    """Write a lhotse manifest of the cuts that got a label; what is left out is counted in the log.

    A cut's text, if it has one, is replaced. Its ``custom`` gets what the recogniser said of its own text.

    Args:
        cuts: with or without text.
        transcriber: writes their text.
        output: the manifest; ``OUTPUT.journal`` beside it is what a stopped run goes on from.
        filters: keep made-up text out.
        progress: is told the seconds of audio that are done.
        batch_seconds: audio that is transcribed at a time.

    Returns:
        How many cuts got a label.

    Raises:
        ConfigError: the output is not named like a manifest, or batch_seconds is not above 0.
        DataError: a cut has no audio, the journal is of other settings, another process writes it, a file
            cannot be written, or no cut gets a label.
    """
    require(output.name.endswith(_MANIFESTS), f"{output} to end in {' or '.join(_MANIFESTS)}")
    require(batch_seconds > 0, f"batch_seconds above 0, not {batch_seconds}")
    ordered = in_order(cuts)
    make_folder(output.parent)
    require_writable(output)
    with alone_with(output):
        return _label(ordered, transcriber, output, filters, progress, batch_seconds)


def _label(
    ordered: list[Cut],
    transcriber: Transcriber,
    output: Path,
    filters: Filters,
    progress: Callable[[float], None],
    batch_seconds: float,
) -> int:
    from lhotse.cut.set import CutSet

    journal = Journal(output.with_name(output.name + ".journal"), transcriber.settings)
    left_out: Counter[str] = Counter()
    usable = [cut for cut in ordered if MIN_SECONDS <= cut.duration <= MAX_SECONDS]
    if len(usable) < len(ordered):
        left_out[f"not of {MIN_SECONDS:g} to {MAX_SECONDS:g} s"] = len(ordered) - len(usable)
    todo = [cut for cut in usable if cut.id not in journal.transcripts]
    progress(sum(cut.duration for cut in ordered) - sum(cut.duration for cut in todo))
    for batch in _batches(usable, journal, left_out, batch_seconds):
        found = transcriber([samples for _, samples in batch])
        heard = zip(batch, found, strict=True)
        new = [(cut, said) for (cut, _), said in heard if cut.id not in journal.transcripts]
        journal.add({cut.id: said for cut, said in new})
        progress(sum(cut.duration for cut, _ in new))
    labelled = [
        _labelled(cut, journal.transcripts[cut.id])
        for cut in usable
        if cut.id in journal.transcripts and not _left_out(cut, journal, filters, left_out)
    ]
    log_left_out(left_out, len(ordered))
    if not labelled:
        raise DataError(f"{output}: not one of {len(ordered)} cuts got a label; the log says why.")
    partial = output.with_name("partial-" + output.name)
    with writing(output):
        CutSet.from_cuts(labelled).to_file(partial)
        os.replace(partial, output)
    return len(labelled)


def _batches(
    cuts: list[Cut], journal: Journal, left_out: Counter[str], batch_seconds: float
) -> Iterator[list[tuple[Cut, FloatArray]]]:
    """Give the batches with a cut that the journal lacks, a pool of cuts at a time that share their decoding.

    What a recogniser says of a cut may depend on how long the others of its batch are. So the batches follow
    from the manifest alone, and one that is half done is heard again whole.
    """
    for pool in _fill(cuts, lambda pool: sum(cut.duration for cut in pool) > _POOL_BATCHES * batch_seconds):
        by_length = sorted(pool, key=lambda cut: float(cut.duration))
        batches = _fill(by_length, lambda batch: batch[-1].duration * len(batch) > batch_seconds)
        todo = [batch for batch in batches if any(cut.id not in journal.transcripts for cut in batch)]
        wanted = {cut.id for batch in todo for cut in batch}
        usable = load_usable([cut for cut in pool if cut.id in wanted], left_out)
        heard = {cut.id: (cut, samples) for cut, samples in usable}
        for batch in todo:
            readable = [heard[cut.id] for cut in batch if cut.id in heard]
            if any(cut.id not in journal.transcripts for cut, _ in readable):
                yield readable


def _fill(cuts: list[Cut], overflows: Callable[[list[Cut]], bool]) -> Iterator[list[Cut]]:
    """Give cuts in groups, each as large as can be, of one at least."""
    group: list[Cut] = []
    for cut in cuts:
        if group and overflows([*group, cut]):
            yield group
            group = []
        group.append(cut)
    if group:
        yield group


def _left_out(cut: Cut, journal: Journal, filters: Filters, left_out: Counter[str]) -> bool:
    cause = cause_to_leave_out(journal.transcripts[cut.id], cut.duration, filters)
    if cause:
        left_out[cause] += 1
    return bool(cause)


def _labelled(cut: Cut, transcript: Transcript) -> Cut:
    from lhotse.supervision import SupervisionSegment

    labelled, text = deepcopy(cut), normalize_text(transcript.text)
    speaker = (cut.custom or {}).get("speaker")
    segment = SupervisionSegment(cut.id, cut.recording.id, 0.0, cut.duration, text=text, speaker=speaker)
    labelled.supervisions = [segment]
    scores = {
        name: getattr(transcript, name) for name in ("avg_logprob", "no_speech_prob", "compression_ratio")
    }
    labelled.custom = {**(cut.custom or {}), **{name: round(value, 4) for name, value in scores.items()}}
    return labelled
