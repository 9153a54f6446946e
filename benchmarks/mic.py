"""How long ``onebest mic`` takes from its start to listening, as a whole process each time.

    python benchmarks/mic.py [--sound-server] [--repeats N] [-- ARGUMENTS OF onebest mic]

It needs a microphone; ``--sound-server`` starts a PulseAudio with one that needs no sound card. Listening
means that the first audio has arrived: what is said from then on is recognised. The last line is the result
as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from machine import describe_machine, describe_versions
from sound_server import SoundServer

COMMAND = [sys.executable, "-c", "import sys; from onebest.cli import main; sys.exit(main())", "mic"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sound-server", action="store_true", help="start a PulseAudio to listen to")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("arguments", nargs="*", help="passed on to onebest mic")
    options = parser.parse_args()
    with ExitStack() as stack:
        environment = dict(os.environ)
        if options.sound_server:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            environment |= stack.enter_context(SoundServer(folder)).environment
        runs = [start(options.arguments, environment) for _ in range(options.repeats + 1)][1:]
    wall, processor = zip(*runs, strict=True)
    result = {
        "seconds_to_listening": round(median(wall), 3),
        "slowest_seconds_to_listening": round(max(wall), 3),
        "processor_seconds": round(median(processor), 3),
        "repeats": options.repeats,
        "sound_server": options.sound_server,
        "machine": describe_machine(),
        "versions": describe_versions("onebest", "onnxruntime", "sounddevice"),
    }
    print(f"{median(wall):.2f} s to listening, {median(processor):.2f} s of processor time")
    print(json.dumps(result))
    return 0


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Start it once; return seconds until it listens, and seconds of processor time that the process took."""
    before, begin = used_seconds(), time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr
    first = process.stderr.readline()
    seconds = time.perf_counter() - begin
    process.send_signal(signal.SIGINT)
    rest = process.communicate()[1]
    if not first.startswith("Listening"):
        sys.exit(first + rest)
    return seconds, used_seconds() - before


def used_seconds() -> float:
    """Return the processor time of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
