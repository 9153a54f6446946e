"""A small machine: one core, one thread, 256 MB.

The limit is RLIMIT_DATA, which the kernel counts private writable memory against: the heap, the memory that
onnxruntime takes for weights and activations, and the stacks of threads. It leaves out what is mapped from
files and could be dropped, which RLIMIT_AS would count by the size of the mapping and not by its use; so what
was in memory at most, files and all, is looked at besides.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onebest import Recognizer
from onebest.recognizer import DEFAULT_MODEL

LIMIT = 256_000_000
SAMPLE = Path(__file__).parents[2] / "samples" / "librispeech-1988-147956-0020.flac"
SMALL = """
import json, os, resource, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
from onebest import Recognizer
result = Recognizer(sys.argv[2], threads=1).transcribe(sys.argv[3])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "text": result.text,
    "threads": int(status["Threads"]),
    "peak_bytes": int(status["VmHWM"].split()[0]) * 1024,
}))
"""


def run_small(limit, model):
    # For a library that starts a thread a core, whatever its own limit: OpenBLAS looks at this alone.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SMALL, str(limit), str(model), str(SAMPLE)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA means this on Linux only")
def test_the_default_model_fits_a_small_machine():
    done = run_small(LIMIT, DEFAULT_MODEL)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == Recognizer().transcribe(SAMPLE).text
    assert len(found["text"].split()) > 5
    assert found["threads"] == 1
    assert found["peak_bytes"] < LIMIT


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_the_limit_limits(tiny_folder):
    assert run_small(20_000_000, tiny_folder).returncode != 0


def test_the_benchmark_says_what_it_promises():
    script = Path(__file__).parents[2] / "benchmarks" / "edge.py"
    done = subprocess.run(
        [sys.executable, script, "--repeats", "1"], check=True, capture_output=True, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    seconds = [result[f"{name}_seconds"] for name in ("import", "import_recognizer", "load", "hash")]
    assert all(second > 0 for second in seconds)
    assert result["peak_memory_mb"] < LIMIT / 1e6
    assert result["package_mb"] < 25
