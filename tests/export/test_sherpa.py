"""sherpa-onnx loads exported bundles, int8 ones too, and gives the tokens and times of our runtime.

It brings an onnxruntime of its own. Another series of onnxruntime rounds int8 products otherwise, which now
and then turns a token; so ours is held to the same series.
"""

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
INT8_BUNDLES = ["int8_bundle", *(["shipped_bundle"] if DEFAULT_MODEL.is_dir() else [])]
PARTS = ("encoder", "decoder", "joiner")


@pytest.fixture(scope="session")
def shipped_bundle():
    return DEFAULT_MODEL


def copy_bundle(folder, work):
    """Copy a bundle without its card to the names that the script for sherpa-onnx expects."""
    files = find_files(folder, read_card(folder))
    work.mkdir()
    for part in PARTS:
        shutil.copy(getattr(files, part), work / f"{part}.onnx")
    shutil.copy(files.tokens, work / "tokens.txt")
    return work


def run_sherpa(work, clip, sizes):
    """Run sherpa-onnx on a clip with what our runtime pads, and the frame more that it waits for."""
    audio = np.concatenate(list(read_blocks(clip)))
    chunks = -(-(len(audio) + 8000) // (sizes.chunk_frames * 160))
    samples = np.zeros((chunks * sizes.chunk_frames + sizes.pad_frames + 1) * 160 + 120, np.float32)
    samples[: len(audio)] = audio
    return decode_in_sherpa(work, samples)


def decode_in_sherpa(work, samples):
    """Return what sherpa-onnx finds in samples, all that it gets."""
    np.save(work / "samples.npy", samples)
    command = [sys.executable, TESTS / "runtime" / "run_sherpa.py", work, work / "samples.npy"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def check_same_tokens(ours, work, clip, sizes):
    """Compare tokens and times of a result with what sherpa-onnx finds in the clip."""
    theirs = run_sherpa(work, clip, sizes)
    assert [token.token for token in ours.tokens] == theirs["tokens"]
    np.testing.assert_allclose([token.start for token in ours.tokens], theirs["starts"], atol=1e-4)
    assert len(ours.tokens) > 5


def test_there_are_clips():
    assert len(CLIPS) >= 2


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["float_bundle", *INT8_BUNDLES])
def test_same_tokens_and_times(kind, clip, request, tmp_path):
    work = copy_bundle(request.getfixturevalue(kind), tmp_path / "model")
    recognizer = Recognizer(work)
    ours = recognizer.transcribe(clip)
    check_same_tokens(ours, work, clip, recognizer.bundle.sizes)
    assert len({token.token for token in ours.tokens}) > 3
    assert ours.text
