"""Pseudo-labels: the filters, the journal that a stopped run goes on from, and the manifest."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
from lhotse import CutSet
from runs import another_process_with
from tone_corpus import ToneCorpus

from onebest.cuts import read_cuts
from onebest.errors import ConfigError, DataError
from onebest.frontend import FloatArray
from onebest_training.pseudo import Filters, Journal, Transcript, cause_to_leave_out, label

GOOD = Transcript("Well, it's good.", -0.3, 0.01)


class Parrot:
    """Says how much it heard, and stops after some batches if told so."""

    def __init__(self, batches: int = 1000, settings: str = "a"):
        self.left, self.heard, self.settings = batches, 0, {"model": settings}

    def __call__(self, utterances: list[FloatArray]) -> list[Transcript]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.heard += len(utterances)
        return [Transcript(f"I heard {len(samples)} — samples!", -0.2, 0.0) for samples in utterances]


@pytest.mark.parametrize(
    ("transcript", "cause"),
    [
        (GOOD, ""),
        (Transcript(" ... 42 !", -0.3, 0.01), "no text"),
        (Transcript("thank you", -0.3, 0.9), "no speech"),
        (Transcript("a dog ran " * 12, -0.3, 0.01), "repeats"),
        (Transcript("so and so and so and so and", -0.3, 0.01), "repeats"),
        (Transcript("thank you", -1.4, 0.01), "improbable text"),
        (Transcript("a", -0.3, 0.01), "too few characters a second"),
        (
            Transcript("the quick brown fox jumps over a dog or two of them", -0.3, 0.01),
            "too many characters a second",
        ),
    ],
)
def test_what_was_made_up_is_told_by_its_cause(transcript: Transcript, cause: str) -> None:
    assert cause_to_leave_out(transcript, 2.0, Filters()) == cause


def test_filters_are_checked() -> None:
    with pytest.raises(ConfigError, match="fewest to the most"):
        Filters(characters_per_second=(3.0, 2.0))
    with pytest.raises(ConfigError, match="thresholds that are numbers"):
        Filters(avg_logprob=float("nan"))


def test_cuts_get_normalised_text_and_what_was_said_of_it(corpus: ToneCorpus, tmp_path: Path) -> None:
    output, parrot = tmp_path / "new" / "labelled.jsonl.gz", Parrot()
    done: list[float] = []
    assert label(read_cuts(corpus.manifest), parrot, output, Filters(), done.append, 6.0) == 48
    before = {cut.id: cut for cut in read_cuts(corpus.manifest)}
    after = list(read_cuts(output))
    assert sum(done) == pytest.approx(sum(cut.duration for cut in before.values()))
    assert {cut.id for cut in after} == before.keys()
    for cut in after:
        assert cut.supervisions[0].text == "i heard samples"
        assert cut.custom["corpus"] == before[cut.id].custom["corpus"]
        assert (cut.custom["avg_logprob"], cut.custom["no_speech_prob"]) == (-0.2, 0.0)
        assert cut.custom["compression_ratio"] > 0
        assert cut.load_audio().shape == before[cut.id].load_audio().shape


class Company(Parrot):
    """A parrot whose score of a cut depends on the longest one of its batch."""

    def __call__(self, utterances: list[FloatArray]) -> list[Transcript]:
        longest = max(map(len, utterances))
        return [replace(said, avg_logprob=-longest / 1e6) for said in super().__call__(utterances)]


def test_a_stopped_run_goes_on_to_the_same_and_redoes_one_batch(corpus: ToneCorpus, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    label(read_cuts(corpus.manifest), Company(), whole, Filters(), batch_seconds=6.0)
    first, second = Company(batches=3), Company()
    with pytest.raises(KeyboardInterrupt):
        label(read_cuts(corpus.manifest), first, broken, Filters(), batch_seconds=6.0)
    journal = tmp_path / "broken.jsonl.journal"
    assert not broken.exists()
    journal.write_bytes(journal.read_bytes()[:-5])  # a line cut short, whose batch is heard again
    done: list[float] = []
    label(read_cuts(corpus.manifest), second, broken, Filters(), done.append, batch_seconds=6.0)
    assert first.heard > 3
    assert 48 < first.heard + second.heard < 48 + first.heard
    assert sum(done) == pytest.approx(sum(cut.duration for cut in read_cuts(corpus.manifest)))
    assert broken.read_bytes() == whole.read_bytes()


def test_other_filters_need_no_second_run(corpus: ToneCorpus, tmp_path: Path) -> None:
    output, parrot = tmp_path / "labelled.jsonl.gz", Parrot()
    label(read_cuts(corpus.manifest), parrot, output, Filters())
    with pytest.raises(DataError, match="not one of 48 cuts got a label"):
        label(read_cuts(corpus.manifest), parrot, output, Filters(avg_logprob=-0.1))
    assert parrot.heard == 48


def test_another_model_is_not_mixed_in(corpus: ToneCorpus, tmp_path: Path) -> None:
    output = tmp_path / "labelled.jsonl.gz"
    label(read_cuts(corpus.manifest), Parrot(), output, Filters())
    with pytest.raises(DataError, match="begun with other settings"):
        label(read_cuts(corpus.manifest), Parrot(settings="b"), output, Filters())


@pytest.mark.parametrize("name", ["labelled", "labelled.txt", "labelled.jsonl.zip"])
def test_a_manifest_that_could_not_be_written_is_refused_before_anything_is_heard(
    name: str, corpus: ToneCorpus, tmp_path: Path
) -> None:
    parrot = Parrot()
    with pytest.raises(ConfigError, match=rf"{name} to end in .jsonl or .jsonl.gz"):
        label(read_cuts(corpus.manifest), parrot, tmp_path / name, Filters())
    with pytest.raises(ConfigError, match="batch_seconds above 0"):
        label(read_cuts(corpus.manifest), parrot, tmp_path / "a.jsonl", Filters(), batch_seconds=0.0)
    assert (parrot.heard, list(tmp_path.iterdir())) == (0, [])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder.jsonl is a folder"):
        label(read_cuts(corpus.manifest), parrot, tmp_path / "folder.jsonl", Filters())
    assert parrot.heard == 0


def test_two_processes_do_not_write_one_manifest(corpus: ToneCorpus, tmp_path: Path) -> None:
    output, parrot = tmp_path / "labelled.jsonl.gz", Parrot()
    with another_process_with(output), pytest.raises(DataError, match="another process writes it"):
        label(read_cuts(corpus.manifest), parrot, output, Filters())
    assert parrot.heard == 0
    assert label(read_cuts(corpus.manifest), parrot, output, Filters()) == 48
    assert {path.name for path in tmp_path.iterdir()} == {output.name, f"{output.name}.journal"}


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    mistyped = {"id": "a", "text": None, "avg_logprob": -0.1, "no_speech_prob": 0.0}
    for line in (
        json.dumps({"settings": {}}) + f"\n{json.dumps(mistyped)}\n",
        "no json\n",
        json.dumps({"settings": {}}) + '\n{"id": "a", "words": 3}\n',
    ):
        path.write_text(line)
        with pytest.raises(DataError, match="journal: damaged"):
            Journal(path, {})


def test_what_is_left_out_is_counted(
    corpus: ToneCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuts: list[Any] = list(read_cuts(corpus.manifest))
    missing = tmp_path / "missing.wav"
    soundfile.write(missing, cuts[0].load_audio()[0], 16000)
    cuts[0] = CutSet.from_cuts(cuts[:1]).to_eager()[0]
    cuts[0].recording.sources[0].source = str(missing)
    missing.unlink()
    cuts[1].start, cuts[1].duration = 0.0, 31.0
    cuts[2].duration += 5.0
    with caplog.at_level(logging.WARNING):
        assert label(cuts, Parrot(), tmp_path / "labelled.jsonl.gz", Filters()) == 45
    messages = [record.getMessage() for record in caplog.records]
    assert sum(f"cut {cuts[0].id} left out: {missing}: cannot be read" in m for m in messages) == 1
    assert sum(f"cut {cuts[2].id} left out: cut {cuts[2].id} ends at" in m for m in messages) == 1
    assert messages[-2:] == [
        "2 of 48 cuts left out: audio that cannot be read",
        "1 of 48 cuts left out: not of 0.1 to 30 s",
    ]


def test_cuts_without_audio_or_name_are_refused(corpus: ToneCorpus, tmp_path: Path) -> None:
    cuts: list[Any] = list(read_cuts(corpus.manifest))
    with pytest.raises(DataError, match=f"{cuts[0].id} is there twice"):
        label([*cuts, cuts[0]], Parrot(), tmp_path / "a.jsonl", Filters())
    cuts[3].recording = None
    with pytest.raises(DataError, match=f"{cuts[3].id} has no recording"):
        label(cuts, Parrot(), tmp_path / "a.jsonl", Filters())


def test_a_full_disk_is_named_and_what_was_done_is_kept(
    corpus: ToneCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    output, parrot = tmp_path / "labelled.jsonl.gz", Parrot()
    with monkeypatch.context() as patch:
        patch.setattr("onebest_training.pseudo.os.replace", full)
        with pytest.raises(DataError, match=r"labelled.jsonl.gz: cannot be written \(No space left"):
            label(read_cuts(corpus.manifest), parrot, output, Filters())
    assert label(read_cuts(corpus.manifest), parrot, output, Filters()) == 48
    assert parrot.heard == 48
