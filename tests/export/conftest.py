"""Fixtures of the export's tests: the tiny checkpoint and its bundles, written once a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_checkpoint import write_checkpoint

from onebest_export.bundle import ExportOptions, write_bundle
from onebest_export.precision import quantize_graphs
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


@pytest.fixture(scope="session")
def int8_graphs(float_bundle, tmp_path_factory):
    """A folder with the int8 graphs before onnxruntime optimised them."""
    folder = tmp_path_factory.mktemp("graphs")
    quantize_graphs(float_bundle, folder)
    return folder


@pytest.fixture
def float_copy(float_bundle, tmp_path):
    """The float32 graphs and tokens in a folder that may be written to."""
    folder = tmp_path / "float"
    folder.mkdir()
    for path in float_bundle.iterdir():
        if path.name != "card.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def spoken(tmp_path):
    """A folder like LibriSpeech's with two short recordings."""
    folder = tmp_path / "spoken"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        audio = rng.normal(size=24000).astype(np.float32) * 0.1
        soundfile.write(folder / f"one-1-000{number}.wav", audio, 16000)
    lines = "one-1-0000 the cat sat\none-1-0001 a dog at the sea\n"
    (folder / "one-1.trans.txt").write_text(lines)
    return folder
