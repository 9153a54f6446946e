"""The benchmark runs and says what it promises; its figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import tables

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serve.py"


def test_serve(tiny_folder):
    command = [sys.executable, BENCHMARK, "--model", tiny_folder, "--quick"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= {"streams", "sherpa_onnx_streams", "ratio", "final_p95_ms", "bytes_a_stream"}
    for side in result["sides"].values():
        assert all(level["same_texts"] for level in side["levels"])
        assert side["levels"][0]["final_ms"].keys() == {"p50", "p95", "p99"}
        assert side["levels"][0]["partial_ms"].keys() == {"p50", "p95", "p99"}
    table = tables.serve_table(result)
    assert table.startswith("|  | onebest | sherpa-onnx |\n")
    assert "| live streams, at most | 2 | 2 |" in table
