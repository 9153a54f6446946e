"""``onebest evaluate-checkpoint``: what it measures is what the searches of targets and training find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kaldialign import edit_distance
from target_paths import make_path, random_log_probs
from target_stores import write_targets
from tone_corpus import PIECES, ToneCorpus, make_stage, make_talkative_run, tiny_config

from onebest.cli import main
from onebest_training.beam import SearchOptions, beam_search
from onebest_training.checkpoint import load_model
from onebest_training.decode import dev_batches, measure
from onebest_training.features import FeatureStore
from onebest_training.fusion import FusionWeights, with_language_model
from onebest_training.language_model import (
    ContextConfig,
    ContextLanguageModel,
    LstmConfig,
    LstmLanguageModel,
    load_language_model,
    save_language_model,
)
from onebest_training.trainer import Trainer
from onebest_training.utterances import load_utterances
from onebest_training.vocabulary import TextEncoder, train_vocabulary

Row = dict[str, Any]


@pytest.fixture(scope="module")
def checkpoint(corpus: ToneCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that emit a token every few frames. Not to be changed."""
    return make_talkative_run(corpus, tmp_path_factory.mktemp("run"))


@pytest.fixture
def language_model(corpus: ToneCorpus, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = LstmLanguageModel(LstmConfig(PIECES, 8, 1)).eval()
    model.embedding.weight.data *= 30
    save_language_model(model, TextEncoder(corpus.tokens.read_bytes()), tmp_path / "lm.pt")
    return tmp_path / "lm.pt"


def evaluate(tmp_path: Path, *words: object) -> list[Row]:
    out = tmp_path / "rows.json"
    chunks = ("--chunk-ms", "160", "--left-ms", "640", "--right-ms", "40")
    assert main(["evaluate-checkpoint", *map(str, words), *chunks, "--json", str(out)]) == 0
    rows: list[Row] = json.loads(out.read_text())["rows"]
    return rows


@torch.inference_mode()
def count_errors(
    corpus: ToneCorpus, checkpoint: Path, options: SearchOptions, language_model: Path | None = None
) -> int:
    """The words that differ from dev's text in what the search of targets finds, one utterance at a time."""
    model, tokens, _ = load_model(checkpoint)
    steered_by = load_language_model(language_model, tokens) if language_model else None
    errors = 0
    for utterance in load_utterances(FeatureStore(corpus.dev), tokens, 100.0):
        (batch,) = dev_batches([utterance])
        encoded = model.encoder(batch.features, batch.frame_lengths, 4, 16, right=1)
        found = beam_search(model, model.projection(encoded), batch.frame_lengths, options, steered_by)
        text = tokens.decode(list(found[0][0].labels))
        errors += int(edit_distance(utterance.text.split(), text.split())["total"])
    return errors


def test_a_row_for_each_search(
    corpus: ToneCorpus,
    checkpoint: Path,
    language_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--beam", 3, "--language-model", language_model, "--language-model-weight", 2)
    rows = evaluate(tmp_path, checkpoint, corpus.dev, *options)
    assert [row["search"] for row in rows] == ["greedy", "beam 3", "beam 3, LM 2"]
    assert [row["errors"] for row in rows] == [
        count_errors(corpus, checkpoint, SearchOptions(1)),
        count_errors(corpus, checkpoint, SearchOptions(3)),
        count_errors(corpus, checkpoint, SearchOptions(3, 2.0), language_model),
    ]
    assert len({row["errors"] for row in rows}) > 1
    assert all(row["wer"] == pytest.approx(100 * row["errors"] / row["words"]) for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["corpus", "plain", "plain", "plain"]
    assert lines[0].split()[-3:] == ["delay", "p50", "p90"]


def test_a_language_model_inside(corpus: ToneCorpus, checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path, tokens = tmp_path / "lm.pt", TextEncoder(corpus.tokens.read_bytes())
    language_model = ContextLanguageModel(ContextConfig(PIECES, 4, 8, (16, 12)))
    language_model.out.weight.data *= 30
    save_language_model(language_model, tokens, path)
    found = {}
    for weights in ((0, 0), (2, 0), (2, 1)):
        options = ("--beam", 2, "--language-model", path, "--inside-weights", *weights)
        rows = {row["search"]: row["errors"] for row in evaluate(tmp_path, checkpoint, corpus.dev, *options)}
        assert list(rows) == ["greedy", "beam 2", "beam 2, LM 0.3", "greedy, LM inside"]
        found[weights] = rows["greedy, LM inside"]
    assert found[0, 0] == rows["greedy"]
    model = with_language_model(
        load_model(checkpoint)[0], load_language_model(path, tokens), FusionWeights(2, 1)
    )
    batches = dev_batches(load_utterances(FeatureStore(corpus.dev), tokens, 100.0))
    expected = measure(model, batches, tokens, [4], 16, right=1)[4].errors.transducer_errors
    assert found[2, 1] == expected
    assert len(set(found.values())) > 1


def test_a_predictor_that_can_hold_no_language_model(corpus: ToneCorpus, tmp_path: Path) -> None:
    path, tokens = tmp_path / "lm.pt", TextEncoder(corpus.tokens.read_bytes())
    save_language_model(ContextLanguageModel(ContextConfig(PIECES, 4, 8, (16, 12))), tokens, path)
    config = tiny_config(corpus, make_stage("a", 1))
    trainer = Trainer(replace(config, model=replace(config.model, predictor="lstm")), tmp_path / "run")
    trainer.folder.mkdir()
    trainer.save()
    rows = evaluate(tmp_path, trainer.path, corpus.dev, "--beam", 2, "--language-model", path)
    assert [row["search"] for row in rows] == ["greedy", "beam 2", "beam 2, LM 0.3"]


def test_a_manifest_is_as_good_as_its_store(corpus: ToneCorpus, checkpoint: Path, tmp_path: Path) -> None:
    manifest = corpus.dev.parent / "dev" / "cuts.jsonl.gz"
    stored, made = (evaluate(tmp_path, checkpoint, source) for source in (corpus.dev, manifest))
    assert stored == made
    assert [row["search"] for row in made] == ["greedy", "beam 4"]
    few = [evaluate(tmp_path, checkpoint, source, "--limit", 2) for source in (corpus.dev, manifest)]
    assert few[0] == few[1]
    assert 0 < few[0][0]["words"] < made[0]["words"]


def test_a_teachers_paths_say_when_tokens_are_due(
    corpus: ToneCorpus, checkpoint: Path, tmp_path: Path
) -> None:
    """They have all tokens in the first frame, so what is recognised comes later than it does by itself."""
    _, tokens, _ = load_model(checkpoint)
    paths = {}
    for utterance in load_utterances(FeatureStore(corpus.dev), tokens, 100.0):
        frames, labels = utterance.cut.custom["num_frames"] // 4, list(utterance.labels)
        log_probs = random_log_probs(frames, len(labels), PIECES)
        paths[utterance.cut.id] = [make_path(labels, [0] * len(labels), frames, log_probs, 3)]
    targets = write_targets(tmp_path / "targets", corpus, paths)
    own, late = (
        evaluate(tmp_path, checkpoint, corpus.dev, *more)[0]["emission_delay_ms"]
        for more in ((), ("--targets", targets))
    )
    assert late["mean"] > own["mean"]
    assert late["p90"] > 400


def test_a_blank_penalty_and_a_language_model_of_others(
    corpus: ToneCorpus,
    checkpoint: Path,
    language_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = evaluate(tmp_path, checkpoint, corpus.dev, "--blank-penalty", -100)
    assert [row["errors"] for row in silent] == [row["words"] for row in silent]
    assert [row["emission_delay_ms"] for row in silent] == [None, None]
    train_vocabulary(["another text of the same letters: bad cede a bed"] * 9, tmp_path / "other.model", 26)
    other = TextEncoder((tmp_path / "other.model").read_bytes())
    save_language_model(LstmLanguageModel(LstmConfig(26, 8, 1)), other, language_model)
    words = ["evaluate-checkpoint", str(checkpoint), str(corpus.dev)]
    assert main([*words, "--language-model", str(language_model)]) == 1
    assert "made for another vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk-ms", "20"], "--chunk-ms to be a multiple of 40, 0 or more, not 20"),
        (["--chunk-ms", "650"], "--chunk-ms to be a multiple of 40, 0 or more, not 650"),
        (["--chunk-ms", "-640"], "--chunk-ms to be a multiple of 40, 0 or more, not -640"),
        (["--left-ms", "-40"], "--left-ms to be a multiple of 40"),
        (["--chunk-ms", "640", "--right-ms", "640"], "--right-ms below --chunk-ms, not 640"),
        (["--chunk-ms", "0", "--right-ms", "40"], "--right-ms below --chunk-ms, not 40"),
        (["--limit", "0"], "--limit above 0, not 0"),
        (["--blank-penalty", "nan"], "--blank-penalty to be a finite number, not nan"),
        (["--blank-penalty", "inf"], "--blank-penalty to be a finite number, not inf"),
        (["--threads", "-1"], "threads of 0 or more, not -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    corpus: ToneCorpus,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert main(["evaluate-checkpoint", str(checkpoint), str(corpus.dev), *options]) == 1
    assert f"expected {message}" in capsys.readouterr().err


def test_a_place_for_the_rows_is_sought_before_anything_is_measured(
    corpus: ToneCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate-checkpoint", str(tmp_path / "a.pt"), str(corpus.dev), "--json"]
    assert main([*words, str(tmp_path / "none" / "rows.json")]) == 1
    assert "none: no such folder" in capsys.readouterr().err


def test_speech_without_text_is_named_before_features_are_made(
    corpus: ToneCorpus, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = corpus.manifest.parents[1] / "noise" / "cuts.jsonl.gz"
    assert main(["evaluate-checkpoint", str(checkpoint), str(manifest)]) == 1
    assert f"{manifest}: no text in it. Expected" in capsys.readouterr().err
