"""The same bundle and the same audio give the same tokens in sherpa-onnx."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_model import CHUNK, PAD, make_audio, make_encoder, write_bundle

from onebest import Recognizer


def run_sherpa(folder, samples, tmp_path):
    np.save(tmp_path / "samples.npy", samples)
    script = Path(__file__).with_name("run_sherpa.py")
    command = [sys.executable, script, folder, tmp_path / "samples.npy"]
    done = subprocess.run(command, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("seconds", "chunk"), [(0.5, CHUNK), (6.0, CHUNK), (6.0, 64)])
def test_same_tokens_and_times(tmp_path, seconds, chunk):
    folder = write_bundle(tmp_path / "model", make_encoder(chunk=chunk))
    recognizer = Recognizer(folder)
    audio = make_audio(seconds, seed=4)
    ours = recognizer.transcribe(audio)
    # What the runtime pads by itself, and one frame more: sherpa-onnx waits for one that it does not read.
    chunks = -(-(len(audio) + 8000) // (chunk * 160))
    samples = np.zeros((chunks * chunk + PAD + 1) * 160 + 120, np.float32)
    samples[: len(audio)] = audio
    theirs = run_sherpa(folder, samples, tmp_path)
    assert [token.token for token in ours.tokens] == theirs["tokens"]
    np.testing.assert_allclose([token.start for token in ours.tokens], theirs["starts"], atol=1e-4)
    assert len(ours.tokens) > 5
