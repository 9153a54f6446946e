"""What the benchmarks of a model do to speech, and what they refuse; their figures are not judged here."""

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import emission
import long_audio
import noise_only
import robustness
import sizes
import wer
from lhotse import CutSet, MonoCut, Recording
from tiny_model import make_audio

from onebest import Recognizer
from onebest.commands.evaluate import Decoded, score_corpora

RATE = 16000


def tone(hertz, seconds=1.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def power(samples):
    return float(np.square(samples, dtype=np.float64).mean())


@pytest.mark.parametrize("snr_db", robustness.SNRS_DB)
def test_noise_is_as_loud_as_said(snr_db):
    noise = np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
    speech = 0.1 * tone(500)
    noisy, rate = robustness.add_noise(speech, "a", noise, snr_db)
    assert rate == RATE
    assert 10 * np.log10(power(speech) / power(noisy - speech)) == pytest.approx(snr_db, abs=0.01)
    again, _ = robustness.add_noise(speech, "a", noise, snr_db)
    other, _ = robustness.add_noise(speech, "b", noise, snr_db)
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, other)


@pytest.mark.parametrize(("hertz", "passes"), [(100, False), (500, True), (3000, True), (3800, False)])
def test_a_telephone_lets_its_band_pass(hertz, passes):
    heard, rate = robustness.to_telephone(tone(hertz), "a")
    assert (rate, len(heard)) == (8000, 8000)
    assert power(heard) == pytest.approx(0.5 if passes else 0.0, abs=0.01)


