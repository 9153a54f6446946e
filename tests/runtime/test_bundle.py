import json
import re

import numpy as np
import onnx
import pytest
from tiny_model import (
    CHUNK,
    SYMBOLS,
    make_audio,
    make_decoder,
    make_encoder,
    make_joiner,
    write_card,
    write_tokens,
)

from onebest.bundle import load_bundle
from onebest.errors import ModelError
from onebest.frontend import SPEC
from onebest.recognizer import Recognizer


def refuse(folder, says):
    with pytest.raises(ModelError, match=says) as caught:
        load_bundle(folder)
    assert re.search(r"\. \w.*\.$", str(caught.value)), "the message ends in what to do"


def replace_model(folder, part, model):
    onnx.save(model, folder / f"{part}.onnx")
    (folder / "card.json").unlink(missing_ok=True)


def test_sizes_come_from_the_model(tiny_folder):
    bundle = load_bundle(tiny_folder)
    assert bundle.name == "tiny"
    assert bundle.sizes.window_frames == CHUNK + 3
    assert bundle.sizes.vocab_size == len(bundle.vocabulary) == len(SYMBOLS)


def test_a_folder_without_a_card_loads(tiny_copy, tiny_folder):
    (tiny_copy / "card.json").unlink()
    plain = Recognizer(tiny_copy)
    assert plain.bundle.name == "model"
    assert plain.transcribe(make_audio()) == Recognizer(tiny_folder).transcribe(make_audio())


def test_of_two_float_files_the_one_of_single_precision_is_taken(tiny_copy):
    (tiny_copy / "card.json").unlink()
    for part in ("encoder", "joiner"):
        (tiny_copy / f"{part}.fp16.onnx").write_bytes(b"")
    (tiny_copy / "decoder.onnx").rename(tiny_copy / "decoder.fp16.onnx")
    bundle = load_bundle(tiny_copy)
    names = [graph.path.name for graph in (bundle.encoder, bundle.decoder, bundle.joiner)]
    assert names == ["encoder.onnx", "decoder.fp16.onnx", "joiner.onnx"]


def test_the_int8_file_is_taken_where_there_are_two(tiny_copy):
    (tiny_copy / "card.json").unlink()
    (tiny_copy / "encoder.onnx").rename(tiny_copy / "encoder.int8.onnx")
    (tiny_copy / "encoder.onnx").write_bytes(b"")
    assert load_bundle(tiny_copy).encoder.path.name == "encoder.int8.onnx"


def test_names_of_inputs_are_free(tiny_copy, tiny_folder):
    model = make_joiner()
    model.graph.input[0].name = model.graph.node[0].input[0] = "something"
    replace_model(tiny_copy, "joiner", model)
    assert Recognizer(tiny_copy).transcribe(make_audio()) == Recognizer(tiny_folder).transcribe(make_audio())


def test_no_folder(tmp_path):
    refuse(tmp_path / "nowhere", "nowhere: no such folder")


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"])
def test_a_missing_file(tiny_copy, name):
    (tiny_copy / name).unlink()
    refuse(tiny_copy, f"{name}: no such file")
    (tiny_copy / "card.json").unlink()
    refuse(tiny_copy, "found none")


def test_two_models_in_one_folder(tiny_copy):
    (tiny_copy / "card.json").unlink()
    (tiny_copy / "encoder-2.onnx").write_bytes(b"")
    refuse(tiny_copy, r"expected one file encoder\*\.onnx, found encoder-2.onnx, encoder.onnx")


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"])
def test_an_altered_file(tiny_copy, name):
    content = (tiny_copy / name).read_bytes()
    (tiny_copy / name).write_bytes(content[:-5] + b"x" * 5)
    refuse(tiny_copy, f"{name} is not the file its card describes")


@pytest.mark.parametrize("keep", [0, 100, 1000])
def test_a_truncated_model_without_a_card(tiny_copy, keep):
    (tiny_copy / "card.json").unlink()
    content = (tiny_copy / "encoder.onnx").read_bytes()
    (tiny_copy / "encoder.onnx").write_bytes(content[:keep])
    refuse(tiny_copy, r"encoder\.onnx cannot be loaded")


def test_a_graph_of_operators_to_come(tiny_copy):
    model = make_encoder()
    model.opset_import[0].version = 99
    replace_model(tiny_copy, "encoder", model)
    refuse(tiny_copy, r"encoder\.onnx cannot be loaded .*opset.*update onebest if the file is newer")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", 'expected an object of "format"'),
        ('{"format": "other"}', 'expected an object of "format"'),
        ('{"format": "onebest-bundle", "version": 2}', "bundle version 2"),
        ('{"format": "onebest-bundle", "version": 1, "opset": 99}', "opset 99, this onebest runs up to"),
        ('{"format": "onebest-bundle", "version": 1, "opset": "x"}', "opset 'x'"),
        ('{"format": "onebest-bundle", "version": 1}', 'no object "files"'),
        ('{"format": "onebest-bundle", "version": 1, "files": {}}', r"files\['encoder'\] is None"),
        (
            '{"format": "onebest-bundle", "version": 1,"files": {"encoder": {"file": "../x", "sha256":""}}}',
            "/x",
        ),
    ],
)
def test_a_wrong_card(tiny_copy, content, says):
    (tiny_copy / "card.json").write_text(content)
    refuse(tiny_copy, says)


