"""Runs that learn from stored targets: from scratch, from a trained student, and over a kill."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import KilledError, read_log, stop_after
from target_paths import make_path
from target_stores import write_targets
from tone_corpus import PIECES, ToneCorpus, make_stage, tiny_config

from onebest.normalize import normalize_text
from onebest_training.checkpoint import load
from onebest_training.config import AugmentConfig, LossConfig, SourceConfig, TrainConfig
from onebest_training.encoder import frames_out
from onebest_training.features import FeatureStore
from onebest_training.targets import TeacherPath
from onebest_training.trainer import Trainer
from onebest_training.vocabulary import TextEncoder


def sure_path(labels: list[int], num_frames: int, score: float) -> TeacherPath:
    """Labels spread evenly, with most of the mass on what the path does."""
    frames = [(2 * u + 1) * num_frames // (2 * len(labels)) for u in range(len(labels))]
    log_probs = torch.full((num_frames, len(labels) + 1, PIECES), 0.1 / (PIECES - 1)).log()
    log_probs[:, :, 0] = np.log(0.9)
    for u, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        log_probs[frame, u] = np.log(0.1 / (PIECES - 1))
        log_probs[frame, u, label] = np.log(0.9)
    return make_path(labels, frames, num_frames, log_probs.double(), 4, score)


@pytest.fixture(scope="module")
def targets(corpus: ToneCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hypotheses of every cut but each fifth: its text, and its text without the last label."""
    tokens, paths = TextEncoder(corpus.tokens.read_bytes()), {}
    for index, cut in enumerate(FeatureStore(corpus.store).cuts):
        labels = tokens.encode(normalize_text(cut.supervisions[0].text))
        frames = frames_out(cut.custom["num_frames"])
        if index % 5:
            paths[cut.id] = [sure_path(labels, frames, -1.0), sure_path(labels[:-1], frames, -3.0)]
    return write_targets(tmp_path_factory.mktemp("targets") / "store", corpus, paths)


LOSS = LossConfig(
    0.3, 1.0, band=4, path=1.0, sequence=0.1, shift=1, window=2, hypotheses=2, band_around="path"
)


def config_with(corpus: ToneCorpus, targets: Path, steps: int, **options: object) -> TrainConfig:
    stage = make_stage("distil", steps, learning_rate=1e-2, loss=LOSS, augment=AugmentConfig())
    config = tiny_config(corpus, make_stage("", 1), log_steps=5, evaluate_steps=1000, **options)
    sources = (SourceConfig(str(corpus.store), targets=str(targets)),)
    return replace(config, data=replace(config.data, train=sources), stages=(stage,))


def path_losses(folder: Path) -> list[float]:
    return [row["path"] for row in read_log(folder) if "path" in row]


def test_a_student_learns_from_scratch_and_goes_on_from_there(
    corpus: ToneCorpus, targets: Path, tmp_path: Path
) -> None:
    Trainer(config_with(corpus, targets, 25), tmp_path / "first").run()
    losses = path_losses(tmp_path / "first")
    assert len(losses) == 5
    assert losses[-1] < 0.5 * losses[0]
    first = str(tmp_path / "first" / "checkpoint.pt")
    Trainer(config_with(corpus, targets, 5, initial_model=first), tmp_path / "second").run()
    assert path_losses(tmp_path / "second")[0] < 0.7 * losses[0]


def test_a_killed_run_ends_as_an_unbroken_one(corpus: ToneCorpus, targets: Path, tmp_path: Path) -> None:
    config = config_with(corpus, targets, 4)
    Trainer(config, tmp_path / "unbroken").run()
    trainer = Trainer(config, tmp_path / "broken")
    with pytest.raises(KilledError):
        trainer.run(stop_after(2, trainer))
    Trainer(config, tmp_path / "broken").run()
    unbroken, broken = (load(tmp_path / name / "checkpoint.pt") for name in ("unbroken", "broken"))
    for name, value in unbroken.weights.items():
        assert torch.equal(broken.weights[name], value)
