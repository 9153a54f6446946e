"""Fixtures of the runtime's tests: the tiny model, written once a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import write_bundle

from onebest import Recognizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with the tiny model. Not to be changed; ``tiny_copy`` may be."""
    return write_bundle(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_copy(tmp_path):
    return write_bundle(tmp_path / "model")


@pytest.fixture(scope="session")
def recognizer(tiny_folder):
    return Recognizer(tiny_folder)
