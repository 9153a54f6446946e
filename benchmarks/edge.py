"""What matters on a small machine: importing, a cold start, memory, the size of what is installed.

    python benchmarks/edge.py [--repeats 11]

Every figure is the median of as many processes, each bound to one core and with one thread. The last line
is the result as JSON: ``import_seconds`` (``import onebest``), ``import_recognizer_seconds`` (what
``Recognizer`` loads besides, onnxruntime above all), ``load_seconds`` (``Recognizer()``, the hashes of its
files among it), ``hash_seconds`` (those alone), ``peak_memory_mb`` and ``package_mb`` (the package's files
with their model).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from machine import describe_machine, describe_versions

import onebest

SMALL = """
import json, os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
times = [time.perf_counter()]
import onebest
times.append(time.perf_counter())
from onebest import Recognizer
times.append(time.perf_counter())
recognizer = Recognizer()
times.append(time.perf_counter())
from onebest.card import find_files, read_card
times.append(time.perf_counter())
find_files(recognizer.bundle.folder, read_card(recognizer.bundle.folder))
times.append(time.perf_counter())
import numpy
recognizer.transcribe(numpy.zeros(160000, numpy.float32))
seconds = [after - before for before, after in zip(times, times[1:])]
from onebest.commands.bench import peak_memory_mb
print(json.dumps({
    "import_seconds": seconds[0],
    "import_recognizer_seconds": seconds[1],
    "load_seconds": seconds[2],
    "hash_seconds": seconds[4],
    "peak_memory_mb": peak_memory_mb(),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SMALL]
    runs = [json.loads(subprocess.check_output(command, env=environment)) for _ in range(repeats)]
    files = [path for path in Path(onebest.__file__).parent.rglob("*") if path.suffix != ".pyc"]
    result = {key: round(median(run[key] for run in runs), 4) for key in runs[0]}
    result["package_mb"] = round(sum(path.stat().st_size for path in files if path.is_file()) / 1e6, 2)
    for key, value in result.items():
        print(f"{key:26} {value}")
    versions = describe_versions("onebest", "onnxruntime", "numpy")
    print(json.dumps({**result, "repeats": repeats, "machine": describe_machine(), "versions": versions}))


if __name__ == "__main__":
    main()
