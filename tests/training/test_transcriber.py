"""Whisper by CTranslate2, a small random one: what it may say, and its encoder beside the port to torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_encoders import save_ctranslate2_whisper
from tone_corpus import ToneCorpus, speak

from onebest.cli import main
from onebest.cuts import read_cuts
from onebest.errors import ConfigError
from onebest_training.pretrained import WhisperEncoder, open_encoder
from onebest_training.transcriber import WhisperTranscriber
from onebest_training.whisper import read_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whisper")
    save_ctranslate2_whisper(made)
    return made / "ctranslate2"


def test_it_spells_what_it_would_write_in_digits_and_ends(folder: Path) -> None:
    transcriber = WhisperTranscriber(folder, threads=1, compute_type="float32")
    speech = [speak(text, np.random.default_rng(0)) for text in ("cad", "a bed")]
    transcripts = transcriber(speech)
    assert {t.text for t in transcripts} == {"c" * len(transcripts[0].text)}
    seconds = len(speech[1]) / 16000
    assert 10 * seconds <= len(transcripts[0].text) <= 10 * seconds + 12
    assert all(t.avg_logprob < 0 and 0 <= t.no_speech_prob <= 1 for t in transcripts)
    assert transcriber.settings["beam"] == 1
    assert len(transcriber.settings["model"]) == 64


@pytest.mark.parametrize("options", [{"beam": 0}, {"padding": -30.0}, {"threads": -1}])
def test_impossible_numbers_are_refused(options: dict[str, Any], folder: Path) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name}.* not {options[name]}"):
        WhisperTranscriber(folder, **options)


@torch.no_grad()
def test_its_encoder_equals_the_port_to_torch(folder: Path) -> None:
    speech = [speak(text, np.random.default_rng(0)) for text in ("cad", "a bed")]
    samples = torch.zeros(2, max(map(len, speech)))
    for row, one in zip(samples, speech, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    lengths = torch.tensor([len(one) for one in speech])
    ours = WhisperEncoder(read_whisper([folder])).embed(samples, lengths)
    theirs = WhisperTranscriber(folder, threads=1, compute_type="float32").encode(speech)
    np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], rtol=0, atol=2e-3)
    in_int8 = open_encoder(f"ctranslate2:{folder}")
    assert (in_int8.width, in_int8.rate) == (64, 50)
    found = in_int8.embed(samples, lengths)
    assert found.shape == ours.shape
    assert np.corrcoef(found.ravel(), ours.ravel())[0, 1] > 0.99


def test_a_command_labels_cuts_and_filters_them_anew(
    folder: Path, corpus: ToneCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "labelled.jsonl.gz"
    arguments = ["pseudo-label", str(corpus.manifest), str(output), "--model", str(folder), "--threads", "1"]
    assert main([*arguments, "--min-logprob", "-99"]) == 0
    assert {frozenset(cut.supervisions[0].text) for cut in read_cuts(output)} == {frozenset("c")}
    with caplog.at_level(logging.WARNING):
        assert main([*arguments, "--max-compression-ratio", "0.5"]) == 1
    assert "48 of 48 cuts left out: repeats" in caplog.messages
