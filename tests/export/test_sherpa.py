"""sherpa-onnx loads exported bundles and gives the tokens and times of our runtime, on real speech.

It brings an onnxruntime of its own, whose float32 sums differ from ours in the last digits. Products in int8
round the activations and make that a difference of a hundredth, which now and then turns a token. So tokens
and times are held to equality with the int8 weights multiplied in float32, and to agreement as the bundle is.
"""

import json
import shutil
import subprocess
import sys
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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


def multiply_in_float(source, target):
    """Write a copy of a graph with its int8 weights in float32 products."""
    model = onnx.load(str(source))
    nodes = model.graph.node
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    made_by = {output: node for node in nodes for output in node.output}
    used_by = {name: node for node in nodes for name in node.input}
    for product in [node for node in nodes if node.op_type == "MatMulInteger"]:
        name = product.input[1].removesuffix("_quantized")
        weight = arrays[f"{name}_quantized"].astype(np.float32) * arrays[f"{name}_scale"]
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
        cast = used_by[product.output[0]]
        scaled = used_by[cast.output[0]]
        assert (cast.op_type, scaled.op_type) == ("Cast", "Mul")
        scaled.op_type = "MatMul"
        scaled.input[:] = [made_by[product.input[0]].input[0], name]
        nodes.remove(product)
        nodes.remove(cast)
    onnx.save(model, str(target))


def copy_bundle(folder, work, copy):
    """Copy a bundle without its card to the names that the script for sherpa-onnx expects."""
    files = find_files(folder, read_card(folder))
    work.mkdir()
    for part in PARTS:
        copy(getattr(files, part), work / f"{part}.onnx")
    shutil.copy(files.tokens, work / "tokens.txt")
    return work


def run_sherpa(work, clip, sizes):
    """Run sherpa-onnx on a clip with what our runtime pads, and the frame more that it waits for."""
    audio = np.concatenate(list(read_blocks(clip)))
    chunks = -(-(len(audio) + 8000) // (sizes.chunk_frames * 160))
    samples = np.zeros((chunks * sizes.chunk_frames + sizes.pad_frames + 1) * 160 + 120, np.float32)
    samples[: len(audio)] = audio
    np.save(work / "samples.npy", samples)
    command = [sys.executable, TESTS / "runtime" / "run_sherpa.py", work, work / "samples.npy"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_there_are_clips():
    assert len(CLIPS) >= 2


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["float_bundle", *INT8_BUNDLES])
def test_same_tokens_and_times(kind, clip, request, tmp_path):
    work = copy_bundle(request.getfixturevalue(kind), tmp_path / "model", multiply_in_float)
    recognizer = Recognizer(work)
    ours = recognizer.transcribe(clip)
    theirs = run_sherpa(work, clip, recognizer.bundle.sizes)
    assert [token.token for token in ours.tokens] == theirs["tokens"]
    np.testing.assert_allclose([token.start for token in ours.tokens], theirs["starts"], atol=1e-4)
    assert len(ours.tokens) > 5
    assert len({token.token for token in ours.tokens}) > 3
    assert ours.text


@pytest.mark.parametrize("kind", INT8_BUNDLES)
def test_int8_agrees(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    work = copy_bundle(folder, tmp_path / "model", shutil.copy)
    recognizer = Recognizer(folder)
    ours, theirs = [], []
    for clip in CLIPS:
        ours += [token.token for token in recognizer.transcribe(clip).tokens]
        theirs += run_sherpa(work, clip, recognizer.bundle.sizes)["tokens"]
    assert SequenceMatcher(None, ours, theirs, autojunk=False).ratio() > 0.9
