"""The training loop: it learns, trains what a stage says, and logs how it goes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import read_log, write_toml
from tone_corpus import ToneCorpus, make_stage, tiny_config
from torch import Tensor

from onebest.cli import main
from onebest.cuts import read_cuts
from onebest.errors import ConfigError, DataError, ModelError
from onebest_training import trainer as trainer_module
from onebest_training.checkpoint import Position, load, load_model, save_half
from onebest_training.config import AugmentConfig, LossConfig, TrainConfig
from onebest_training.decode import ErrorCount, Measured
from onebest_training.features import SampleAugmentation, make_store
from onebest_training.trainer import Trainer


def test_the_log_says_how_it_goes(config: TrainConfig, unbroken: Path) -> None:
    rows = read_log(unbroken)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [3, 5, 6, 9, 12, 15, 16]
    assert [row["stage"] for row in steps] == ["heads"] * 2 + ["all"] * 5
    for row in steps:
        assert row.keys() >= {"loss", "ctc", "transducer", "left_out", "learning_rate", "gradient_norm"}
        assert row["audio_seconds_a_second"] > 0
    measured = [row for row in rows if "wer/plain/16" in row]
    assert [row["step"] for row in measured] == [4, 5, 8, 12, 16]
    assert all(row["wer/plain/16"] >= 0 and row["ctc_wer/plain/16"] >= 0 for row in measured)
    assert rows[-1]["hours"] > 0


def test_errors_and_delays_are_measured_over_all_batches(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {0: Measured(ErrorCount(3, 5, 20), [0, 1, 2, 9]), 16: Measured(ErrorCount(20, 20, 20), [])}
    monkeypatch.setattr(trainer_module, "measure", lambda *batches, right: counted)
    rates = Trainer(config, tmp_path).evaluate()
    expected = {
        "wer/plain/0": 15.0,
        "ctc_wer/plain/0": 25.0,
        "wer/plain/16": 100.0,
        "ctc_wer/plain/16": 100.0,
    }
    delays = {"mean": 120.0, "p50": 60.0, "p90": 276.0}
    assert rates == expected | {f"emission_delay_{name}_ms/plain/0": ms for name, ms in delays.items()}


def test_tensorboard_gets_the_same(unbroken: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(unbroken)).Reload()
    assert {"loss", "learning_rate", "wer/plain/16", "audio_seconds_a_second"} <= set(
        events.Tags()["scalars"]
    )
    rows = [(row["step"], row["loss"]) for row in read_log(unbroken) if "loss" in row]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == [step for step, _ in rows]
    assert [value for _, value in found] == pytest.approx([value for _, value in rows])


@pytest.mark.parametrize("bf16", [False, True])
def test_the_loss_falls(corpus: ToneCorpus, tmp_path: Path, bf16: bool) -> None:
    stage = make_stage(
        "all", 60, learning_rate=1e-2, loss=LossConfig(1.0, 1.0, band=4), augment=AugmentConfig()
    )
    Trainer(tiny_config(corpus, stage, log_steps=10, evaluate_steps=60, bf16=bf16), tmp_path).run()
    losses = [row["loss"] for row in read_log(tmp_path) if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]


def test_the_rate_rises_and_falls(corpus: ToneCorpus, tmp_path: Path) -> None:
    options = {"learning_rate": 0.1, "encoder_learning_rate": 0.01, "warmup_steps": 4, "decay_steps": 5}
    weights = write_first_weights(corpus, tmp_path)
    config = tiny_config(corpus, make_stage("all", 10, **options), initial_encoder=str(weights))
    trainer, rates = Trainer(config, tmp_path / "run"), []
    trainer.run(lambda position, loss: rates.append([g["lr"] for g in trainer.optimizer.param_groups]))
    scale = [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert [heads for heads, _ in rates] == pytest.approx([0.1 * s for s in scale])
    assert [encoder for _, encoder in rates] == pytest.approx([0.01 * s for s in scale])


def write_first_weights(corpus: ToneCorpus, folder: Path) -> Path:
    """The encoder of a run of random weights, its first block alone."""
    encoder = Trainer(tiny_config(corpus, make_stage("a", 1), seed=7), folder).model.encoder
    weights = {name: value for name, value in encoder.state_dict().items() if not name.startswith("blocks.1")}
    torch.save(weights, folder / "first.pt")
    return folder / "first.pt"


@pytest.mark.parametrize(("trains", "moves"), [("all", (1, 1, 1)), ("heads", (0, 0, 1)), ("new", (0, 1, 1))])
def test_what_a_stage_trains(
    corpus: ToneCorpus, tmp_path: Path, trains: str, moves: tuple[int, int, int]
) -> None:
    weights = write_first_weights(corpus, tmp_path)
    stage = make_stage("a", 2, trains=trains)
    trainer = Trainer(tiny_config(corpus, stage, initial_encoder=str(weights)), tmp_path / "run")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    after = trainer.model.state_dict()
    for name in ("encoder.blocks.0.attention.qkv.weight", "encoder.stem.conv1.weight"):
        assert torch.equal(before[name], after[name]) == (not moves[0])
    name = "encoder.blocks.1.attention.out.weight"
    assert torch.equal(before[name], after[name]) == (not moves[1])
    assert torch.equal(before["ctc.3.weight"], after["ctc.3.weight"]) == (not moves[2])


def encode(trainer: Trainer, features: Tensor) -> Tensor:
    encoder = trainer.model.encoder.eval()
    return encoder(features, torch.tensor([(features.shape[1] - 3) // 4]), 4, 8)


@torch.no_grad()
def test_first_weights_are_kept_and_what_is_new_adds_nothing(corpus: ToneCorpus, tmp_path: Path) -> None:
    stage, features = make_stage("a", 1), torch.randn(1, 83, 80)
    path = write_first_weights(corpus, tmp_path)
    config = tiny_config(corpus, stage, initial_encoder=str(path))
    whole = Trainer(config, tmp_path / "whole")
    first, second = config.model.encoder.blocks
    encoder = replace(config.model.encoder, blocks=(replace(first, convolution_kernel=5), second))
    grown = Trainer(replace(config, model=replace(config.model, encoder=encoder)), tmp_path / "grown")
    for name, value in torch.load(path, weights_only=True).items():
        assert torch.equal(grown.model.encoder.state_dict()[name], value)
    assert torch.equal(encode(grown, features), encode(whole, features))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"blocks.0.feed_forward_in.weight": torch.zeros(3, 3)}, ConfigError, "does not fit the configured"),
        ({"blocks.7.attention.qkv.bias": torch.zeros(3)}, ConfigError, "which the configured encoder lacks"),
        (None, ModelError, "cannot be read"),
    ],
)
def test_first_weights_that_do_not_fit_are_refused(
    corpus: ToneCorpus,
    tmp_path: Path,
    change: dict[str, Tensor] | None,
    error: type[Exception],
    message: str,
) -> None:
    path = write_first_weights(corpus, tmp_path)
    if change is None:
        path.write_bytes(path.read_bytes()[:500])
    else:
        torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(error, match=message):
        Trainer(tiny_config(corpus, make_stage("a", 1), initial_encoder=str(path)), tmp_path / "run")


def test_a_vocabulary_that_does_not_fit_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no vocabulary there"):
        Trainer(replace(config, data=replace(config.data, tokens="gone.model")), tmp_path)
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"bad\.model: not a sentencepiece model"):
        Trainer(replace(config, data=replace(config.data, tokens=str(tmp_path / "bad.model"))), tmp_path)
    with pytest.raises(ConfigError, match=r"has 16 pieces, but model.vocabulary_size is 17"):
        Trainer(replace(config, model=replace(config.model, vocabulary_size=17)), tmp_path)


def test_background_sounds_of_another_front_end_are_refused(
    config: TrainConfig, corpus: ToneCorpus, tmp_path: Path
) -> None:
    make_store(read_cuts(corpus.manifest), tmp_path / "sounds", SampleAugmentation(), front_end="samples")
    with pytest.raises(ConfigError, match="sounds was made with --front-end 'samples'"):
        Trainer(replace(config, data=replace(config.data, noise=str(tmp_path / "sounds"))), tmp_path / "run")


def test_a_step_without_a_finite_gradient_is_left_out(
    corpus: ToneCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compute, count = trainer_module.compute_losses, iter(range(10))

    def spoilt(*arguments: Any) -> dict[str, Tensor]:
        losses = compute(*arguments)
        return {**losses, "loss": losses["loss"] * math.nan} if next(count) == 1 else losses

    monkeypatch.setattr(trainer_module, "compute_losses", spoilt)
    trainer, weights = Trainer(tiny_config(corpus, make_stage("a", 3)), tmp_path), []
    trainer.run(lambda position, loss: weights.append(trainer.model.ctc[3].weight.detach().clone()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert "step 1: the gradient is not finite" in caplog.text
    assert all(math.isfinite(value) for row in read_log(tmp_path) for value in row.values() if value != "a")


def test_weights_that_are_not_finite_end_the_run(corpus: ToneCorpus, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(corpus, make_stage("a", 3)), tmp_path)
    torch.nn.init.constant_(trainer.model.ctc[3].weight, math.inf)
    with pytest.raises(ModelError, match="step 0: the weights are not finite"):
        trainer.run()


def test_the_average_follows_the_weights(corpus: ToneCorpus, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(corpus, make_stage("a", 3), average_decay=0.5), tmp_path)
    expected, name = trainer.model.state_dict()["ctc.3.weight"].clone(), "ctc.3.weight"
    steps = iter(range(3))

    def follow(position: Position, loss: float) -> None:
        step = next(steps)
        decay = min(0.5, (1 + step) / (10 + step))
        expected.mul_(decay).add_(trainer.model.state_dict()[name], alpha=1 - decay)

    trainer.run(follow)
    torch.testing.assert_close(trainer.average[name], expected)
    model, tokens, checkpoint = load_model(tmp_path / "checkpoint.pt")
    assert torch.equal(model.state_dict()[name], trainer.average[name])
    assert not model.training
    assert len(tokens) == checkpoint.config["model"]["vocabulary_size"]


def test_devices_that_are_not_there_are_refused(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        Trainer(config, tmp_path, "cuda")
    for name in ("abacus", "meta", "mps"):
        with pytest.raises(ConfigError, match=f"'{name}': expected cpu, cuda or cuda:N"):
            Trainer(config, tmp_path, name)


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text("stages = []\n")
    assert main(["train", str(tmp_path / "run.toml"), str(tmp_path / "run")]) == 1
    assert "run.toml: data, model missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_a_trained_model(corpus: ToneCorpus, tmp_path: Path) -> None:
    Trainer(tiny_config(corpus, make_stage("all", 2)), tmp_path / "first").run()
    half = tmp_path / "half.pt"
    save_half(load(tmp_path / "first" / "checkpoint.pt"), half)
    second = Trainer(tiny_config(corpus, make_stage("all", 1), initial_model=str(half)), tmp_path / "second")
    trained, _, _ = load_model(half)
    for name, value in trained.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
        assert torch.equal(second.average[name], value)
    with pytest.raises(ModelError, match=r"none\.pt"):
        Trainer(
            tiny_config(corpus, make_stage("all", 1), initial_model=str(tmp_path / "none.pt")),
            tmp_path / "third",
        )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9.9 TiB for an array"),
        RuntimeError("CUDA out of memory. Tried to allocate 9.9 TiB\nand more"),
    ],
)
def test_the_command_says_when_memory_ran_out(
    corpus: ToneCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def full(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(trainer_module, "compute_losses", full)
    path = write_toml(tiny_config(corpus, make_stage("a", 1)), tmp_path / "run.toml")
    assert main(["train", str(path), str(tmp_path / "run")]) == 1
    reason = str(error).splitlines()[0]
    assert f"onebest train: memory ran out ({reason}). Ask for less" in capsys.readouterr().err
