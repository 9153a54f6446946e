"""Checkpoints: there and back, whole or not at all, and what is no checkpoint."""

import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onebest.cli import main
from onebest.errors import ConfigError, DataError, ModelError
from onebest_training.checkpoint import (
    Checkpoint,
    Position,
    average_models,
    load,
    load_model,
    misfit,
    run_config,
    save,
    save_half,
    save_int8,
)
from onebest_training.config import ModelConfig
from onebest_training.strict import to_dict
from onebest_training.transducer import Transducer

POSITION = Position(7, 1, 2, 3, 4, 5.5, 6.5)


def make_checkpoint() -> Checkpoint:
    weights = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    average = {name: value + 1 for name, value in weights.items()}
    return Checkpoint({"model": {}, "list": (1, 2)}, b"tokens", weights, average, {"state": {}}, POSITION)


def test_there_and_back(tmp_path: Path) -> None:
    checkpoint, path = make_checkpoint(), tmp_path / "checkpoint.pt"
    save(checkpoint, path)
    found = load(path)
    assert (found.config, found.tokens, found.position) == (checkpoint.config, b"tokens", POSITION)
    for name in ("a", "b"):
        assert torch.equal(found.weights[name], checkpoint.weights[name])
        assert torch.equal(found.average[name], checkpoint.average[name])
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_half_precision_keeps_the_average_alone(tmp_path: Path) -> None:
    checkpoint, path = make_checkpoint(), tmp_path / "checkpoint.pt"
    save_half(checkpoint, path)
    found = load(path)
    assert (found.weights, found.optimizer) == ({}, {})
    assert torch.equal(found.average["b"], checkpoint.average["b"].half())


def test_eight_bits_keep_the_average_to_half_a_step_of_each_row(tmp_path: Path) -> None:
    matrix = torch.tensor([[1.0, -0.5, 0.003], [1e-3, 2e-3, 0.0], [0.0, 0.0, 0.0]])
    average = {"matrix": matrix, "kernel": matrix[:, None].repeat(1, 2, 1), "bias": torch.tensor([0.1, -7.0])}
    path, half = tmp_path / "int8.pt", tmp_path / "half.pt"
    checkpoint = replace(make_checkpoint(), average={**average, "large": torch.randn(256, 256)})
    save_int8(checkpoint, path)
    save_half(checkpoint, half)
    assert path.stat().st_size < 0.6 * half.stat().st_size
    found = load(path)
    assert (found.weights, found.optimizer, set(found.average)) == ({}, {}, set(checkpoint.average))
    for name in ("matrix", "kernel", "large"):
        value = checkpoint.average[name]
        rows = value.abs().amax(tuple(range(1, value.ndim)), keepdim=True)
        assert torch.all((found.average[name] - value).abs() <= rows / 254 * 1.001 + 1e-12)
    assert torch.equal(found.average["bias"], average["bias"].half())
    save_int8(found, path)
    torch.testing.assert_close(
        load(path).average, {n: v.float() for n, v in found.average.items()}, check_dtype=False
    )


def test_an_average_is_the_mean_of_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [make_checkpoint() for _ in range(3)]
    paths = [tmp_path / f"{index}.pt" for index in range(3)]
    for checkpoint, path in zip(made, paths, strict=True):
        save(checkpoint, path)
    assert main(["average", *map(str, paths), "--output", str(tmp_path / "mean.pt")]) == 0
    assert "the mean of 3" in capsys.readouterr().out
    found = load(tmp_path / "mean.pt")
    for name in ("a", "b"):
        torch.testing.assert_close(found.average[name], sum(each.average[name] for each in made) / 3)
    assert (found.weights, found.optimizer, found.position, found.tokens) == ({}, {}, POSITION, b"tokens")


def test_a_place_that_cannot_be_written_is_found_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(output: Path, says: str) -> None:
        for command in ("average", "prune"):
            assert main([command, str(tmp_path / "a.pt"), "--output", str(output)]) == 1
            assert says in capsys.readouterr().err

    refuse(tmp_path / "gone" / "b.pt", "gone: no such folder to write into. Make it first.")
    refuse(tmp_path, f"{tmp_path} is a folder. Name a file to write.")
    monkeypatch.setattr("onebest_training.speech.os.access", lambda path, mode: path != tmp_path)
    refuse(tmp_path / "b.pt", f"{tmp_path} may not be written. Name another place")


@pytest.mark.parametrize(("option", "write"), [("--half", save_half), ("--int8", save_int8)])
def test_a_mean_can_be_written_small(tmp_path: Path, option: str, write: Callable[..., None]) -> None:
    checkpoint, paths = make_checkpoint(), [tmp_path / name for name in ("whole.pt", "small.pt", "same.pt")]
    save(checkpoint, paths[0])
    write(checkpoint, paths[1])
    assert main(["average", str(paths[0]), "--output", str(paths[2]), option]) == 0
    small, same = load(paths[1]), load(paths[2])
    assert all(torch.equal(small.average[name], same.average[name]) for name in checkpoint.average)


