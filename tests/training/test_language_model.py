"""The language model: what it says, that it learns, and which vocabulary it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import another_process_with
from tone_corpus import ToneCorpus

from onebest.cli import main
from onebest.errors import ConfigError, ModelError
from onebest_training.language_model import (
    ContextConfig,
    ContextLanguageModel,
    LanguageModel,
    LstmConfig,
    load_language_model,
    make_language_model,
    save_language_model,
)
from onebest_training.vocabulary import TextEncoder, train_vocabulary

CONFIG = LstmConfig(9, 32, 1, 0.0)
CONTEXT_CONFIG = ContextConfig(9, 3, 8, (16, 12))


@pytest.fixture(params=[CONFIG, CONTEXT_CONFIG], ids=["lstm", "context"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    return make_language_model(request.param).eval()


@torch.no_grad()
def test_labels_share_the_probability_and_the_blank_has_none(model: LanguageModel) -> None:
    log_probs = model(torch.tensor([[1, 4, 5], [1, 8, 2]]))
    assert log_probs.shape == (2, 3, 9)
    assert (log_probs[..., 0] == 0).all()
    torch.testing.assert_close(log_probs[..., 1:].exp().sum(2), torch.ones(2, 3))


@torch.no_grad()
def test_step_by_step_equals_the_whole(model: LanguageModel) -> None:
    labels = torch.tensor([[4, 5, 8], [8, 2, 2]])
    whole = model(torch.cat((torch.ones(2, 1, dtype=torch.int64), labels), 1))
    state = model.initial_state(2)
    for count in range(4):
        torch.testing.assert_close(model.read(state), whole[:, count])
        state = model.advance(state, labels[:, min(count, 2)])
    expected = sum(float(whole[0, at, label]) for at, label in enumerate((4, 5, 8)))
    assert model.score((4, 5, 8)) == pytest.approx(expected, abs=1e-5)
    assert model.score(()) == 0.0


@torch.no_grad()
def test_a_context_model_sees_its_context_and_no_more() -> None:
    model = ContextLanguageModel(CONTEXT_CONFIG).eval()
    near, far = torch.tensor([[1, 4, 5, 6, 7]]), torch.tensor([[1, 8, 5, 6, 7]])
    torch.testing.assert_close(model(near)[0, 4], model(far)[0, 4])
    assert not torch.allclose(model(near)[0, 3], model(far)[0, 3])
    # Before the first token: a stream's -1, a blank, an edge are all one.
    starts = torch.tensor([[-1, -1, 0], [0, 0, 0]])
    torch.testing.assert_close(model.read(starts)[0], model.read(starts)[1])
    torch.testing.assert_close(model.read(starts)[0], model(torch.tensor([[1]]))[0, 0])


@torch.no_grad()
def test_many_contexts_get_what_few_get() -> None:
    model = ContextLanguageModel(CONTEXT_CONFIG).eval()
    contexts = torch.randint(0, 9, (50, 3))
    torch.testing.assert_close(
        model.read(contexts), torch.cat([model.read(part) for part in contexts.split(5)])
    )


def test_a_command_trains_one_for_a_vocabulary(
    corpus: ToneCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "lm.pt"
    text.write_text("A bed!\n\nDab, cede a bad cab.\n" * 20)
    arguments = ["train-lm", str(text), str(corpus.manifest), "--tokens", str(corpus.tokens)]
    assert main([*arguments, "--output", str(path), "--width", "16", "--passes", "2"]) == 0
    assert "perplexity" in capsys.readouterr().out
    tokens = TextEncoder(corpus.tokens.read_bytes())
    model = load_language_model(path, tokens)
    assert (model.config.vocabulary_size, model.config.width, len(model.digest)) == (16, 16, 64)
    more = ["--context", "4", "--width", "8", "--hidden", "12", "10", "--join", "2", "--batch-tokens", "99"]
    assert main([*arguments, "--output", str(path), "--passes", "1", *more]) == 0
    assert load_language_model(path, tokens).config == ContextConfig(16, 4, 8, (12, 10))
    on = [*arguments, "--initial", str(path), "--output", str(tmp_path / "on.pt"), "--passes", "1"]
    assert main([*on, "--learning-rate", "1e-6"]) == 0
    before, after = (load_language_model(p, tokens) for p in (path, tmp_path / "on.pt"))
    assert after.config == before.config
    for name, weight in after.state_dict().items():
        torch.testing.assert_close(weight, before.state_dict()[name], atol=2e-3, rtol=0)
    assert main([*on, "--context", "4", "--hidden", "9", "9"]) == 1
    assert "Leave --context and --hidden out" in capsys.readouterr().err
    assert main([*arguments, "--output", str(tmp_path / "gone" / "lm.pt")]) == 1
    assert "gone: no such folder to write into. Make it first." in capsys.readouterr().err
    assert main([*arguments, "--output", str(path), "--hidden", "9", "9"]) == 1
    assert "--hidden is of a model with --context" in capsys.readouterr().err
    assert main([*arguments, "--output", str(path), "--layers", "1", "--context", "4"]) == 1
    assert "--layers is of an LSTM" in capsys.readouterr().err
    for option, number in (("--width", "0"), ("--layers", "0"), ("--seed", "-1"), ("--learning-rate", "inf")):
        assert main([*arguments, "--output", str(path), option, number]) == 1
        assert f"{option.removeprefix('--').replace('-', '_')} " in capsys.readouterr().err
    train_vocabulary(["another text of the same letters: bad cede a bed"] * 9, tmp_path / "other.model", 26)
    with pytest.raises(ConfigError, match="made for another vocabulary"):
        load_language_model(path, TextEncoder((tmp_path / "other.model").read_bytes()))


def test_sentences_with_letters_that_the_vocabulary_lacks_are_left_out(
    corpus: ToneCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.txt").write_text("a bed\nzebra\n" * 9)
    words = ["train-lm", str(tmp_path / "text.txt"), "--tokens", str(corpus.tokens), "--width", "8"]
    assert main([*words, "--output", str(tmp_path / "lm.pt"), "--passes", "1"]) == 0
    assert "9 of 18 sentences left out: letters that the vocabulary lacks" in caplog.messages


def test_the_command_looks_for_what_was_stopped(
    corpus: ToneCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "lm.pt.checkpoint"
    stopped.write_bytes(b"half of one")
    arguments = ["train-lm", str(corpus.manifest), "--tokens", str(corpus.tokens), "--width", "16"]
    assert main([*arguments, "--output", str(tmp_path / "lm.pt")]) == 1
    said = capsys.readouterr()
    assert f"{stopped}: going on from there" in said.out
    assert "Remove it to begin anew" in said.err
    with another_process_with(tmp_path / "lm.pt"):
        assert main([*arguments, "--output", str(tmp_path / "lm.pt")]) == 1
        assert "lm.pt: another process writes it" in capsys.readouterr().err
    stopped.unlink()
    assert main([*arguments, "--output", str(tmp_path / "lm.pt"), "--passes", "1"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lm.pt"]


def test_a_damaged_model_is_named(corpus: ToneCorpus, model: LanguageModel, tmp_path: Path) -> None:
    tokens, path = TextEncoder(corpus.tokens.read_bytes()), tmp_path / "lm.pt"
    with pytest.raises(ModelError, match=r"lm.pt: cannot be read as a language model"):
        load_language_model(path, tokens)
    save_language_model(model, tokens, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"lm.pt: cannot be read as a language model"):
        load_language_model(path, tokens)
