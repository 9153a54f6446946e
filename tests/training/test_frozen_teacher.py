"""Teachers that run beside the student: what can be one, what it says, what is refused, and runs with one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import read_log
from tone_corpus import ToneCorpus, make_stage, tiny_config

from onebest.errors import ConfigError, ModelError
from onebest_training.checkpoint import load_model
from onebest_training.config import BlockConfig, EncoderConfig, LossConfig, SourceConfig, TrainConfig
from onebest_training.encoder import Encoder
from onebest_training.frozen_teacher import load_teacher
from onebest_training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(corpus: ToneCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of two steps, wider than the students. Not to be changed."""
    folder = tmp_path_factory.mktemp("teacher")
    config = tiny_config(corpus, make_stage("all", 2), evaluate_steps=100)
    encoder = replace(config.model.encoder, width=32)
    Trainer(replace(config, model=replace(config.model, encoder=encoder)), folder).run()
    return folder / "checkpoint.pt"


def write_encoder(path: Path) -> Encoder:
    torch.manual_seed(3)
    encoder = Encoder(EncoderConfig(128, 2, blocks=(BlockConfig(2, 48), BlockConfig(1, 40, 5))))
    torch.save(encoder.state_dict(), path)
    return encoder.eval()


@torch.no_grad()
def test_weights_of_an_encoder_tell_its_sizes(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder.pt")
    features, lengths = torch.randn(2, 31, 80), torch.tensor([7, 4])
    teacher = load_teacher(tmp_path / "encoder.pt", b"", CPU)
    torch.testing.assert_close(teacher.encode(features, lengths), encoder(features, lengths, 0, 0))
    assert teacher.transducer is None
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())


def test_a_checkpoint_is_its_averaged_model(corpus: ToneCorpus, checkpoint: Path) -> None:
    teacher = load_teacher(checkpoint, corpus.tokens.read_bytes(), CPU)
    assert teacher.transducer is not None
    assert not teacher.transducer.training
    for name, value in load_model(checkpoint)[0].state_dict().items():
        assert torch.equal(teacher.transducer.state_dict()[name], value)


def run_with(corpus: ToneCorpus, folder: Path, width: int = 0, **loss: float | str) -> Trainer:
    stage = make_stage("a", 2, chunk_frames=(4,), loss=LossConfig(**{"ctc": 0.0, **loss}))
    config: TrainConfig = tiny_config(corpus, stage, log_steps=1, evaluate_steps=100)
    trainer = Trainer(replace(config, model=replace(config.model, embedding_width=width)), folder)
    trainer.run()
    return trainer


def test_a_run_learns_from_a_teacher(corpus: ToneCorpus, checkpoint: Path, tmp_path: Path) -> None:
    weights = {"lattice": 0.1, "collapsed": 0.1, "embedding": 1.0}
    trainer = run_with(corpus, tmp_path, 32, **weights, teacher=str(checkpoint))
    rows = [row for row in read_log(tmp_path) if "loss" in row]
    assert all(row[name] > 0 for row in rows for name in weights)
    trained = load_model(tmp_path / "checkpoint.pt")[0]
    assert trained.embedding is not None
    assert torch.equal(trained.embedding.weight, trainer.average["embedding.weight"])


def test_embeddings_first_then_all_else(corpus: ToneCorpus, tmp_path: Path) -> None:
    """A run on an encoder's embeddings alone, from which another starts that has no head for them."""
    write_encoder(tmp_path / "encoder.pt")
    options = {"embedding": 1.0, "embedding_delay": 2, "teacher": str(tmp_path / "encoder.pt")}
    first = run_with(corpus, tmp_path / "first", 128, **options)
    config = tiny_config(corpus, make_stage("b", 1), initial_model=str(first.path))
    second = Trainer(config, tmp_path / "second")
    assert second.model.embedding is None
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, first.average[name])
    other = replace(config, model=replace(config.model, embedding_width=8))
    with pytest.raises(ConfigError, match="does not fit the configured model"):
        Trainer(other, tmp_path / "third")


def test_speech_without_text_teaches_what_needs_no_labels(corpus: ToneCorpus, tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.pt")
    loss = LossConfig(
        0.0, embedding=1.0, self_ctc=0.1, self_distillation=0.1, teacher=str(tmp_path / "encoder.pt")
    )
    stage = make_stage("a", 2, chunk_frames=(4,), loss=loss)
    config = tiny_config(corpus, make_stage("", 1), log_steps=1, evaluate_steps=100)
    data = replace(config.data, train=(SourceConfig(str(corpus.store), labels="none"),))
    model = replace(config.model, embedding_width=128)
    Trainer(replace(config, data=data, model=model, stages=(stage,)), tmp_path / "run").run()
    rows = [row for row in read_log(tmp_path / "run") if "loss" in row]
    assert all(row["embedding"] > 0 and row["self_ctc"] > 0 and row["left_out"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("width", "loss", "message"),
    [
        (16, {"embedding": 1.0}, r"model\.embedding_width is 16, but .*encoder\.pt has embeddings of 128"),
        (0, {"collapsed": 1.0}, "is an encoder; collapsed and lattice need a transducer"),
    ],
)
def test_teachers_that_do_not_serve_are_refused(
    corpus: ToneCorpus, tmp_path: Path, width: int, loss: dict[str, float], message: str
) -> None:
    write_encoder(tmp_path / "encoder.pt")
    with pytest.raises(ConfigError, match=message):
        run_with(corpus, tmp_path / "run", width, **loss, teacher=str(tmp_path / "encoder.pt"))


def test_teachers_of_another_vocabulary_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="has another vocabulary"):
        load_teacher(checkpoint, b"other", CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "cannot be read as a teacher"),
        (torch.zeros(3), "neither a checkpoint nor the weights"),
        ({"norm.weight": torch.ones(8)}, "not the weights of a whole encoder"),
        ({"norm.weight": 3}, "not the weights of a whole encoder"),
    ],
)
def test_files_that_hold_no_teacher_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "teacher.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        load_teacher(path, b"", CPU)
