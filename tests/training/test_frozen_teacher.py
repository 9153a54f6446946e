"""Teachers that run beside the student: what can be one, what it says, what is refused, and runs with one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse.cut import CutSet
from runs import read_log
from small_models import make_batch
from tone_corpus import ToneCorpus, make_stage, tiny_config

from onebest.errors import ConfigError, ModelError
from onebest_training.checkpoint import load_model
from onebest_training.config import (
    AugmentConfig,
    BlockConfig,
    DataConfig,
    EncoderConfig,
    LossConfig,
    SourceConfig,
    TrainConfig,
)
from onebest_training.encoder import Encoder, frames_out
from onebest_training.features import FeatureStore
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
    batch = make_batch()
    teacher = load_teacher(tmp_path / "encoder.pt", b"", CPU)
    frames, lengths = teacher.encode(batch)
    torch.testing.assert_close(frames, encoder(batch.features, batch.frame_lengths, 0, 0))
    assert torch.equal(lengths, batch.frame_lengths)
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
    with pytest.raises(
        ConfigError, match=r"does not fit the configured model: .* for embedding.weight: .*]\)$"
    ):
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


def write_frames(corpus: ToneCorpus, folder: Path, leave_out: int = 0) -> Path:
    """A store of the frames that an encoder might give: two values every 40 ms, one frame more than ours."""
    cuts, frames = [], 0
    for cut in FeatureStore(corpus.store).cuts[leave_out:]:
        count = frames_out(cut.custom["num_frames"]) + 1
        cut.custom = {**cut.custom, "first_frame": frames, "num_frames": count}
        cuts.append(cut)
        frames += count
    folder.mkdir()
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    np.random.default_rng(0).standard_normal((frames, 2)).astype(np.float16).tofile(folder / "features.f16")
    front_end = {"encoder": "whisper:somewhere", "width": 2, "digest": ""}
    (folder / "store.json").write_text(json.dumps({"front_end": front_end, "frames": frames}))
    return folder


def with_frames(config: TrainConfig, store: Path) -> DataConfig:
    (source,) = config.data.train
    return replace(config.data, train=(replace(source, teacher_store=str(store)),))


def test_a_teacher_reads_frames_of_its_own(corpus: ToneCorpus, tmp_path: Path) -> None:
    frames = write_frames(corpus, tmp_path / "frames")
    blocks = (BlockConfig(1, 16),)
    encoder = EncoderConfig(8, 2, blocks=blocks, pretrained="whisper:somewhere", inputs=2)
    base = tiny_config(corpus, make_stage("a", 1, augment=AugmentConfig()))
    taught = (replace(base.data.train[0], store=str(frames)),)
    own = replace(base, model=replace(base.model, encoder=encoder), data=replace(base.data, train=taught))
    own = replace(own, data=replace(own.data, dev=str(frames), noise=""))
    teacher = Trainer(own, tmp_path / "teacher")
    teacher.folder.mkdir(exist_ok=True)
    teacher.save()
    loss = LossConfig(0.0, collapsed=0.1, lattice=0.1, embedding=1.0, teacher=str(teacher.path))
    stage = make_stage("b", 2, augment=AugmentConfig(), loss=loss)
    student = replace(base, model=replace(base.model, embedding_width=8), stages=(stage,), log_steps=1)
    with pytest.raises(ConfigError, match="Make stores of that with: onebest prepare --front-end"):
        Trainer(student, tmp_path / "without")
    Trainer(replace(student, data=with_frames(student, frames)), tmp_path / "student").run()
    rows = [row for row in read_log(tmp_path / "student") if "loss" in row]
    assert len(rows) == 2
    assert all(row[name] > 0 for row in rows for name in ("collapsed", "lattice", "embedding"))


def test_stored_frames_are_embeddings_themselves(
    corpus: ToneCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = write_frames(corpus, tmp_path / "frames", leave_out=3)
    stage = make_stage("a", 2, augment=AugmentConfig(), loss=LossConfig(0.0, embedding=1.0))
    base = tiny_config(corpus, make_stage("", 1, augment=AugmentConfig()), log_steps=1)
    config = replace(base, data=with_frames(base, frames), stages=(stage,))
    good = replace(config, model=replace(config.model, embedding_width=2))
    trainer = Trainer(good, tmp_path / "run")
    assert "3 cuts left out: not in the teacher's store" in caplog.text
    trainer.run()
    assert read_log(tmp_path / "run")[0]["embedding"] > 0
    with pytest.raises(ConfigError, match="embedding_width is 5, but the embeddings have 2"):
        Trainer(replace(config, model=replace(config.model, embedding_width=5)), tmp_path / "other").run()


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
