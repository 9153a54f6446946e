"""A copy of a bundle at another latency: the same numbers, other metadata; sherpa-onnx runs it as we do."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
from test_sherpa import CLIPS, check_same_tokens, copy_bundle, decode_in_sherpa

from onebest import Recognizer
from onebest.audio import read_blocks
from onebest.bundle import load_bundle
from onebest.cli import main
from onebest.recognizer import DEFAULT_MODEL

CLIP = next(clip for clip in CLIPS if clip.stem == "librispeech-2412-153954-0000")


def test_only_the_latency_differs(int8_bundle, tmp_path, capsys):
    target = tmp_path / "deeper" / "model"
    assert main(["copy-latency", str(int8_bundle), str(target), "--chunk-ms", "320", "--left-ms", "400"]) == 0
    assert "320 ms a chunk" in capsys.readouterr().out
    sizes = load_bundle(target).sizes
    assert (sizes.chunk_frames, sizes.left_context) == (32, 10)
    for name in ("decoder.int8.onnx", "joiner.int8.onnx", "tokens.txt"):
        assert (target / name).read_bytes() == (int8_bundle / name).read_bytes()
    old, new = (onnx.load(str(folder / "encoder.int8.onnx")) for folder in (int8_bundle, target))
    assert old.graph == new.graph
    before, after = ({e.key: e.value for e in graph.metadata_props} for graph in (old, new))
    changed = {key: after[key] for key in after if after[key] != before.get(key)}
    assert changed == {"T": "35", "decode_chunk_len": "32", "chunk_size": "8", "left_context": "10"}
    card = json.loads((target / "card.json").read_text())
    assert (card["architecture"]["chunk_frames"], card["architecture"]["left_frames"]) == (8, 10)
    assert card["name"] == "tiny"


@pytest.mark.parametrize("chunk_ms", [320, 1280])
def test_sherpa_gives_our_tokens_at_that_latency(int8_bundle, tmp_path, chunk_ms):
    target = tmp_path / "copy"
    assert main(["copy-latency", str(int8_bundle), str(target), "--chunk-ms", str(chunk_ms)]) == 0
    ours = Recognizer(int8_bundle, chunk_ms=chunk_ms)
    expected = ours.transcribe(CLIPS[0])
    check_same_tokens(expected, copy_bundle(target, tmp_path / "model"), CLIPS[0], ours.bundle.sizes)
    own = Recognizer(int8_bundle).transcribe(CLIPS[0])
    assert expected.tokens != own.tokens


def test_the_silence_that_it_names_keeps_the_last_word(tmp_path, capsys):
    """The speech ends in a word whose end lies in a window that 1.2 s of silence do not fill."""
    target = tmp_path / "copy"
    assert main(["copy-latency", str(DEFAULT_MODEL), str(target), "--chunk-ms", "1280"]) == 0
    seconds = float(re.search(r"add (\S+) s of silence", capsys.readouterr().out)[1])
    speech = np.concatenate(list(read_blocks(CLIP)))[:145000]
    heard = np.concatenate([speech, np.zeros(round(seconds * 16000), np.float32)])
    expected = Recognizer(target, start_margin=0).transcribe(speech)
    theirs = decode_in_sherpa(copy_bundle(target, tmp_path / "model"), heard)
    assert theirs["tokens"] == [token.token for token in expected.tokens]


def test_a_fetched_model(int8_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEBEST_CACHE", str(tmp_path / "cache"))
    shutil.copytree(int8_bundle, tmp_path / "cache" / "owner" / "name")
    assert main(["copy-latency", "owner/name", str(tmp_path / "copy"), "--chunk-ms", "320"]) == 0
    assert load_bundle(tmp_path / "copy").sizes.chunk_frames == 32


def test_a_bundle_of_links(int8_bundle, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for path in int8_bundle.iterdir():
        (links / path.name).symlink_to(path)
    for source, target in ((int8_bundle, tmp_path / "one"), (links, tmp_path / "other")):
        assert main(["copy-latency", str(source), str(target), "--chunk-ms", "320"]) == 0
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "other" / path.name).read_bytes() == path.read_bytes()


def test_a_bundle_without_a_card_stays_without(int8_bundle, tmp_path):
    plain = copy_bundle(int8_bundle, tmp_path / "plain")
    assert main(["copy-latency", str(plain), str(tmp_path / "copy"), "--chunk-ms", "80"]) == 0
    assert load_bundle(tmp_path / "copy").sizes.chunk_frames == 8
    assert not (tmp_path / "copy" / "card.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk-ms", "100"], "--chunk-ms is 100. It must be a multiple of 40"),
        (["--chunk-ms", "320", "--left-ms", "0"], "--left-ms is 0"),
    ],
)
def test_wrong_options_are_one_line(int8_bundle, tmp_path, capsys, options, message):
    assert main(["copy-latency", str(int8_bundle), str(tmp_path / "copy"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_exists_is_kept_and_what_is_missing_is_said(int8_bundle, tmp_path, capsys):
    assert main(["copy-latency", str(int8_bundle), str(tmp_path), "--chunk-ms", "320"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["copy-latency", str(tmp_path / "a"), str(tmp_path / "b"), "--chunk-ms", "320"]) == 1
    assert "no such folder" in capsys.readouterr().err
