"""Models cut from larger ones."""

from pathlib import Path

import pytest
import torch
from small_models import make_batch, make_model

from onebest.cli import main
from onebest.errors import ConfigError
from onebest_training.checkpoint import Checkpoint, Position, load_model, save
from onebest_training.prune import prune
from onebest_training.strict import to_dict
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import train_vocabulary


@pytest.fixture
def tokens(tmp_path: Path) -> bytes:
    path = tmp_path / "bpe.model"
    train_vocabulary(["a b ab ba"] * 8, path, 12)
    return path.read_bytes()


def save_model(model: Transducer, tokens: bytes, path: Path) -> Path:
    config = {"model": to_dict(model.config), "seed": 3}
    position = Position(7, 1, 2, 3, 4, 5.5, 6.5)
    save(Checkpoint(config, tokens, {"a": torch.ones(1)}, model.state_dict(), {"b": 1}, position), path)
    return path


def test_units_that_do_nothing_go_first(tokens: bytes, tmp_path: Path) -> None:
    model, batch = make_model().eval(), make_batch()
    for block in model.encoder.blocks:
        with torch.no_grad():
            block.feed_forward_out.weight[:, 1::4] = 0
            block.feed_forward_in.weight[2::4] = 0
            block.feed_forward_in.bias[2::4] = 0
    path, output = save_model(model, tokens, tmp_path / "whole.pt"), tmp_path / "half.pt"
    assert main(["prune", str(path), "--output", str(output)]) == 0
    smaller, _, checkpoint = load_model(output)
    assert [run.feed_forward for run in smaller.encoder.config.blocks] == [12, 8]
    assert (checkpoint.config["seed"], checkpoint.weights, checkpoint.optimizer) == (3, {}, {})
    with torch.no_grad():
        for chunk in (0, 4):
            found, expected = (
                each.encoder(batch.features, batch.frame_lengths, chunk, 8) for each in (smaller, model)
            )
            torch.testing.assert_close(found, expected)


def test_all_units_are_the_model_itself(tokens: bytes, tmp_path: Path) -> None:
    model = make_model()
    same = prune(save_model(model, tokens, tmp_path / "whole.pt"), 1.0)
    assert same.config["model"] == to_dict(model.config)
    torch.testing.assert_close(same.average, dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_a_part_that_cannot_be_kept(tokens: bytes, tmp_path: Path, keep: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        prune(save_model(make_model(), tokens, tmp_path / "whole.pt"), keep)
