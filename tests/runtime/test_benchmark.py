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
    small = ["--repeats", "1", "--stream-seconds", "1", "--minutes", "3"]
    done = subprocess.run([*command, *small], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    for key in (
        "real_time_factor",
        "speedup_vs_sherpa_onnx",
        "cold_start_vs_sherpa_onnx",
        "peak_memory_mb",
        "single_stream_speedup",
        "streams_16_speedup",
        "streams_64_speedup",
        "cold_start_ratio",
        "of_bound",
    ):
        assert result[key] > 0
    assert {"bytes_a_stream", "endless"} < result.keys()
    # More than the stem alone: a convolution of 80 bins, 7 frames, for each of 8 encoder frames.
    assert result["bound"]["multiply_adds"]["int8"] == 0
    assert result["bound"]["multiply_adds"]["float32"] > 8 * 12 * 80 * 7
    assert [row["threads"] for row in result["rows"]] == [1, 2]
    assert result["same_tokens"]
