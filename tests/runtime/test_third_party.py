"""Models in the layouts that icefall exports: the same tokens as in sherpa-onnx, alone and in a batch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from contract_models import ZIPFORMER2, make_conformer, make_zipformer2, write_contract_model
from tiny_model import make_audio

from onebest import ModelError, Recognizer

MAKERS = {"conformer": make_conformer, "zipformer2": make_zipformer2}
AUDIOS = [make_audio(seconds, seed) for seed, seconds in enumerate((6.0, 2.0, 3.3))]


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    return write_contract_model(tmp_path_factory.mktemp(request.param) / "model", MAKERS[request.param]())


def run_sherpa(folder, samples, tmp_path):
    np.save(tmp_path / "samples.npy", samples)
    command = [sys.executable, Path(__file__).with_name("run_sherpa.py"), folder, tmp_path / "samples.npy"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_same_tokens_and_times_as_sherpa_onnx(model, tmp_path):
    compare_with_sherpa(model, tmp_path)


@pytest.mark.parametrize("chunk", [8, 260])
def test_a_short_and_a_long_chunk_of_fixed_length(tmp_path, chunk):
    encoder = make_zipformer2(decode_chunk_len=chunk, T=chunk + 13)
    compare_with_sherpa(write_contract_model(tmp_path / "model", encoder), tmp_path)


def compare_with_sherpa(model, tmp_path):
    recognizer = Recognizer(model)
    sizes, audio = recognizer.bundle.sizes, AUDIOS[0]
    ours = recognizer.transcribe(audio)
    chunks = -(-(len(audio) + 8000) // (sizes.chunk_frames * 160))
    samples = np.zeros((chunks * sizes.chunk_frames + sizes.pad_frames + 1) * 160 + 120, np.float32)
    samples[: len(audio)] = audio
    theirs = run_sherpa(model, samples, tmp_path)
    assert [token.token for token in ours.tokens] == [token.replace("▁", " ") for token in theirs["tokens"]]
    np.testing.assert_allclose([token.start for token in ours.tokens], theirs["starts"], atol=1e-4)
    assert len(set(theirs["tokens"])) > 5
    return ours, theirs


def test_what_tells_words_apart_in_a_lexicon_is_no_token(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    size = Recognizer(model).bundle.sizes.vocab_size
    tokens = (model / "tokens.txt").read_text()
    (copy / "tokens.txt").write_text(f"{tokens}#0 {size}\n#1 {size + 1}\n")
    assert Recognizer(copy).transcribe(AUDIOS[1]) == Recognizer(model).transcribe(AUDIOS[1])
    for more in (f"#0 {size}\nx {size + 1}\n", f"x {size}\n"):
        (copy / "tokens.txt").write_text(tokens + more)
        with pytest.raises(ModelError, match=r"the tokens\.txt that was exported with the model"):
            Recognizer(copy)


def test_byte_level_pieces_are_text(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    ascii_pieces = ["▁", "▁a", "▁the", "'", "b", "c", "▁d", "e", "f", "▁g", "h", "▁I", "j", "k"]
    pieces = ["<blk>", "<sos/eos>", "<unk>", *ascii_pieces]
    pieces += ["▁ƋţŅ", "ƌŋţ", "▁ƋŞœƍĹĨ", "ƍĺŋ", "ƍŁŒ", "!", "?"]  # "你", "好", "中文", "日", "本" as bytes
    lines = [f"{piece} {token}\n" for token, piece in enumerate(pieces)]
    (copy / "tokens.txt").write_text("".join(lines), "utf-8")
    ours, theirs = compare_with_sherpa(copy, tmp_path)
    assert ours.text == theirs["text"]
    assert set("你好中日本") & set(ours.text)
    assert "".join(word.text for word in ours.words) == ours.text.replace(" ", "")


def test_a_batch_gives_what_each_gives_alone(model):
    recognizer = Recognizer(model)
    streams = [recognizer.stream() for _ in AUDIOS]
    for stream, audio in zip(streams, AUDIOS, strict=True):
        stream.push(audio)
        stream.end()
    while any(stream.ready for stream in streams):
        recognizer.advance(streams)
    for stream, audio in zip(streams, AUDIOS, strict=True):
        together, alone = stream.result, recognizer.transcribe(audio)
        assert [token[:2] for token in together.tokens] == [token[:2] for token in alone.tokens]
        assert together.text == alone.text
        confidences = ([token.confidence for token in result.tokens] for result in (together, alone))
        np.testing.assert_allclose(*confidences, atol=5e-3)


def test_every_state_matters(model, monkeypatch):
    recognizer = Recognizer(model)
    expected, encode = recognizer.transcribe(AUDIOS[0]), type(recognizer.bundle).encode
    for forgotten in range(len(recognizer.bundle.sizes.layout.caches)):

        def forgetful(bundle, windows, states, forgotten=forgotten):
            caches = list(states[0].caches)
            caches[forgotten] = np.zeros_like(caches[forgotten])
            return encode(bundle, windows, [states[0]._replace(caches=tuple(caches))])

        monkeypatch.setattr(type(recognizer.bundle), "encode", forgetful)
        assert recognizer.transcribe(AUDIOS[0]) != expected


@pytest.mark.parametrize(
    "encoder",
    [
        make_conformer(decode_chunk_len=" 64", encoder_dim="8 ", right_context=" 0"),
        make_zipformer2(T="45 ", num_heads="2, 4", encoder_dims=" 8, 12"),
    ],
)
def test_spaces_around_numbers_do_not_count(tmp_path, encoder):
    compare_with_sherpa(write_contract_model(tmp_path / "model", encoder), tmp_path)


def refuse(folder, encoder, says):
    onnx.save(encoder, folder / "encoder.onnx")
    with pytest.raises(ModelError, match=says):
        Recognizer(folder)


@pytest.fixture
def zipformer2_folder(tmp_path):
    return write_contract_model(tmp_path / "model", make_zipformer2())


@pytest.mark.parametrize(
    "key", [key for key in ZIPFORMER2 if key not in ("version", "model_author", "comment")]
)
def test_a_missing_key(zipformer2_folder, key):
    model = make_zipformer2()
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept)
    refuse(zipformer2_folder, model, f"lacks the metadata key '{key}'")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_heads", "2,x", "'num_heads' is '2,x', expected positive whole numbers"),
        ("num_heads", "2", r"stacks differ in number \(.*num_heads 1"),
        ("encoder_dims", "8,16", "input 'cached_nonlin_attn_1' is"),
        ("T", "31", "expected T to be at least decode_chunk_len"),
        ("decode_chunk_len", "36", "output 'encoder_out' is"),
        ("model_type", "zipformer", "this version runs 'conformer', 'zipformer2'"),
    ],
)
def test_a_wrong_key(zipformer2_folder, key, value, says):
    model = make_zipformer2()
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value
    refuse(zipformer2_folder, model, says)


def test_the_latency_of_a_fixed_graph_is_its_own(model):
    with pytest.raises(ModelError, match="chunk length"):
        Recognizer(model, chunk_ms=960)
    with pytest.raises(ModelError, match="left context"):
        Recognizer(model, left_context=5)
