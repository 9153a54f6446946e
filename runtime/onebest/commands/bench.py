"""``onebest bench``: how fast a model is on this machine, and how much memory it takes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from onebest.audio import read_blocks
from onebest.cli import Command
from onebest.commands.transcribe import add_model_arguments
from onebest.errors import ConfigError
from onebest.frontend import SAMPLE_RATE
from onebest.recognizer import Recognizer

FloatArray = npt.NDArray[np.float32]

_MADE_SECONDS = 30
_PIECE_SAMPLES = SAMPLE_RATE // 10
#: A process that recognises one second and says how much memory it took: what a cold start is.
_COLD = (
    "import sys; from onebest.commands.bench import start_cold; "
    "start_cold(sys.argv[1] or None, int(sys.argv[2]) or None, *map(int, sys.argv[3:]))"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("audio", nargs="?", type=Path, help="a recording (default: half a minute of noise)")
    add_model_arguments(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads for the model (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="take medians of N (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if arguments.repeats < 1:
        raise ConfigError(f"--repeats is {arguments.repeats}. Measure at least once.")
    audio = make_noise() if arguments.audio is None else np.concatenate(list(read_blocks(arguments.audio)))
    recognizer = Recognizer(
        arguments.model, chunk_ms=arguments.chunk_ms, threads=arguments.threads, beam=arguments.beam
    )
    runs = [time_stream(recognizer, audio) for _ in range(arguments.repeats)]
    numbers = (arguments.chunk_ms or 0, arguments.threads, arguments.beam)
    words = [str(arguments.model or ""), *map(str, numbers)]
    cold = [_time_cold_start(words) for _ in range(arguments.repeats)]
    found = {
        "model": recognizer.bundle.name,
        "chunk_ms": recognizer.bundle.sizes.chunk_ms,
        "threads": arguments.threads,
        "beam": arguments.beam,
        "audio_seconds": round(len(audio) / SAMPLE_RATE, 2),
        "repeats": arguments.repeats,
        "real_time_factor": median(spent for spent, _ in runs) * SAMPLE_RATE / len(audio),
        "slowest_piece_ms": median(slowest for _, slowest in runs) * 1000,
        "cold_start_seconds": median(seconds for seconds, _ in cold),
        "peak_memory_mb": max(memory for _, memory in cold),
    }
    print(json.dumps(found) if arguments.json else format_figures(found))
    return 0


def make_noise() -> FloatArray:
    """Return noise [S] that comes and goes, so that the model has something to do."""
    at = np.arange(_MADE_SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(0).normal(0, 0.1, len(at))
    return np.asarray(noise * (np.sin(2 * np.pi * at) > 0), np.float32)


def time_stream(recognizer: Recognizer, audio: FloatArray) -> tuple[float, float]:
    """Recognise samples [S] in pieces of 100 ms; return the seconds for all and for the slowest piece."""
    stream, spent = recognizer.stream(), []
    for start in range(0, len(audio), _PIECE_SAMPLES):
        began = time.perf_counter()
        stream.accept(audio[start : start + _PIECE_SAMPLES])
        spent.append(time.perf_counter() - began)
    began = time.perf_counter()
    stream.finish()
    return sum(spent) + time.perf_counter() - began, max(spent)


def start_cold(model: str | None, chunk_ms: int | None, threads: int, beam: int) -> None:
    """Recognise one second and print the megabytes that this process took at most."""
    recognizer = Recognizer(model, chunk_ms=chunk_ms, threads=threads, beam=beam)
    recognizer.transcribe(make_noise()[:SAMPLE_RATE])
    print(peak_memory_mb())


def peak_memory_mb() -> float:
    """Return the most megabytes that this process had in memory.

    Linux's ``ru_maxrss`` begins with what the parent had when it started the process, so it is not asked.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _time_cold_start(words: Sequence[str]) -> tuple[float, float]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _COLD, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, float(done.stdout)


def format_figures(found: dict[str, Any]) -> str:
    """Return the figures as lines of text."""
    return "\n".join(
        [
            f"{found['model']}, chunks of {found['chunk_ms']} ms, threads: {found['threads']}, "
            f"beam: {found['beam']}, {found['audio_seconds']} s of audio, medians of {found['repeats']}",
            f"seconds a second of audio  {found['real_time_factor']:.4f}",
            f"slowest 100 ms piece       {found['slowest_piece_ms']:.1f} ms",
            f"cold start to first text   {found['cold_start_seconds']:.2f} s",
            f"peak memory                {found['peak_memory_mb']:.0f} MB",
        ]
    )


command = Command("measure a model's speed and memory on this machine", add_arguments, run)
