"""Pre-trained encoders: each equals the library's own output, and one that does not fit is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from lhotse import CutSet, MonoCut
from small_encoders import SELF_SUPERVISED, WIDTH, save_self_supervised, save_whisper, torchaudio_model
from tone_corpus import ToneCorpus
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperFeatureExtractor

from onebest.cli import main
from onebest.cuts import read_cuts
from onebest.errors import ConfigError, DataError, ModelError
from onebest_training import pretrained
from onebest_training.config import EncoderConfig
from onebest_training.encoder import Encoder, stack_frames
from onebest_training.features import FeatureStore, SampleAugmentation, make_store
from onebest_training.pretrained import (
    PretrainedEncoder,
    TorchaudioEncoder,
    TransformersEncoder,
    WhisperEncoder,
    embed_stacked,
    open_encoder,
)
from onebest_training.whisper import read_whisper, whisper_features


def noise(*seconds: float) -> tuple[Tensor, Tensor]:
    """Utterances padded with zeros, [B, S], and their lengths."""
    torch.manual_seed(0)
    lengths = torch.tensor([round(16000 * s) for s in seconds])
    samples = 0.1 + 0.2 * torch.randn(len(seconds), int(lengths.max()))
    return samples * (torch.arange(samples.shape[1]) < lengths[:, None]), lengths


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    save_whisper(folder)
    return folder


@torch.no_grad()
def test_whispers_weights_give_transformers_own_output(whisper_folder: Path, tmp_path: Path) -> None:
    theirs = save_whisper(tmp_path).encoder
    ours = WhisperEncoder(read_whisper([whisper_folder])).eval()
    features = torch.randn(1, 3000, 80)
    expected = theirs(features.transpose(1, 2)).last_hidden_state
    # transformers computes the positions in single precision
    torch.testing.assert_close(ours.encode(features), expected, rtol=0, atol=3e-4)
    assert ours.width == 64


@pytest.mark.parametrize("bins", [80, 128])
def test_whispers_features_are_transformers_own(bins: int) -> None:
    samples = noise(30.0)[0][0]
    extract = WhisperFeatureExtractor(feature_size=bins)
    expected = extract(samples.numpy(), sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(whisper_features(samples, bins).numpy().T, expected[0], rtol=0, atol=2e-3)


def test_a_whisper_of_more_bins_is_a_teachers_alone(
    corpus: ToneCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_whisper(tmp_path, bins=128)
    assert embed_stacked(open_encoder(f"whisper:{tmp_path}"), noise(0.4)[0][0].numpy()).shape == (10, 128)
    arguments = ["convert-encoder", str(tmp_path), "--speech", str(corpus.manifest)]
    assert main([*arguments, "--output", str(tmp_path / "weights.pt")]) == 1
    assert "reads 128 mel bins, but our features have 80" in capsys.readouterr().err
    assert not (tmp_path / "weights.pt").exists()


def test_a_whisper_with_other_heads_is_refused(tmp_path: Path) -> None:
    save_whisper(tmp_path, heads=4)
    with pytest.raises(ModelError, match=r"width 64 with 4 attention heads\. Expected 1"):
        open_encoder(f"whisper:{tmp_path}")


@torch.no_grad()
def test_whisper_hears_speech_and_silence_behind(whisper_folder: Path) -> None:
    encoder = open_encoder(f"whisper:{whisper_folder}")
    assert isinstance(encoder, WhisperEncoder)
    samples, lengths = noise(1.0, 0.63)
    frames = encoder.eval().embed(samples, lengths)
    assert frames.shape == (2, 50, 64)
    with_silence = torch.cat((samples[1], torch.zeros(32000)))
    expected = encoder.encode(whisper_features(with_silence)[None])[0, :50]
    torch.testing.assert_close(frames[1], expected)
    with pytest.raises(DataError, match=r"31\.0 s of speech do not fit"):
        encoder.embed(*noise(31.0))


def test_a_command_turns_transformers_whisper_into_first_weights(
    whisper_folder: Path, corpus: ToneCorpus, tmp_path: Path
) -> None:
    output = tmp_path / "weights.pt"
    arguments = ["convert-encoder", str(whisper_folder), "--speech", str(corpus.manifest)]
    assert main([*arguments, "--minutes", "0.1", "--output", str(output)]) == 0
    found = torch.load(output, weights_only=True)
    for name, value in read_whisper([whisper_folder]).items():
        assert torch.equal(found[name], value)
    assert found["stem.map.weight"].shape == (80, 80)


def test_speech_of_no_use_for_first_weights_is_named(
    whisper_folder: Path, corpus: ToneCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert-encoder", str(whisper_folder), "--output", str(tmp_path / "weights.pt"), "--speech"]
    assert main([*words, str(corpus.manifest), "--minutes", "nan"]) == 1
    assert "expected --minutes above 0, not nan" in capsys.readouterr().err
    CutSet.from_cuts([MonoCut("silent", 0.0, 1.0, 0)]).to_file(tmp_path / "cuts.jsonl")
    assert main([*words, str(tmp_path / "cuts.jsonl")]) == 1
    assert "cut silent has no recording of its own" in capsys.readouterr().err


def test_folders_that_hold_no_whisper_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no Whisper checkpoint of transformers"):
        read_whisper([tmp_path])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="another kind of model"):
        read_whisper([tmp_path])


@pytest.mark.parametrize("family", sorted(SELF_SUPERVISED))
@pytest.mark.parametrize("norm", ["layer", "group"])
@torch.no_grad()
def test_transformers_models_give_their_own_output(family: str, norm: str, tmp_path: Path) -> None:
    theirs = save_self_supervised(family, tmp_path, norm)
    encoder = open_encoder(f"transformers:{tmp_path}")
    assert (encoder.width, encoder.rate) == (WIDTH, 50)
    assert isinstance(encoder, nn.Module)
    samples, lengths = noise(1.0, 0.7)
    frames = encoder.eval().embed(samples, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = samples[row : row + 1, :length]
        if norm == "layer":
            alone = (alone - alone.mean()) / (alone.var(correction=0) + 1e-7).sqrt()
        elif row:
            continue  # without a mask, padding changes a shorter utterance in these models
        expected = theirs(alone).last_hidden_state[0]
        torch.testing.assert_close(frames[row, : len(expected)], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", sorted(SELF_SUPERVISED))
def test_what_transformers_models_give_in_training_follows_from_torchs_seed(
    family: str, tmp_path: Path
) -> None:
    save_self_supervised(family, tmp_path, mask_time_prob=0.5)
    encoder: Any = open_encoder(f"transformers:{tmp_path}")
    encoder.train()
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(0)
        found.append(encoder.embed(*noise(1.0)))
    assert torch.equal(*found)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_transformers_models_in_half_precision_run_in_float32(half: torch.dtype, tmp_path: Path) -> None:
    theirs = save_self_supervised("hubert", tmp_path).to(half)
    theirs.save_pretrained(tmp_path)
    encoder, (samples, lengths) = open_encoder(f"transformers:{tmp_path}"), noise(1.0)
    with torch.no_grad():
        expected = TransformersEncoder(theirs.float(), normalize=True).embed(samples, lengths)
        torch.testing.assert_close(encoder.embed(samples, lengths), expected)


def test_a_batch_norm_is_part_of_a_model(tmp_path: Path) -> None:
    save_self_supervised("hubert", tmp_path, conv_pos_batch_norm=True)
    assert open_encoder(f"transformers:{tmp_path}").width == WIDTH


@pytest.mark.parametrize("wavlm", [False, True])
@torch.no_grad()
def test_torchaudio_models_give_their_own_output(wavlm: bool) -> None:
    model = torchaudio_model(wavlm)
    encoder = TorchaudioEncoder(model, normalize=False).eval()
    samples, lengths = noise(1.0, 0.7)
    frames = encoder.embed(samples, lengths)
    assert (encoder.width, frames.shape[2]) == (WIDTH, WIDTH)
    for row, length in enumerate(lengths.tolist()):
        expected = model(samples[row : row + 1, :length])[0][0]
        torch.testing.assert_close(frames[row, : len(expected)], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_torchaudio_models_hear_faint_speech_as_they_were_trained() -> None:
    model, (samples, lengths) = torchaudio_model(), noise(1.0)
    faint = 0.003 * (samples - samples.mean())
    expected = model(functional.layer_norm(faint, faint.shape))[0]
    found = TorchaudioEncoder(model, normalize=True).eval().embed(faint, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_torchaudios_pipelines_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = type(torchaudio.pipelines.HUBERT_BASE)
    monkeypatch.setattr(bundle, "get_model", lambda self: torchaudio_model())
    encoder = open_encoder("torchaudio:HUBERT_BASE")
    assert isinstance(encoder, TorchaudioEncoder)
    assert not encoder.normalize
    with pytest.raises(ModelError, match="NOTHING: no pipeline"):
        open_encoder("torchaudio:NOTHING")

    def unreachable(self: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(bundle, "get_model", unreachable)
    with pytest.raises(ModelError, match=r"cannot be had \(no network"):
        open_encoder("torchaudio:WAVLM_BASE")


@pytest.mark.parametrize("make", [lambda folder: open_encoder(f"transformers:{folder}"), None])
def test_the_feature_extractor_gets_no_gradient(make: Callable[[Path], Any] | None, tmp_path: Path) -> None:
    save_self_supervised("wav2vec2", tmp_path)
    encoder: Any = make(tmp_path) if make else TorchaudioEncoder(torchaudio_model(), normalize=True)
    encoder.eval()
    torch.autograd.backward(encoder.embed(*noise(1.0)).square().sum())
    with_gradient = {name for name, value in encoder.named_parameters() if value.grad is not None}
    assert with_gradient
    assert not any(name.startswith("model.feature_extractor") for name in with_gradient)


@pytest.mark.parametrize("name", ["whisper", "nobody:folder", ":folder", "whisper:"])
def test_names_without_family_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected FAMILY:SOURCE with one of ctranslate2, torchaudio"):
        open_encoder(name)


def test_sources_without_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model of transformers"):
        open_encoder(f"transformers:{tmp_path}")
    with pytest.raises(ModelError, match="no Whisper model of CTranslate2"):
        open_encoder(f"ctranslate2:{tmp_path}")


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_weights_of_transformers_that_are_not_whole_are_refused(family: str, tmp_path: Path) -> None:
    layers, width = "num_hidden_layers", "hidden_size"
    if family == "whisper":
        layers, width = "encoder_layers", "d_model"
        save_whisper(tmp_path)
    else:
        save_self_supervised(family, tmp_path)
    name = f"{family}:{tmp_path}".replace("wav2vec2", "transformers")
    change_config(tmp_path, **{layers: 3})
    with pytest.raises(ModelError, match=r"lacks encoder\.layers\.2"):
        open_encoder(name)
    change_config(tmp_path, **{layers: 2, width: 128})
    with pytest.raises(ModelError, match="no model of transformers that can be read"):
        open_encoder(name)
    cut_short(tmp_path)
    with pytest.raises(ModelError, match="no model of transformers that can be read"):
        open_encoder(name)


def test_frames_are_stacked_to_forty_milliseconds() -> None:
    frames = torch.arange(10.0).reshape(1, 5, 2)
    assert stack_frames(frames, 50).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 9]]]
    assert torch.equal(stack_frames(frames, 25), frames)
    assert stack_frames(frames, 100).shape == (1, 2, 8)


class Own:
    """An encoder that a user might bring: the level of each frame, twice."""

    width, digest = 2, "own"

    def __init__(self, rate: int = 100, frames_too_few: int = 0, scale: float = 1.0):
        self.rate, self._too_few, self._scale = rate, frames_too_few, scale

    def embed(self, samples: Tensor, lengths: Tensor) -> Tensor:
        step = 16000 // self.rate
        level = self._scale * samples.unfold(1, step, step).abs().mean(2)[:, self._too_few :]
        return torch.stack((level, level), 2)


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch) -> Callable[[PretrainedEncoder], None]:
    """Install an encoder as the family "own"."""

    def install(encoder: PretrainedEncoder) -> None:
        class Entry(EntryPoint):
            def load(self) -> Any:
                return lambda source: encoder

        monkeypatch.setattr(pretrained, "entry_points", lambda group: [Entry("own", "x:y", group)])
        from onebest_training.features import find_front_end

        find_front_end.cache_clear()

    return install


def test_a_users_own_encoder_fills_a_store(
    bring: Callable[[PretrainedEncoder], None], corpus: ToneCorpus, tmp_path: Path
) -> None:
    bring(Own())
    make_store(
        list(read_cuts(corpus.manifest))[:3], tmp_path / "store", SampleAugmentation(), front_end="own:x"
    )
    store = FeatureStore(tmp_path / "store")
    assert store.front_end == {"encoder": "own:x", "width": 8, "digest": "own"}
    for cut in store.cuts:
        found = store.read(cut)
        assert found.shape == (round(cut.duration * 25), 8)
        expected = embed_stacked(Own(), cut.load_audio()[0])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_an_encoder_whose_frames_do_not_fit_is_refused(
    bring: Callable[[PretrainedEncoder], None], corpus: ToneCorpus, tmp_path: Path
) -> None:
    cuts = list(read_cuts(corpus.manifest))[:3]
    bring(Own(rate=30))
    with pytest.raises(ConfigError, match=r"own:x: 30 frames a second\. Expected a multiple of 25"):
        make_store(cuts, tmp_path / "store", SampleAugmentation(), front_end="own:x")
    bring(Own(frames_too_few=5))
    with pytest.raises(DataError, match=rf"cut {cuts[0].id}: the encoder made .* Expected about"):
        make_store(cuts, tmp_path / "store", SampleAugmentation(), front_end="own:x")


@pytest.mark.parametrize("scale", [1e9, math.nan])
def test_frames_that_a_store_cannot_hold_are_refused(
    scale: float, bring: Callable[[PretrainedEncoder], None], corpus: ToneCorpus, tmp_path: Path
) -> None:
    bring(Own(scale=scale))
    cuts = list(read_cuts(corpus.manifest))[:1]
    with pytest.raises(DataError, match=r"cut train-000: a frame .* is not finite in half precision"):
        make_store(cuts, tmp_path / "store", SampleAugmentation(), front_end="own:x")


def test_a_cut_too_short_for_an_encoder_is_named(corpus: ToneCorpus, tmp_path: Path) -> None:
    save_self_supervised("wav2vec2", tmp_path / "model")
    cut = next(iter(read_cuts(corpus.manifest))).truncate(duration=0.015)
    name = f"transformers:{tmp_path / 'model'}"
    with pytest.raises(DataError, match=rf"cut {cut.id}: 15 ms of audio are too short"):
        make_store([cut], tmp_path / "store", SampleAugmentation(), front_end=name)


class Trainable(nn.Module):
    """A user's encoder that can be trained, at half the rate that it says."""

    width, rate, digest = 4, 50, "own"

    def embed(self, samples: Tensor, lengths: Tensor) -> Tensor:
        return torch.zeros(len(samples), samples.shape[1] // 640, 4)


def test_an_encoder_that_trains_along_keeps_to_its_rate(
    bring: Callable[[PretrainedEncoder], None],
) -> None:
    bring(Trainable())
    encoder = Encoder(EncoderConfig(16, 2, 60, (), pretrained="own:x", inputs=8, frozen=False))
    with pytest.raises(DataError, match=r"made \[2, 50, 4\] of 32000 samples\. Expected about \[2, 100, 4\]"):
        encoder(torch.randn(2, 50, 640), torch.tensor([50, 40]), 0, 0)


def test_a_store_of_samples_holds_them(corpus: ToneCorpus, tmp_path: Path) -> None:
    make_store(
        list(read_cuts(corpus.manifest))[:2], tmp_path / "store", SampleAugmentation(), front_end="samples"
    )
    store = FeatureStore(tmp_path / "store")
    cut = store.cuts[1]
    samples = cut.load_audio()[0]
    np.testing.assert_allclose(store.read(cut).ravel()[: len(samples)], samples, rtol=1e-3, atol=1e-6)
