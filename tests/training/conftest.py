"""Fixtures of the training's tests: a corpus of tones, made once a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tone_corpus import ToneCorpus, make_corpus, make_stage, tiny_config

from onebest_training.config import TrainConfig
from onebest_training.trainer import Trainer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums come out the same to the last bit only if as many threads share them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ToneCorpus:
    """Manifest, feature stores and vocabulary of spelled tones. Not to be changed."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def config(corpus: ToneCorpus) -> TrainConfig:
    """Two stages, over more than two passes."""
    return tiny_config(corpus, make_stage("heads", 5, trains="heads"), make_stage("all", 11, decay_steps=4))


@pytest.fixture(scope="session")
def unbroken(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ``config`` from beginning to end. Not to be changed."""
    folder = tmp_path_factory.mktemp("unbroken")
    trainer = Trainer(config, folder)
    trainer.run()
    assert trainer.position.number > 1
    return folder
