"""Training a language model: that it learns, that the seed decides, that what was stopped goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onebest.errors import ConfigError, DataError, ModelError
from onebest_training.language_model import (
    ContextConfig,
    ContextLanguageModel,
    LanguageModel,
    LstmConfig,
)
from onebest_training.language_model_training import Schedule, perplexity, train_language_model

CONFIG = LstmConfig(9, 32, 1, 0.0)
CONTEXT_CONFIG = ContextConfig(9, 3, 8, (16, 12))
#: Counting up from anywhere.
SENTENCES = [list(range(start, 9)) for start in (3, 4, 5, 6)] * 30


def weights_equal(one: LanguageModel, other: LanguageModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("config", [CONFIG, CONTEXT_CONFIG], ids=["lstm", "context"])
def test_it_learns_to_count(config: LstmConfig | ContextConfig) -> None:
    steps: list[tuple[int, int, float]] = []
    schedule = Schedule(passes=6, batch_tokens=100, learning_rate=3e-2, held_out=7)
    model, reached = train_language_model(
        config, [*SENTENCES, []], schedule, lambda *told: steps.append(told)
    )
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert steps[0][2] > 1.5 > steps[-1][2]
    assert reached == pytest.approx(perplexity(model, [s for i, s in enumerate(SENTENCES) if i % 7 == 0]))
    assert reached < 1.6  # open is only where to begin: 4 ** (1 / 5.5) = 1.29
    state = model.advance(model.initial_state(1), torch.tensor([4]))
    assert int(model.read(state)[0, 1:].argmax()) + 1 == 5


def test_joined_sentences_follow_one_another() -> None:
    """Counting goes on behind 8 where sentences are joined, and ends there where they are not."""
    sentences = [[3, 4, 5, 6, 7, 8]] * 200
    at_end = {}
    for join in (1, 8):
        schedule = Schedule(6, 200, 3e-2, join=join)
        model, _ = train_language_model(CONTEXT_CONFIG, sentences, schedule)
        state = torch.tensor([[6, 7, 8]])
        at_end[join] = int(model.read(state)[0, 1:].argmax()) + 1
    assert at_end == {1: 1, 8: 3}


def test_a_model_that_learns_on_is_no_longer_that_of_its_file() -> None:
    read = ContextLanguageModel(CONTEXT_CONFIG)
    read.digest = "of a file"
    before = {name: weight.clone() for name, weight in read.state_dict().items()}
    model, _ = train_language_model(read, SENTENCES, Schedule(passes=1, batch_tokens=100))
    assert model is read
    assert model.digest == ""
    assert not torch.equal(model.state_dict()["out.bias"], before["out.bias"])


def test_the_seed_decides_everything() -> None:
    schedule = Schedule(passes=1, batch_tokens=120, join=3)
    one, other = (train_language_model(CONFIG, SENTENCES, schedule)[0] for _ in range(2))
    assert weights_equal(one, other)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="at least two sentences with text, got 1"):
        train_language_model(CONFIG, [[3], []], Schedule())


@pytest.mark.parametrize(("learning_rate", "found"), [(30.0, "inf"), (1e30, "nan")])
def test_a_model_that_learnt_nothing_is_refused(learning_rate: float, found: str) -> None:
    with pytest.raises(ModelError, match=f"perplexity {found}. Lower the learning rate"):
        train_language_model(CONTEXT_CONFIG, SENTENCES, Schedule(1, 100, learning_rate))


class Killed(Exception):
    pass


def train_until(step: int, config: LstmConfig | ContextConfig, schedule: Schedule, checkpoint: Path) -> None:
    """Train with a checkpoint behind each step, and be killed in a later one."""

    def progress(done: int, steps: int, loss: float) -> None:
        if done > step:
            raise Killed

    with pytest.raises(Killed):
        train_language_model(config, SENTENCES, schedule, progress, checkpoint, 0.0)


@pytest.mark.parametrize("config", [LstmConfig(9, 32, 2, 0.3), CONTEXT_CONFIG], ids=["lstm", "context"])
def test_a_killed_run_ends_like_an_unbroken_one(config: LstmConfig | ContextConfig, tmp_path: Path) -> None:
    schedule = Schedule(passes=2, batch_tokens=120, join=3)
    unbroken, expected = train_language_model(config, SENTENCES, schedule)
    path = tmp_path / "checkpoint"
    for step in (2, 3, 7):
        train_until(step, config, schedule, path)
        torch.manual_seed(77)
    told: list[int] = []
    model, reached = train_language_model(
        config, SENTENCES, schedule, lambda step, *_: told.append(step), path
    )
    assert told[0] == 8
    assert weights_equal(model, unbroken)
    assert reached == expected


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    schedule, path = Schedule(passes=2, batch_tokens=120), tmp_path / "checkpoint"
    train_until(2, CONTEXT_CONFIG, schedule, path)
    others = [
        (CONFIG, SENTENCES, schedule),
        (CONTEXT_CONFIG, SENTENCES[1:], schedule),
        (CONTEXT_CONFIG, SENTENCES, Schedule(passes=3, batch_tokens=120)),
        (ContextLanguageModel(CONTEXT_CONFIG), SENTENCES, schedule),
    ]
    torch.manual_seed(5)
    for start, sentences, other in others:
        with pytest.raises(ConfigError, match="begun with other text, another model or other settings"):
            train_language_model(start, sentences, other, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="Remove it to begin anew"):
        train_language_model(CONTEXT_CONFIG, SENTENCES, schedule, checkpoint=path)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "lm.checkpoint.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"lm.checkpoint: cannot be written \(No space left"):
        train_language_model(
            CONFIG, SENTENCES, Schedule(), checkpoint=tmp_path / "lm.checkpoint", checkpoint_seconds=0.0
        )
