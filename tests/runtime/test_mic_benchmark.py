"""The benchmark of the start runs and says what it promises; its figures are not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "mic.py"


def test_seconds_to_listening(sound_server):
    command = [sys.executable, BENCHMARK, "--repeats", "2"]
    environment = os.environ | sound_server.environment
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["slowest_seconds_to_listening"] >= result["seconds_to_listening"] > 0
    assert result["processor_seconds"] > 0
    assert result["repeats"] == 2


def test_without_a_microphone_it_says_why(tmp_path):
    environment = os.environ | {"PULSE_SERVER": f"unix:{tmp_path}/none", "HOME": str(tmp_path)}
    command = [sys.executable, BENCHMARK, "--repeats", "1", "--", "--device", "nobody's"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "onebest mic: " in done.stderr