def test_a_head_that_not_all_have_is_not_in_the_mean(tmp_path: Path) -> None:
    plain, other = make_checkpoint(), make_checkpoint()
    other = replace(
        other,
        config={**other.config, "model": {"embedding_width": 2}},
        average={**other.average, "embedding.weight": torch.ones(2, 2)},
    )
    paths = [tmp_path / "plain.pt", tmp_path / "other.pt", tmp_path / "same.pt"]
    for checkpoint, path in zip((plain, other, other), paths, strict=True):
        save(checkpoint, path)
    found = average_models(paths[:2])
    assert found.average.keys() == {"a", "b"}
    assert found.config["model"]["embedding_width"] == 0
    both = average_models(paths[1:])
    assert torch.equal(both.average["embedding.weight"], torch.ones(2, 2))
    assert both.config["model"]["embedding_width"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": b"others"},
        {"average": {"a": torch.zeros(4)}},
        {"config": {"model": {"encoder": {"heads": 12}}}},  # of the same weights
    ],
)
def test_models_that_differ_are_not_averaged(tmp_path: Path, change: dict[str, Any]) -> None:
    save(replace(make_checkpoint(), **change), tmp_path / "other.pt")
    save(make_checkpoint(), tmp_path / "last.pt")
    with pytest.raises(ModelError, match=r"other.pt: its model or vocabulary is not that of .*last.pt"):
        average_models([tmp_path / "other.pt", tmp_path / "last.pt"])


def test_a_mean_needs_to_know_the_models_but_not_how_they_were_trained(tmp_path: Path) -> None:
    other, last = tmp_path / "other.pt", tmp_path / "last.pt"
    save(make_checkpoint(), last)
    save(replace(make_checkpoint(), config={"model": {"encoder": {"dropout": 0.5}}}), other)
    assert average_models([other, last]).config == load(last).config
    save(replace(make_checkpoint(), config={}), other)
    with pytest.raises(ModelError, match=r"other.pt: not a whole checkpoint \('model'\)"):
        average_models([other, last])


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    checkpoint, path = make_checkpoint(), tmp_path / "checkpoint.pt"
    save(checkpoint, path)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, killed)
    with pytest.raises(KeyboardInterrupt):
        save(replace(checkpoint, position=Position()), path)
    assert load(path).position == POSITION


def test_a_full_disk_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save(make_checkpoint(), path)
    (tmp_path / "checkpoint.pt.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"checkpoint.pt: cannot be written \(No space left on device\)"):
        save(replace(make_checkpoint(), position=Position()), path)
    assert load(path).position == POSITION


def test_a_disk_that_fills_up_on_the_way_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path, large = tmp_path / "checkpoint.pt", {"a": torch.randn(1 << 18)}
    save(make_checkpoint(), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"checkpoint.pt: cannot be written \(File too large\)"):
            save(replace(make_checkpoint(), weights=large, position=Position()), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load(path).position == POSITION
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"not a checkpoint of this version of onebest \(format 1\)"),
        ({"format": None}, "not a checkpoint"),
        ({"position": None}, "not a whole checkpoint"),
        ({"position": {"step": "three"}}, "step: expected int, got 'three'"),
        ({"extra": 1}, "not a whole checkpoint .*extra"),
        ({"average": KeyError}, "not a whole checkpoint .*average"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    save(make_checkpoint(), path)
    content = {**torch.load(path, weights_only=True), **change}
    torch.save({name: value for name, value in content.items() if value is not KeyError}, path)
    with pytest.raises(ModelError, match=message):
        load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        load(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="cannot be read as a checkpoint") as found:
        load(path)
    assert "weights_only" not in str(found.value)  # torch advises to run whatever the file says
    torch.save(torch.zeros(3), path)
    with pytest.raises(ModelError, match="not a checkpoint of this version"):
        load(path)


def test_weights_must_fit_the_configuration(tmp_path: Path) -> None:
    path, config = tmp_path / "checkpoint.pt", ModelConfig(joiner_width=8)
    average = Transducer(config).state_dict()
    save(replace(make_checkpoint(), config={"model": to_dict(ModelConfig())}, average=average), path)
    with pytest.raises(ModelError, match="the weights do not fit the configuration"):
        load_model(path)
    save(replace(make_checkpoint(), config={}), path)
    with pytest.raises(ModelError, match="the weights do not fit the configuration"):
        load_model(path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path, average = tmp_path / "checkpoint.pt", Transducer(ModelConfig()).state_dict()
    average["joiner.out.bias"][3] = float("nan")
    save(replace(make_checkpoint(), config={"model": to_dict(ModelConfig())}, average=average), path)
    with pytest.raises(ModelError, match=r"joiner\.out\.bias is not finite"):
        load_model(path)


def test_of_many_weights_that_do_not_fit_the_first_is_named() -> None:
    model = torch.nn.Linear(2, 2)
    for weights, found in (
        ({}, 'Missing key(s) in state_dict: "weight"'),
        ({**model.state_dict(), "a": torch.zeros(1)}, 'Unexpected key(s) in state_dict: "a"'),
    ):
        with pytest.raises(RuntimeError) as caught:
            model.load_state_dict(weights)
        assert misfit(caught.value) == found


def test_a_run_configuration_of_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="here: config: unknown list"):
        run_config(make_checkpoint(), Path("here"))
