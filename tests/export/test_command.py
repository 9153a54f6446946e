"""``onebest export`` from the command line."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from onebest import Recognizer
from onebest.cli import main

CLIPS = sorted((Path(__file__).parents[2] / "samples").glob("*.flac"))


def test_exports_int8_at_640_ms(tiny, tmp_path, capsys):
    folder = tmp_path / "deeper" / "model"
    assert main(["export", str(tiny.path), str(folder)]) == 0
    assert "tokens equal in 100.00%" in capsys.readouterr().out
    recognizer = Recognizer(folder)
    assert recognizer.bundle.name == "model"
    assert (recognizer.bundle.sizes.chunk_frames, recognizer.bundle.sizes.left_context) == (40, 128)
    assert (recognizer.bundle.sizes.chunk_ms, recognizer.bundle.sizes.layout.right_context) == (640, 6)
    assert (folder / "encoder.int8.onnx").is_file()


def test_options_and_real_speech(tiny, tmp_path, capsys):
    notes = tmp_path / "notes.json"
    notes.write_text(json.dumps({"wer": {"dev": 0.3}}))
    folder = tmp_path / "model"
    options = [
        "--name",
        "small",
        "--chunk-ms",
        "320",
        "--left-ms",
        "1280",
        "--right-ms",
        "0",
        "--float",
        "--notes",
        str(notes),
    ]
    audio = ["--check-audio", *map(str, CLIPS[:2])]
    assert main(["export", str(tiny.path), str(folder), *options, *audio]) == 0
    assert "against torch" in capsys.readouterr().out
    card = json.loads((folder / "card.json").read_text())
    assert (card["name"], card["wer"], card["architecture"]["precision"]) == (
        "small",
        {"dev": 0.3},
        "float32",
    )
    recognizer = Recognizer(folder)
    assert (recognizer.bundle.sizes.chunk_frames, recognizer.bundle.sizes.left_context) == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk-ms", "100"], "--chunk-ms is 100. It must be a multiple of 40"),
        (["--chunk-ms", "0"], "multiple of 40"),
        (["--left-ms", "0"], "--left-ms is 0"),
        (["--right-ms", "100"], "--right-ms is 100. It must be a multiple of 40"),
        (["--right-ms", "640"], "--right-ms is 640. It must be less than --chunk-ms, 640"),
        (["--left-ms", "-40"], "multiple of 40"),
        (["--left-ms", "4000000000"], "--left-ms is 4000000000. It must be 60000 at most"),
        (["--blank-penalty", "nan"], "--blank-penalty is nan. It must be a finite number"),
        (["--start-margin", "-1"], "--start-margin is -1.0. It must be a finite number of 0 or more"),
        (["--wer-budget", "nan"], "--wer-budget is nan"),
        (["--limit", "0"], "--limit is 0. It must be 1 or more"),
        (["--notes", "missing.json"], "missing.json: cannot be read as JSON"),
        (["--notes", "list.json"], "expected a JSON object, found list"),
        (["--notes", "broken.json"], "cannot be read as JSON"),
        (["--notes", "null.json"], "'training' is None, expected a JSON object"),
        (["--check-audio", "missing.wav"], "missing.wav"),
        (["--check-audio", "short.wav"], "--check-audio is 0.50 s of audio, less than a chunk"),
    ],
)
def test_wrong_options_are_one_line(tiny, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    Path("broken.json").write_text("{")
    Path("null.json").write_text('{"training": null}')
    soundfile.write("short.wav", np.zeros(8000), 16000)
    assert main(["export", str(tiny.path), "model", *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("model").exists()


def test_missing_checkpoint_is_one_line_before_speech_is_read(tmp_path, capsys):
    options = ["--dev", str(tmp_path / "none.jsonl.gz")]
    assert main(["export", str(tmp_path / "none.pt"), str(tmp_path / "model"), *options]) == 1
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_existing_folder_is_one_line_before_speech_is_read(tiny, tmp_path, capsys):
    options = ["--dev", str(tmp_path / "none.jsonl.gz")]
    assert main(["export", str(tiny.path), str(tmp_path), *options]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_signal_to_end_leaves_nothing(tiny, tmp_path, monkeypatch, end_by_signal):
    def end(*arguments):
        assert len(list(tmp_path.iterdir())) == 1
        end_by_signal()

    monkeypatch.setattr("onebest_export.bundle.export_decoder", end)
    with pytest.raises(SystemExit) as found:
        main(["export", str(tiny.path), str(tmp_path / "model")])
    assert found.value.code == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
