"""A run that was stopped anywhere ends as if it had not been, or says why it cannot go on."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import KilledError, Row, another_process_in, read_log, stop_after, write_toml
from torch.utils.tensorboard import SummaryWriter

from onebest.errors import ConfigError, DataError, ModelError
from onebest_training.checkpoint import Checkpoint, Position, load
from onebest_training.config import TrainConfig
from onebest_training.runlog import RunLog
from onebest_training.trainer import Trainer
from onebest_training.vocabulary import train_vocabulary

#: What differs between two equal runs.
TIMES = {"minutes", "audio_seconds_a_second"}


def without_times(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert replace(found.position, wall_seconds=0.0) == replace(expected.position, wall_seconds=0.0)
    for one, other in ((found.weights, expected.weights), (found.average, expected.average)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    states = [checkpoint.optimizer.get("state", {}) for checkpoint in (found, expected)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 7, 8, 12, 16])
def test_a_run_killed_after_a_step_ends_like_an_unbroken_one(
    config: TrainConfig, unbroken: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(KilledError):
        Trainer(config, tmp_path).run(stop_after(step))
    resumed = Trainer(config, tmp_path)
    # Checkpoints come with the rows of the log, every third step, and at the end of the first stage.
    assert resumed.position.step == max(saved for saved in (0, 3, 5, 6, 9, 12, 15) if saved < step)
    resumed.run()
    assert_same(load(tmp_path / "checkpoint.pt"), load(unbroken / "checkpoint.pt"))
    assert without_times(read_log(tmp_path)) == without_times(read_log(unbroken))


@pytest.mark.parametrize("step", [2, 7, 10, 14])
def test_a_checkpoint_of_any_step_serves(
    config: TrainConfig, unbroken: Path, tmp_path: Path, step: int
) -> None:
    trainer = Trainer(config, tmp_path)
    with pytest.raises(KilledError):
        trainer.run(stop_after(step, trainer))
    resumed = Trainer(config, tmp_path)
    assert resumed.position.step == step
    resumed.run()
    assert_same(load(tmp_path / "checkpoint.pt"), load(unbroken / "checkpoint.pt"))
    assert [row["step"] for row in read_log(tmp_path)] == [row["step"] for row in read_log(unbroken)]


def test_accumulation_and_kept_models_resume_too(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, accumulation=2, keep_steps=5)
    Trainer(config, tmp_path / "unbroken").run()
    expected = {path.name: load(path) for path in (tmp_path / "unbroken").glob("*.pt")}
    assert sorted(expected) == [*(f"checkpoint-{step:06}.pt" for step in (5, 10, 15)), "checkpoint.pt"]
    for step in (4, 11):
        with pytest.raises(KilledError):
            Trainer(config, tmp_path / "run").run(stop_after(step))
    resumed = Trainer(config, tmp_path / "run")
    assert resumed.position.step == 9
    resumed.run()
    for name, checkpoint in expected.items():
        assert_same(load(tmp_path / "run" / name), checkpoint)
    assert without_times(read_log(tmp_path / "run")) == without_times(read_log(tmp_path / "unbroken"))


def test_a_finished_run_stays_as_it_is(config: TrainConfig, unbroken: Path, tmp_path: Path) -> None:
    run = shutil.copytree(unbroken, tmp_path / "run")
    Trainer(config, run).run(lambda position, loss: pytest.fail("a step too many"))
    assert (run / "checkpoint.pt").read_bytes() == (unbroken / "checkpoint.pt").read_bytes()
    assert read_log(run) == read_log(unbroken)


def test_processes_that_prepare_batches_change_nothing(
    config: TrainConfig, unbroken: Path, tmp_path: Path
) -> None:
    Trainer(replace(config, data=replace(config.data, workers=2)), tmp_path).run()
    assert_same(load(tmp_path / "checkpoint.pt"), load(unbroken / "checkpoint.pt"))


def test_a_killed_process_goes_on(config: TrainConfig, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", str(write_toml(config, tmp_path / "run.toml")), str(run), "--threads", "1"]
    command = [sys.executable, "-c", "import sys, onebest.cli; sys.exit(onebest.cli.main(sys.argv[1:]))"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([*command, *words], env=environment) as process:
        while not (run / "checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    step = load(run / "checkpoint.pt").position.step
    resumed = subprocess.run([*command, *words], env=environment, check=True, capture_output=True, text=True)
    assert f"going on after step {step}" in resumed.stderr
    assert_same(load(run / "checkpoint.pt"), load(unbroken / "checkpoint.pt"))
    assert without_times(read_log(run)) == without_times(read_log(unbroken))


def test_tensorboard_keeps_what_was_logged_before_a_kill(config: TrainConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KilledError):
        Trainer(config, tmp_path).run(stop_after(11))
    Trainer(config, tmp_path).run()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [3, 5, 6, 9, 12, 15, 16]


def stop_early(config: TrainConfig, folder: Path, step: int = 4) -> None:
    with pytest.raises(KilledError):
        Trainer(config, folder).run(stop_after(step))


def test_another_configuration_is_refused_unless_allowed(config: TrainConfig, tmp_path: Path) -> None:
    stop_early(config, tmp_path)
    changed = replace(config, weight_decay=0.5)
    with pytest.raises(ConfigError, match="another configuration"):
        Trainer(changed, tmp_path)
    trainer = Trainer(changed, tmp_path, change_config=True)
    trainer.run()
    assert trainer.position.step == 16
    assert load(tmp_path / "checkpoint.pt").config["weight_decay"] == 0.5


def change_saved_config(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content["config"])
    torch.save(content, path)


def test_a_checkpoint_from_before_a_key_goes_on(config: TrainConfig, unbroken: Path, tmp_path: Path) -> None:
    stop_early(config, tmp_path)

    def take_out(saved: dict[str, Any]) -> None:
        del saved["initial_model"], saved["data"]["workers"]
        for stage in saved["stages"]:
            del stage["augment"]["warp"]

    change_saved_config(tmp_path / "checkpoint.pt", take_out)
    Trainer(config, tmp_path).run()
    assert_same(load(tmp_path / "checkpoint.pt"), load(unbroken / "checkpoint.pt"))
    assert load(tmp_path / "checkpoint.pt").config == asdict(config)


def test_a_checkpoint_with_an_unknown_key_is_another_configuration(
    config: TrainConfig, tmp_path: Path
) -> None:
    stop_early(config, tmp_path)
    change_saved_config(tmp_path / "checkpoint.pt", lambda saved: saved.update(later=1))
    with pytest.raises(ConfigError, match="another configuration"):
        Trainer(config, tmp_path)


def test_shorter_passes_do_not_hold_a_run_up(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config, tmp_path)
    with pytest.raises(KilledError):
        trainer.run(stop_after(6, trainer))
    longer_batches = replace(config, data=replace(config.data, batch_seconds=40.0))
    trainer = Trainer(longer_batches, tmp_path, change_config=True)
    trainer.run()
    assert trainer.position.step == 16


def test_another_model_is_refused_even_if_allowed(config: TrainConfig, tmp_path: Path) -> None:
    stop_early(config, tmp_path)
    wider = replace(config, model=replace(config.model, joiner_width=20))
    with pytest.raises(ModelError, match="does not fit the configured model"):
        Trainer(wider, tmp_path, change_config=True)


def test_another_vocabulary_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    stop_early(config, tmp_path)
    tokens = tmp_path / "bpe.model"
    texts = ["abcde edcba", "ab ba cd dc de ed ea ae", "bad dab"]
    train_vocabulary(texts, tokens, config.model.vocabulary_size)
    checkpoint = load(tmp_path / "checkpoint.pt")
    changed = replace(config, data=replace(config.data, tokens=str(tokens)))
    torch.save(
        {
            **{name: getattr(checkpoint, name) for name in ("tokens", "weights", "average", "optimizer")},
            "format": 1,
            "config": asdict(changed),
            "position": asdict(checkpoint.position),
        },
        tmp_path / "checkpoint.pt",
    )
    with pytest.raises(ConfigError, match="another configuration or vocabulary"):
        Trainer(changed, tmp_path)


def test_a_damaged_checkpoint_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    stop_early(config, tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"checkpoint.pt: cannot be read as a checkpoint"):
        Trainer(config, tmp_path)


@pytest.mark.parametrize("cut", [1, 10])
def test_a_row_cut_off_by_a_kill_is_dropped(config: TrainConfig, tmp_path: Path, cut: int) -> None:
    stop_early(config, tmp_path, 5)
    path = tmp_path / "log.jsonl"
    rows = path.read_text()
    path.write_text(rows[:-cut])
    Trainer(config, tmp_path).run()
    assert [row["step"] for row in read_log(tmp_path) if "loss" in row] == [3, 5, 6, 9, 12, 15, 16]


def test_a_run_goes_on_without_its_log(config: TrainConfig, tmp_path: Path) -> None:
    stop_early(config, tmp_path)
    (tmp_path / "log.jsonl").unlink()
    Trainer(config, tmp_path).run()
    assert [row["step"] for row in read_log(tmp_path) if "loss" in row] == [5, 6, 9, 12, 15, 16]


def test_a_disk_too_full_for_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (tmp_path / "log.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"log.jsonl: cannot be written \(No space left on device\)"):
        RunLog(tmp_path, 1)
    assert len(read_log(tmp_path)) == 2


def test_a_disk_too_full_for_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(board: SummaryWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run_log = RunLog(tmp_path, 0)
    for name in ("flush", "close"):
        monkeypatch.setattr(SummaryWriter, name, full)
    with pytest.raises(DataError, match=rf"{tmp_path}: cannot be written \(No space left on device\)"):
        run_log.write(Position(), {"loss": 1.0})
    with pytest.raises(DataError, match=rf"{tmp_path}: cannot be written \(No space left on device\)"):
        run_log.close()


def test_two_processes_do_not_train_in_one_folder(config: TrainConfig, tmp_path: Path) -> None:
    with another_process_in(tmp_path):
        with pytest.raises(DataError, match="another process writes it"):
            Trainer(config, tmp_path).run()
        assert not (tmp_path / "checkpoint.pt").exists()
    Trainer(config, tmp_path).run()
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_run_in_place_of_a_file_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    for folder in (tmp_path / "run", tmp_path / "run" / "inside"):
        with pytest.raises(DataError, match=f"{folder}: no folder can be made there"):
            Trainer(config, folder).run()