def test_a_room_without_echo_changes_nothing_and_one_with_an_echo_repeats(tmp_path):
    for name, echo in (("dry", 0.0), ("wet", 0.5)):
        response = np.zeros(RATE // 2, np.float32)
        response[[0, RATE // 4]] = 1.0, echo
        soundfile.write(tmp_path / f"{name}.wav", response, RATE, subtype="FLOAT")
    speech = np.concatenate([0.1 * tone(500, 0.2), np.zeros(RATE, np.float32)])

    def enter(name):
        responses = [Recording.from_file(tmp_path / f"{name}.wav")]
        return robustness.enter_room(speech, "a", responses)[0]

    assert enter("dry") == pytest.approx(speech, abs=1e-4)
    wet = enter("wet")
    assert power(wet[RATE // 4 :][: RATE // 5]) == pytest.approx(0.25 * power(wet[: RATE // 5]), rel=0.02)


@pytest.mark.parametrize("factor", robustness.SPEEDS)
def test_speed_changes_length_and_pitch(factor):
    heard, _ = robustness.change_speed(tone(1000), "a", factor)
    assert len(heard) == pytest.approx(RATE / factor, abs=1)
    loudest = np.abs(np.fft.rfft(heard)).argmax() * RATE / len(heard)
    assert loudest == pytest.approx(1000 * factor, abs=2)


def test_a_token_is_shown_when_its_chunk_has_come(tiny_folder):
    recognizer = Recognizer(tiny_folder, chunk_ms=320)
    beyond = -(-recognizer.bundle.sizes.pad_frames // 4)
    assert [emission.show(frame, recognizer) for frame in (0, 7, 8)] == [7 + beyond, 7 + beyond, 15 + beyond]


def test_percentiles_of_nothing_are_none():
    assert emission.percentiles("emission", []) == {"emission_p50_ms": None, "emission_p90_ms": None}
    found = emission.percentiles("emission", [0, 1, 2])
    assert (found["emission_p50_ms"], found["emission_p90_ms"]) == (40.0, pytest.approx(72.0))


def test_words_in_noise_are_counted(tiny_folder):
    recognizer = Recognizer(tiny_folder)
    row = noise_only.listen(recognizer, "babble", noise_only.endless([make_audio(3.0)]), hours=0.005)
    whole = np.resize(make_audio(3.0), round(0.005 * 3600 * RATE))
    assert row["words"] == len(recognizer.transcribe(whole).words) > 0
    assert row["words_an_hour"] == pytest.approx(row["words"] / 0.005)


@pytest.fixture
def corpus(tmp_path):
    """Four utterances of two seconds as LibriSpeech lays them out."""
    names = [f"1-1-000{index}" for index in range(4)]
    for name in names:
        soundfile.write(tmp_path / f"{name}.wav", make_audio(2.0), RATE)
    (tmp_path / "1-1.trans.txt").write_text("".join(f"{name} SOME WORDS\n" for name in names))
    return tmp_path


def test_long_audio_takes_utterances_from_everywhere(corpus, tiny_folder, tmp_path):
    arguments = argparse.Namespace(manifest=corpus, limit=None, gap=0.5, hours=5.0 / 3600)
    assert [cut.id[-1] for cut in long_audio.choose(arguments)] == ["1", "3"]
    arguments.hours = 1.0
    cuts = long_audio.choose(arguments)
    assert long_audio.concatenate(cuts, tmp_path / "long.wav", 0.5) == pytest.approx(10.0)
    found = long_audio.listen(tiny_folder, 640, tmp_path / "long.wav")
    samples, _ = soundfile.read(tmp_path / "long.wav", dtype="float32")
    whole = Recognizer(tiny_folder, chunk_ms=640).transcribe(samples)
    assert found["text"].replace(" ", "") == whole.text.replace(" ", "")
    assert found["memory_mb"] >= found["memory_growth_mb"]


def test_altered_speech_has_an_emission_delay_beside_its_error_rate(corpus, tiny_folder):
    arguments = argparse.Namespace(manifest=corpus, limit=2, model=tiny_folder, chunk_ms=320, jobs=1)
    score = robustness.measure(partial(robustness.lower, decibels=20), arguments)["overall"]
    assert score["words"] == 4
    assert score["emission_delay_ms"]["p50"] >= 0


def test_models_of_several_sizes_take_turns(corpus, tiny_folder, monkeypatch, capsys):
    models = [str(tiny_folder)] * 2
    options = ["--audio", str(corpus / "1-1-0000.wav"), "--repeats", "1", "--jobs", "1", "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["sizes.py", str(corpus), *models, *options])
    sizes.main()
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert first["sha256"] == second["sha256"]
    assert first["scores"]["overall"]["words"] == second["scores"]["overall"]["words"] == 4
    assert min(first["seconds"], second["seconds"], first["megabytes"]) > 0


def recognised(number, hypothesis, reference="some words"):
    return asdict(Decoded(str(number), "a", reference, hypothesis, 2.0, 0.1))


def test_another_recogniser_stands_beside_the_same_cuts(tmp_path):
    path, ours = tmp_path / "other.json", [recognised(1, "some words"), recognised(2, "sum words")]

    def read(theirs):
        scores = {
            name: asdict(score) for name, score in score_corpora([Decoded(**c) for c in theirs]).items()
        }
        result = {"recognizer": "other", "machine": {}, "scores": scores, "cuts": [c["id"] for c in theirs]}
        path.write_text(json.dumps(result))
        return wer.read_beside(path, "640 ms", ours)

    (other,) = read([recognised(1, "some"), recognised(2, "some")])
    assert other["latency"] == "other"
    assert other["scores"]["a"]["wer"] == 50
    mine, other = read([recognised(2, "")])
    assert mine["latency"] == "640 ms, 1 of the 2 utterances"
    assert other["latency"] == "other, 1 of the 2 utterances"
    assert (mine["scores"]["overall"]["wer"], other["scores"]["overall"]["wer"]) == (50, 100)
    with pytest.raises(SystemExit, match="other speech"):
        read([recognised(2, "", reference="some other words")])


def test_speakers_heard_in_training_are_left_out(tmp_path):
    def write(name, speakers):
        cuts = [MonoCut(f"{name}{i}", 0.0, 1.0, 0, custom={"speaker": who}) for i, who in enumerate(speakers)]
        CutSet.from_cuts(cuts).to_file(tmp_path / f"{name}.jsonl.gz")
        return tmp_path / f"{name}.jsonl.gz"

    dev, heard, others = write("d", ["ann", "bob", None]), write("t", ["bob", None]), write("o", ["eve"])
    cuts = [recognised(f"d{number}", hypothesis) for number, hypothesis in enumerate(("some", "", "some"))]
    (row,) = wer.without_speakers(wer.speakers(heard), dev, "640 ms", cuts)
    assert row["latency"] == "640 ms, speakers of training left out (1)"
    assert (row["scores"]["overall"]["cuts"], row["scores"]["overall"]["wer"]) == (2, 50)
    assert wer.without_speakers(wer.speakers(others), dev, "640 ms", cuts) == []
