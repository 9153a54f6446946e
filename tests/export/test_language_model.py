"""A bundle with a language model in its decoder: equal to torch, and the same in sherpa-onnx."""

import json

import numpy as np
import onnx
import pytest
import torch
from test_several_chunks import in_pieces, make_speech
from test_sherpa import CLIPS, check_same_tokens, copy_bundle

from onebest import Recognizer
from onebest.bundle import load_bundle
from onebest.cli import main
from onebest.errors import ModelError
from onebest_export.bundle import ExportOptions, write_bundle
from onebest_training.fusion import FusionWeights, describe, with_language_model
from onebest_training.language_model import ContextConfig, ContextLanguageModel, save_language_model

CONTEXT = 7


@pytest.fixture(scope="module")
def language_model(tiny):
    torch.manual_seed(8)
    found = ContextLanguageModel(ContextConfig(tiny.model.config.vocabulary_size, CONTEXT, 8, (12, 10)))
    found.out.weight.data *= 15
    return found.eval()


@pytest.fixture(scope="module")
def fused(tiny, language_model):
    return with_language_model(tiny.model, language_model, FusionWeights())


@pytest.fixture(scope="module", params=["float", "int8"])
def bundle(request, tiny, fused, language_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused") / "model"
    card = describe(language_model, FusionWeights())
    options = ExportOptions("tiny", 4, 6, int8=request.param == "int8", language_model=card)
    write_bundle(fused, tiny.tokens, tiny.checkpoint, folder, options)
    return folder


def test_a_bundle_says_what_it_has(bundle, tiny):
    loaded = load_bundle(bundle)
    sizes = loaded.sizes
    assert sizes.context_size == CONTEXT
    assert sizes.decoder_dim == sizes.joiner_dim + sizes.vocab_size
    architecture = loaded.card["architecture"]
    assert architecture["context_size"] == CONTEXT
    assert architecture["language_model"]["internal"] == FusionWeights().internal


def test_logits_equal_torch(bundle, fused):
    loaded = load_bundle(bundle)
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(20, loaded.sizes.joiner_dim)).astype(np.float32)
    contexts = rng.integers(1, loaded.sizes.vocab_size, (20, CONTEXT))
    contexts[0] = [-1] * (CONTEXT - 1) + [0]
    ours = loaded.join(frames, loaded.predict(contexts.tolist()))
    with torch.no_grad():
        theirs = fused.joiner(torch.from_numpy(frames), fused.predictor(torch.from_numpy(contexts))).numpy()
    if loaded.card["architecture"]["precision"] == "float32":
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    else:
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("clip", CLIPS[:2], ids=lambda path: path.stem)
def test_sherpa_gives_our_tokens(bundle, clip, tmp_path):
    recognizer = Recognizer(bundle)
    ours = recognizer.transcribe(clip)
    check_same_tokens(ours, copy_bundle(bundle, tmp_path / "model"), clip, recognizer.bundle.sizes)


def test_it_leads_the_search(bundle, float_bundle):
    audio = make_speech(4.1, 0)
    assert Recognizer(bundle).transcribe(audio).tokens != Recognizer(float_bundle).transcribe(audio).tokens


def test_pieces_make_no_difference(bundle):
    recognizer, audio = Recognizer(bundle), make_speech(4.1, 0)
    whole = recognizer.transcribe(audio)
    for size in (700, 5000, 23_456):
        found = in_pieces(recognizer.stream(), audio, size)
        assert [(token.token, token.start) for token in found.tokens] == [
            (token.token, token.start) for token in whole.tokens
        ]


def test_a_decoder_of_another_width_is_refused(bundle, float_copy):
    plain = load_bundle(float_copy)
    loaded = load_bundle(bundle)
    onnx.save(onnx.load(str(loaded.decoder.path)), plain.decoder.path)
    with pytest.raises(ModelError, match=r"output 'decoder_out' .* Export it again"):
        load_bundle(float_copy)


def test_the_command_puts_it_in(tiny, language_model, tmp_path, capsys):
    save_language_model(language_model, tiny.tokens, tmp_path / "lm.pt")
    words = ["export", str(tiny.path), str(tmp_path / "model"), "--chunk-ms", "160", "--right-ms", "0"]
    words += ["--left-ms", "240", "--float", "--language-model", str(tmp_path / "lm.pt")]
    assert main([*words, "--language-model-weight", "0.3", "--internal-weight", "0.1"]) == 0
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    found = card["architecture"]["language_model"]
    assert (found["language_model"], found["internal"], len(found["sha256"])) == (0.3, 0.1, 64)
    assert main([*words[:2], str(tmp_path / "other"), *words[3:], "--internal-weight", "-1"]) == 1
    assert "weights of 0 or more" in capsys.readouterr().err
