"""The benchmark runs and says what it promises; its figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import soundfile
from tiny_model import make_audio

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "decode.py"


def test_decode(tiny_folder, tmp_path):
    soundfile.write(tmp_path / "clip.flac", make_audio(12.0), 16000)
    command = [sys.executable, BENCHMARK, "--model", tiny_folder, "--audio", tmp_path / "clip.flac"]
    done = subprocess.run([*command, "--repeats", "1"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    for key in ("real_time_factor", "speedup_vs_sherpa_onnx", "cold_start_vs_sherpa_onnx", "peak_memory_mb"):
        assert result[key] > 0
    assert [row["threads"] for row in result["rows"]] == [1, 2]
    assert result["same_tokens"]
