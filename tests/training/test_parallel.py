"""Batches accumulated or shared out over processes: the same result as all of them at once on one."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import Row, read_log, write_toml
from tone_corpus import ToneCorpus, make_stage, tiny_config
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onebest.errors import ConfigError
from onebest_training import trainer as trainer_module
from onebest_training.batches import Batch, PassDataset
from onebest_training.checkpoint import Checkpoint, load
from onebest_training.config import AugmentConfig, LossConfig, TrainConfig
from onebest_training.parallel import Processes, find_device
from onebest_training.trainer import Trainer

MAIN = "import sys, onebest.cli; sys.exit(onebest.cli.main(sys.argv[1:]))"


def start_two(config: TrainConfig, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Train in two processes, with the environment that torchrun gives its."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["train", str(write_toml(config, folder.with_suffix(".toml"))), str(folder), "--threads", "1"]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **place, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen([sys.executable, "-c", MAIN, *words], env={**environment, "RANK": rank})
        for rank in ("0", "1")
    ]


@pytest.fixture(scope="module")
def shared_config(corpus: ToneCorpus) -> TrainConfig:
    """Four batches a step, in which all losses take part, over more than three passes."""
    stages = make_stage("heads", 2, trains="heads"), make_stage("all", 8, learning_rate=1e-3)
    data = replace(tiny_config(corpus, *stages).data, batch_seconds=5.0)
    config = tiny_config(corpus, *stages, accumulation=4, log_steps=1, evaluate_steps=5)
    return replace(config, data=data)


@pytest.fixture(scope="module")
def alone(shared_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ``shared_config`` in one process."""
    folder = tmp_path_factory.mktemp("alone")
    trainer = Trainer(shared_config, folder)
    trainer.run()
    assert trainer.position.number > 2
    assert any("emission_delay_p50_ms/plain/16" in row for row in read_log(folder))
    return folder


def assert_close(found: Checkpoint, expected: Checkpoint) -> None:
    assert replace(found.position, seconds=0, wall_seconds=0) == replace(
        expected.position, seconds=0, wall_seconds=0
    )
    assert found.position.seconds == pytest.approx(expected.position.seconds)
    assert_close_weights(found.weights, expected.weights)
    assert_close_weights(found.average, expected.average)


def assert_close_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        # The keys' part of this bias has no gradient but rounding errors, which Adam makes large.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)


def assert_same_log(found: list[Row], expected: list[Row]) -> None:
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for one, other in zip(found, expected, strict=True):
        for name in one.keys() - {"minutes", "audio_seconds_a_second"}:
            assert one[name] == (other[name] if name == "stage" else pytest.approx(other[name], 1e-4, 2e-5))


def test_two_processes_get_what_one_gets(shared_config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    assert [process.wait() for process in start_two(shared_config, tmp_path / "run")] == [0, 0]
    assert_close(load(tmp_path / "run" / "checkpoint.pt"), load(alone / "checkpoint.pt"))
    assert_same_log(read_log(tmp_path / "run"), read_log(alone))


def test_one_process_goes_on_where_two_were_killed(
    shared_config: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = start_two(shared_config, run)
    while not (run / "checkpoint.pt").exists() and processes[0].poll() is None:
        time.sleep(0.005)
    for process in processes:
        process.kill()
        process.wait()
    resumed = Trainer(shared_config, run)
    assert resumed.position.step > 0
    resumed.run()
    assert_close(load(run / "checkpoint.pt"), load(alone / "checkpoint.pt"))
    assert_same_log(read_log(run), read_log(alone))


class Pairs(PassDataset):
    """A pass whose batches are two of the other's put together."""

    def __len__(self) -> int:
        return super().__len__() // 2

    def __getitem__(self, index: int) -> Batch:
        one, other = (super(Pairs, self).__getitem__(2 * index + half) for half in (0, 1))
        return one._replace(
            features=pad_sequence([*one.features, *other.features], batch_first=True),
            frame_lengths=torch.cat([one.frame_lengths, other.frame_lengths]),
            labels=pad_sequence([*one.labels, *other.labels], batch_first=True),
            label_lengths=torch.cat([one.label_lengths, other.label_lengths]),
            texts=one.texts + other.texts,
        )


def test_accumulated_batches_are_one_large_batch(
    corpus: ToneCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loss is a mean over the labels of all batches, not a mean of the batches' means."""
    stage = make_stage(
        "all", 4, chunk_frames=(0,), loss=LossConfig(1.0, 1.0, band=3), augment=AugmentConfig()
    )
    config = tiny_config(corpus, stage, accumulation=2, log_steps=1)
    encoder = replace(config.model.encoder, dropout=0.0, position_period=2)
    config = replace(config, model=replace(config.model, encoder=encoder))
    Trainer(config, tmp_path / "two").run()
    monkeypatch.setattr(trainer_module, "PassDataset", Pairs)
    Trainer(replace(config, accumulation=1), tmp_path / "one").run()
    checkpoints = [load(tmp_path / name / "checkpoint.pt") for name in ("two", "one")]
    assert_close_weights(checkpoints[0].weights, checkpoints[1].weights)
    rows = [
        [row["transducer"] for row in read_log(tmp_path / name) if "loss" in row] for name in ("two", "one")
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)


def test_batches_that_cannot_be_shared_evenly_are_refused(
    corpus: ToneCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_two = {"rank": 0, "size": 2, "device": torch.device("cpu")}
    monkeypatch.setattr(Processes, "__init__", lambda self, name: self.__dict__.update(of_two))
    with pytest.raises(ConfigError, match="accumulation is 3, which 2 processes cannot share"):
        Trainer(tiny_config(corpus, make_stage("a", 1), accumulation=3), tmp_path)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"device 'cuda:2': torch finds 2 here, from cuda:0 to cuda:1"):
        find_device("cuda:2")
    monkeypatch.setattr("os.environ", {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"})
    with pytest.raises(ConfigError, match="device 'cuda:2': torch finds 2 here"):
        Processes("cuda")