@pytest.mark.parametrize(
    "key",
    [
        "model_type",
        "T",
        "decode_chunk_len",
        "num_encoder_layers",
        "left_context",
        "encoder_dim",
        "pad_length",
        "cnn_module_kernel",
    ],
)
def test_a_missing_or_wrong_key_of_the_encoder(tiny_copy, key):
    model = make_encoder()
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept)
    replace_model(tiny_copy, "encoder", model)
    refuse(tiny_copy, f"lacks the metadata key '{key}'")
    for wrong in ("0", "-4", "4.5", "other"):
        replace_model(tiny_copy, "encoder", make_encoder(**{key: wrong}))
        refuse(tiny_copy, key)


@pytest.mark.parametrize(
    ("part", "make", "key"),
    [
        ("decoder", make_decoder, "context_size"),
        ("decoder", make_decoder, "vocab_size"),
        ("joiner", make_joiner, "joiner_dim"),
    ],
)
def test_a_wrong_key_of_decoder_or_joiner(tiny_copy, part, make, key):
    replace_model(tiny_copy, part, make(**{key: "x"}))
    refuse(tiny_copy, f"{part}.onnx: the metadata key '{key}' is 'x'")
    replace_model(tiny_copy, part, make(**{key: 999}))
    refuse(tiny_copy, "999")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"T": CHUNK + 4}, "expected T to be decode_chunk_len plus pad_length"),
        ({"decode_chunk_len": 30, "T": 33}, "in units of 4"),
        ({"num_encoder_layers": 3}, r"input 'cached_attn' is tensor\(float\)"),
        ({"encoder_dim": 3}, "input 'cached_attn'"),
        ({"cnn_module_kernel": 9}, "input 'cached_conv'"),
        ({"front_end": "{"}, "'front_end' is no JSON"),
        ({"front_end": "[]"}, "another front end"),
        ({"front_end": json.dumps({**SPEC.to_dict(), "dither": 1.0})}, "dither: 1.0 instead of 0.0"),
    ],
)
def test_metadata_that_does_not_fit(tiny_copy, changed, says):
    replace_model(tiny_copy, "encoder", make_encoder(**changed))
    refuse(tiny_copy, says)


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ({"pause_ms": "1 s"}, "architecture.pause_ms is '1 s'"),
        ({"start_margin": -1}, "architecture.start_margin is -1"),
        ({"start_margin": True}, "architecture.start_margin is True"),
        ({"encoder": {"position_period": [500]}}, r"architecture.encoder.position_period is \[500\]"),
        ({"encoder": "small"}, "architecture.encoder.position_period is 'small'"),
        ("small", "architecture.encoder.position_period is 'small'"),
    ],
)
def test_a_card_with_something_else_for_a_number(tiny_copy, architecture, says):
    path = tiny_copy / "card.json"
    card = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**card, "architecture": architecture}), "utf-8")
    refuse(tiny_copy, f"{says}, expected a number of 0 or more. Fetch or export the model again")


def test_a_card_of_another_front_end(tiny_copy):
    write_card(tiny_copy, front_end={**SPEC.to_dict(), "window": "hann"})
    refuse(tiny_copy, r"card\.json was made with another front end \(window: 'hann'")


def test_a_fixed_batch_axis(tiny_copy):
    model = make_joiner()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    replace_model(tiny_copy, "joiner", model)
    refuse(tiny_copy, r"'encoder_out' is tensor\(float\) \[1, 16\], expected tensor\(float\) \['any', 16\]")


def test_a_graph_that_fails_when_run(tiny_copy, capfd):
    model = make_decoder()
    (table,) = (weight for weight in model.graph.initializer if weight.dims[:1] == [len(SYMBOLS)])
    table.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table)[:1], table.name))
    replace_model(tiny_copy, "decoder", model)
    with pytest.raises(ModelError, match=r"decoder\.onnx fails on inputs \[\(1, 2\)\]"):
        Recognizer(tiny_copy).transcribe(make_audio())
    assert capfd.readouterr() == ("", "")


def test_parts_exchanged(tiny_copy):
    replace_model(tiny_copy, "joiner", make_decoder(joiner_dim=16))
    refuse(tiny_copy, "has 1 inputs, expected 2")


def test_tokens_of_another_model(tiny_copy):
    with open(tiny_copy / "tokens.txt", "a") as file:
        file.write("more 24\n")
    (tiny_copy / "card.json").unlink()
    refuse(tiny_copy, "has 25 tokens, the model 24")
    write_tokens(tiny_copy)
    load_bundle(tiny_copy)


def test_a_row_of_the_joiner_gets_what_it_gets_among_others():
    bundle, random = Recognizer().bundle, np.random.default_rng(5)
    sizes = bundle.sizes
    frames = 3 * random.standard_normal((1000, sizes.joiner_dim), np.float32)
    contexts = random.integers(3, sizes.vocab_size, (1000, sizes.context_size)).tolist()
    predictions = bundle.predict(contexts)
    together = bundle.join(frames, predictions)
    for count in (1, 2, 3, 5, 7, 12, 15, 16):
        parts = [
            bundle.join(frames[start : start + count], predictions[start : start + count])
            for start in range(0, 1000, count)
        ]
        assert np.array_equal(np.concatenate(parts), together)
