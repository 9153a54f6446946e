"""sherpa-onnx loads an exported bundle and gives the tokens and times of our runtime, on real speech."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onebest import Recognizer
from onebest.audio import read_blocks
from onebest.card import find_files, read_card
from onebest.recognizer import DEFAULT_MODEL

TESTS = Path(__file__).parents[1]
CLIPS = sorted((TESTS.parent / "samples").glob("*.flac"))
BUNDLES = ["float_bundle", "int8_bundle", *(["shipped_bundle"] if DEFAULT_MODEL.is_dir() else [])]


@pytest.fixture(scope="session")
def shipped_bundle():
    return DEFAULT_MODEL


def run_sherpa(folder, samples, work):
    """Run sherpa-onnx on a copy of the bundle whose files have the names that the script expects."""
    files = find_files(folder, read_card(folder))
    for part in ("encoder", "decoder", "joiner"):
        shutil.copy(getattr(files, part), work / f"{part}.onnx")
    shutil.copy(files.tokens, work / "tokens.txt")
    np.save(work / "samples.npy", samples)
    command = [sys.executable, TESTS / "runtime" / "run_sherpa.py", work, work / "samples.npy"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def padded(audio, sizes):
    """Return audio with what our runtime pads by itself, and the frame more that sherpa-onnx waits for."""
    chunks = -(-(len(audio) + 8000) // (sizes.chunk_frames * 160))
    samples = np.zeros((chunks * sizes.chunk_frames + sizes.pad_frames + 1) * 160 + 120, np.float32)
    samples[: len(audio)] = audio
    return samples


def test_there_are_clips():
    assert len(CLIPS) >= 2


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", BUNDLES)
def test_same_tokens_and_times(kind, clip, request, tmp_path):
    folder = request.getfixturevalue(kind)
    recognizer = Recognizer(folder)
    audio = np.concatenate(list(read_blocks(clip)))
    ours = recognizer.transcribe(audio)
    theirs = run_sherpa(folder, padded(audio, recognizer.bundle.sizes), tmp_path)
    assert [token.token for token in ours.tokens] == theirs["tokens"]
    np.testing.assert_allclose([token.start for token in ours.tokens], theirs["starts"], atol=1e-4)
    assert len(ours.tokens) > 5
    assert len({token.token for token in ours.tokens}) > 3
    assert ours.text
