"""Targets of a manifest: what becomes of each cut, runs that were killed, and a Ray cluster."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from lhotse import CutSet
from runs import another_process_in
from tone_corpus import ToneCorpus

from onebest.cli import main
from onebest.cuts import read_cuts
from onebest.errors import ConfigError, DataError
from onebest_training.beam import SearchOptions
from onebest_training.features import SampleAugmentation, make_store
from onebest_training.language_model import LstmConfig, LstmLanguageModel, save_language_model
from onebest_training.produce import Production, Progress, produce
from onebest_training.targets import shard_path
from onebest_training.teacher import TargetOptions
from onebest_training.vocabulary import TextEncoder

SHARDS = 8


@pytest.fixture(scope="module")
def production(corpus: ToneCorpus, unbroken: Path) -> Production:
    """Shards of four cuts or so."""
    return Production(corpus.manifest, unbroken / "checkpoint.pt", TargetOptions(4), shard_seconds=5.0)


@pytest.fixture(scope="module")
def whole(production: Production, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store made in one go. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    produce(production, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed_manifest(corpus: ToneCorpus, folder: Path, texts: dict[int, str | None]) -> Path:
    """The corpus's manifest with other texts, None for no supervision at all."""
    cuts: list[Any] = list(read_cuts(corpus.manifest))
    for index, text in texts.items():
        if text is None:
            cuts[index].supervisions = []
        else:
            cuts[index].supervisions[0].text = text
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def test_text_is_what_the_path_says(corpus: ToneCorpus, production: Production, whole: Path) -> None:
    seen: list[Progress] = []
    store = produce(production, whole, seen.append)  # all of it is there already
    assert (len(store), store.left_out) == (48, {})
    tokens = TextEncoder(corpus.tokens.read_bytes())
    store.check_tokens(tokens)
    for cut in read_cuts(corpus.manifest):
        (path,) = store.paths(cut.id)
        assert tokens.decode(list(path.reference)) == cut.supervisions[0].text.lower()
        assert abs(path.num_frames - cut.duration * 25) <= 1
        assert path.top_ids.shape[1] == 4
    assert len(seen) == 1
    assert seen[0].seconds == pytest.approx(seen[0].total)
    assert len(list(whole.glob("shard-*.targets"))) > SHARDS


def test_a_store_of_features_does_as_well(
    corpus: ToneCorpus, production: Production, whole: Path, tmp_path: Path
) -> None:
    store = produce(replace(production, source=corpus.store), tmp_path / "store")
    by_audio = produce(production, whole)
    for cut in read_cuts(corpus.manifest):
        (one,), (other,) = store.paths(cut.id), by_audio.paths(cut.id)
        assert (one.reference, one.num_frames) == (other.reference, other.num_frames)
        assert one.score == pytest.approx(other.score, rel=0.02, abs=0.1)
    make_store(
        list(read_cuts(corpus.manifest))[:2], tmp_path / "s", SampleAugmentation(), front_end="samples"
    )
    for actors in (0, 2):
        with pytest.raises(ConfigError, match="made with --front-end 'samples'"):
            produce(replace(production, source=tmp_path / "s"), tmp_path / "refused", actors=actors)
    assert not (tmp_path / "refused").exists()


def test_without_text_the_search_decides(corpus: ToneCorpus, production: Production, tmp_path: Path) -> None:
    manifest = changed_manifest(corpus, tmp_path, {0: None, 1: " "})
    options = TargetOptions(4, hypotheses=3, search=SearchOptions(6))
    some = produce(replace(production, source=manifest, options=options), tmp_path / "some")
    every = produce(replace(production, options=options, labels="search"), tmp_path / "every")
    ids = [cut.id for cut in read_cuts(corpus.manifest)]
    for name in ids[:2]:
        paths = some.paths(name)
        assert 1 < len(paths) <= 3
        assert [path.score for path in paths] == sorted((path.score for path in paths), reverse=True)
        assert len({path.reference for path in paths}) == len(paths)
        assert [p.reference for p in every.paths(name)] == [p.reference for p in paths]
    assert len(some.paths(ids[2])) == 1


