"""Fixtures of the export's tests: the tiny checkpoint and its bundles, written once a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_checkpoint import write_checkpoint

from onebest_export.bundle import ExportOptions, write_bundle
from onebest_training.checkpoint import Checkpoint, load_model
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import TextEncoder


class Tiny(NamedTuple):
    path: Path
    model: Transducer
    tokens: TextEncoder
    checkpoint: Checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny checkpoint's file and what is in it. Not to be changed; ``tiny_copy`` may be."""
    path = write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return Tiny(path, *load_model(path))


@pytest.fixture
def tiny_copy(tiny):
    return Tiny(tiny.path, *load_model(tiny.path))


@pytest.fixture(scope="session")
def float_bundle(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("float") / "model"
    options = ExportOptions("tiny", chunk_frames=4, left_frames=6, int8=False)
    write_bundle(tiny.model, tiny.tokens, tiny.checkpoint, folder, options)
    return folder


@pytest.fixture(scope="session")
def int8_bundle(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "model"
    options = ExportOptions("tiny", chunk_frames=4, left_frames=6, notes={"wer": {"dev": 0.5}})
    write_bundle(tiny.model, tiny.tokens, tiny.checkpoint, folder, options)
    return folder
