import json

import pytest
import soundfile
from tiny_model import CHUNK, make_audio

from onebest.cli import main
from onebest.commands import bench
from onebest.commands.bench import make_noise, time_stream


def test_figures_of_a_recording(tiny_folder, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", make_audio(2.0), 16000)
    options = ["--model", str(tiny_folder), "--repeats", "1"]
    assert main(["bench", str(tmp_path / "a.wav"), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    settings = ("model", "chunk_ms", "audio_seconds", "threads", "beam", "repeats")
    assert {key: found[key] for key in settings} == {
        "model": "tiny",
        "chunk_ms": CHUNK * 10,
        "audio_seconds": 2.0,
        "threads": 1,
        "beam": 1,
        "repeats": 1,
    }
    measured = ("real_time_factor", "slowest_piece_ms", "cold_start_seconds", "peak_memory_mb")
    assert all(found[key] > 0 for key in measured)
    assert found["peak_memory_mb"] < 300
    assert main(["bench", str(tmp_path / "a.wav"), *options, "--chunk-ms", "640", "--beam", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny, chunks of 640 ms, threads: 1, beam: 2, 2.0 s of audio, medians of 1"
    assert len(lines) == 5


def test_the_slowest_piece_is_part_of_all(recognizer):
    spent, slowest = time_stream(recognizer, make_audio(2.0))
    assert 0 < slowest < spent


def test_noise_is_half_a_minute_and_not_silent():
    noise = make_noise()
    assert len(noise) == 30 * 16000
    assert 0.04 < noise.std() < 0.1


def test_a_cold_start_is_one_with_the_same_settings(tiny_folder, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(bench, "_time_cold_start", lambda words: started.append(words) or (1.0, 1.0))
    options = ["--repeats", "1", "--chunk-ms", "320", "--threads", "2", "--beam", "3"]
    assert main(["bench", "--model", str(tiny_folder), *options]) == 0
    assert started == [[str(tiny_folder), "320", "2", "3"]]


@pytest.mark.parametrize("repeats", ["0", "-1"])
def test_no_repeats(tiny_folder, capsys, repeats):
    assert main(["bench", "--model", str(tiny_folder), "--repeats", repeats]) == 1
    assert "Measure at least once" in capsys.readouterr().err