def test_a_language_model_steers_the_search(
    corpus: ToneCorpus, production: Production, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = LstmLanguageModel(LstmConfig(16, 8, 1))
    model.bias.data[3:8] -= 20.0
    save_language_model(model, TextEncoder(corpus.tokens.read_bytes()), tmp_path / "lm.pt")
    options = TargetOptions(4, search=SearchOptions(4, 1.0))
    steered = replace(production, options=options, language_model=tmp_path / "lm.pt", labels="search")
    store = produce(steered, tmp_path / "store")
    said = {
        label
        for cut in read_cuts(corpus.manifest)
        if cut.id in store
        for label in store.paths(cut.id)[0].reference
    }
    assert said
    assert not said & set(range(3, 8))


def test_what_has_no_target_is_counted_by_its_cause(
    corpus: ToneCorpus, production: Production, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = changed_manifest(corpus, tmp_path, {0: "abed " * 60, 1: "?!", 5: "bed 12", 6: "zebra"})
    cuts: list[Any] = list(read_cuts(manifest))
    missing = tmp_path / "missing.wav"
    soundfile.write(missing, cuts[2].load_audio()[0], 16000)
    cuts[2].recording.sources[0].source = str(missing)
    missing.unlink()
    cuts[3].duration = 40.0
    cuts[4].duration += 1.0
    CutSet.from_cuts(cuts).to_file(manifest)
    with caplog.at_level(logging.WARNING):
        store = produce(replace(production, source=manifest), tmp_path / "store")
    assert len(store) == 41
    messages = [record.getMessage() for record in caplog.records]
    assert messages[-6:] == [
        "1 of 48 cuts left out: a text with digits, or with letters that are none of a to z",
        "1 of 48 cuts left out: a text with letters that the vocabulary lacks",
        "1 of 48 cuts left out: a text without a letter",
        "2 of 48 cuts left out: audio that cannot be read",
        "1 of 48 cuts left out: more text than the audio can hold",
        "1 of 48 cuts left out: not of 0.1 to 30 s",
    ]
    assert any(f"{missing}: cannot be read" in message for message in messages)
    with pytest.raises(DataError, match="a text without a letter"):
        store.paths(cuts[1].id)


def test_another_production_is_not_mixed_in(production: Production, whole: Path) -> None:
    with pytest.raises(DataError, match="begun with other settings"):
        produce(replace(production, labels="search"), whole)
    with pytest.raises(ConfigError, match="labels to be one of text, search"):
        replace(production, labels="none")


def test_an_empty_manifest_is_refused(production: Production, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty.jsonl"):
        produce(replace(production, source=tmp_path / "empty.jsonl"), tmp_path / "store")


def test_a_full_disk_stops_the_run_and_loses_nothing(
    production: Production, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_after_five(source: Path, target: Path) -> None:
        if sum(path.name.startswith("shard") for path in tmp_path.iterdir()) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("onebest_training.speech.os.replace", full_after_five)
        with pytest.raises(DataError, match=r"shard-0000\d.targets: cannot be written \(No space left"):
            produce(production, tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*.targets")}
    assert len(made) == 5
    produce(production, tmp_path)
    assert contents(tmp_path) == contents(whole)
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())


def command(production: Production, folder: Path) -> list[str]:
    options = ["--kept", "4", "--shard-seconds", "5", "--threads", "1"]
    return ["targets", str(production.source), str(folder), "--teacher", str(production.teacher), *options]


def test_a_killed_command_goes_on_to_the_same_bytes(
    production: Production, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "store"
    code = "import sys; from onebest.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, *command(production, folder)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not shard_path(folder, 2).exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    made = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.targets")}
    assert 3 <= len(made) < len(contents(whole)) - 1
    assert main(command(production, folder)) == 0
    assert "48 cuts with targets, 0 without" in capsys.readouterr().out
    after = contents(folder)
    assert {name: data for name, data in after.items() if not name.endswith(".partial")} == contents(whole)
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "-1"], "threads of 0 or more, not -1"),
        (["--ray-actors", "-1"], "actors of 0 or more"),
        (["--device", "tpu"], "device 'tpu': expected cpu, cuda or cuda:N"),
        (["--shard-seconds", "nan"], "seconds above 0"),
        (["--batch-seconds", "nan"], "seconds above 0"),
        (["--language-model-weight", "inf"], "a language_model_weight of 0 or more"),
    ],
)
def test_impossible_options_are_refused(
    production: Production,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert main([*command(production, tmp_path / "store"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("labels", ["text", "search"])
def test_a_teacher_that_gives_no_numbers_is_refused_at_the_first_cut(
    production: Production, tmp_path: Path, labels: str
) -> None:
    teacher = torch.load(production.teacher, weights_only=True)
    teacher["average"]["encoder.stem.conv1.bias"].fill_(1e30)  # finite, but not what it makes of speech
    teacher["average"]["encoder.stem.conv2.weight"].fill_(1e30)
    torch.save(teacher, tmp_path / "teacher.pt")
    damaged = replace(production, teacher=tmp_path / "teacher.pt", labels=labels)
    with pytest.raises(DataError, match=r"cut train-\d+: what the teacher makes of it is not finite"):
        produce(damaged, tmp_path / "store")


def test_targets_of_no_cut_are_an_error(corpus: ToneCorpus, production: Production, tmp_path: Path) -> None:
    manifest = changed_manifest(corpus, tmp_path, dict.fromkeys(range(48), "1984!"))
    with pytest.raises(DataError, match="not one of 48 cuts got a target"):
        produce(replace(production, source=manifest), tmp_path / "store")


def test_two_processes_do_not_make_targets_in_one_folder(
    production: Production, whole: Path, tmp_path: Path
) -> None:
    with another_process_in(tmp_path):
        with pytest.raises(DataError, match="another process writes it"):
            produce(production, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    produce(production, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_samples_that_are_no_numbers_are_left_out(
    corpus: ToneCorpus, production: Production, tmp_path: Path
) -> None:
    cuts: list[Any] = list(read_cuts(corpus.manifest))[:2]
    samples = cuts[0].load_audio()[0]
    samples[700] = float("nan")
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    cuts[0].recording.sources[0].source = str(tmp_path / "nan.wav")
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    store = produce(replace(production, source=tmp_path / "cuts.jsonl.gz"), tmp_path / "store")
    assert store.left_out == {cuts[0].id: "audio that cannot be read"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_workers_of_ray_make_the_same_bytes(
    production: Production, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_worker_niceness", "0")  # or whatever else runs here comes first
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        seen: list[Progress] = []
        produce(production, tmp_path / "store", seen.append, actors=2)
        (tmp_path / "blocked" / f"{shard_path(tmp_path, 0).name}.partial").mkdir(parents=True)
        with pytest.raises(DataError, match=r"shard-00000\.targets: cannot be written"):
            produce(production, tmp_path / "blocked", actors=1)
    finally:
        ray.shutdown()
    assert contents(tmp_path / "store") == contents(whole)
    assert len(seen) == len(contents(whole))
    assert seen[-1].seconds == pytest.approx(seen[-1].total)
