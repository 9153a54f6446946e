"""How fast onebest decodes, beside sherpa-onnx: same model, same audio, same threads, same run.

    python benchmarks/decode.py [--model DIR] [--audio FILE]

Each side decodes in a process of its own (their copies of onnxruntime do not mix), the two take turns, and
what is reported is the median of the paired runs. Cold start is a whole process on ten seconds of audio:
``onebest transcribe`` against the shortest Python program that does the same with sherpa-onnx. The last
line is JSON: ``speedup_vs_sherpa_onnx`` is their time over ours (one thread), ``cold_start_vs_sherpa_onnx``
ours over theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine, describe_versions

SAMPLES = Path(__file__).parents[1] / "samples"
CLIP_SECONDS, COLD_SECONDS = 30, 10
THREADS = (1, 2)

# The programs below run in processes of their own, so that this one stays small: a child's peak memory counts
# from that of its parent. Each starts with its arguments in sys.argv.

PREPARE = """
import hashlib, json, sys, pathlib
import numpy as np, soundfile
from onebest.audio import read_blocks
from onebest.recognizer import DEFAULT_MODEL, TAIL_SAMPLES
from onebest.bundle import load_bundle
model, audio, folder, clip_seconds, cold_seconds = sys.argv[1:]
bundle = load_bundle(model or DEFAULT_MODEL)
if audio:
    samples = np.concatenate(list(read_blocks(audio)))
else:
    samples = (0.05 * np.random.default_rng(0).standard_normal(16000 * 10)).astype(np.float32)
chunk = bundle.sizes.chunk_frames
for name, seconds in (("clip", int(clip_seconds)), ("cold", int(cold_seconds))):
    cut = np.resize(samples, seconds * 16000)
    chunks = -(-(len(cut) + TAIL_SAMPLES) // (chunk * 160))
    padded = np.zeros((chunks * chunk + bundle.sizes.pad_frames + 1) * 160 + 120, np.float32)
    padded[: len(cut)] = cut
    soundfile.write(f"{folder}/{name}.wav", cut, 16000, subtype="PCM_16")
    soundfile.write(f"{folder}/{name}-padded.wav", padded, 16000, subtype="PCM_16")
paths = [bundle.encoder.path, bundle.decoder.path, bundle.joiner.path]
digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
print(json.dumps({"folder": str(bundle.folder), "name": bundle.name, "sha256": digest, "chunk_ms": chunk * 10,
                  "files": [str(path) for path in paths] + [str(bundle.folder / "tokens.txt")]}))
"""

SHERPA = """
import sys, time, wave
import numpy as np, sherpa_onnx
encoder, decoder, joiner, tokens, audio, threads, repeat = sys.argv[1:]
recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    encoder=encoder, decoder=decoder, joiner=joiner, tokens=tokens, num_threads=int(threads))
with wave.open(audio) as file:
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
def decode():
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, samples)
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    return "".join(recognizer.tokens(stream))
"""

ONEBEST = """
import sys, time
import soundfile
from onebest import Recognizer
folder, audio, threads, repeat = sys.argv[1:]
recognizer = Recognizer(folder, threads=int(threads))
samples, _ = soundfile.read(audio, dtype="float32")
def decode():
    return "".join(token.token for token in recognizer.transcribe(samples).tokens)
"""

REPEAT = """
text = decode()
print(text, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    decode()
    print(time.perf_counter() - start, flush=True)
"""


@dataclass(frozen=True)
class Pair:
    """What both sides gave in runs that took turns."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours, run by run: how many times as fast ours is."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]


class Worker:
    """A process that decodes the clip each time it is asked to."""

    def __init__(self, program: str, arguments: Sequence[str]):
        command = [sys.executable, "-c", program + REPEAT, *arguments, "repeat"]
        self._process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.text = self._read()

    def run(self) -> float:
        """Decode once and return the seconds that took."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("decode.py: a worker ended early; what it said stands above")
        return line.rstrip("\n")


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(arguments, folder)
        rows = []
        for threads in THREADS:
            pair, same = compare_decoding(model, folder, threads, arguments.repeats)
            rows.append({"threads": threads, "same_tokens": same, **summarise(pair, CLIP_SECONDS)})
        cold, memory = compare_cold_starts(model, folder, arguments.repeats)
    report(model, rows, cold, memory, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="", help="the model's folder (default: what ships)")
    parser.add_argument("--audio", default=default_audio(), help="speech (default: what ships, else noise)")
    parser.add_argument("--repeats", type=int, default=11, help="paired runs of each kind (default: 11)")
    return parser.parse_args()


def default_audio() -> str:
    clips = sorted(path for path in SAMPLES.glob("*") if path.suffix in (".flac", ".wav", ".ogg", ".opus"))
    return str(clips[0]) if clips else ""


def prepare(arguments: argparse.Namespace, folder: str) -> dict:
    """Write the clips, the padded ones for sherpa-onnx, which does not pad; return what the model is."""
    words = [arguments.model, arguments.audio, folder, str(CLIP_SECONDS), str(COLD_SECONDS)]
    command = [sys.executable, "-c", PREPARE, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def compare_decoding(model: dict, folder: str, threads: int, repeats: int) -> tuple[Pair, bool]:
    """Return the seconds of both sides for the clip, and whether their tokens are the same."""
    ours = Worker(ONEBEST, [model["folder"], f"{folder}/clip.wav", str(threads)])
    theirs = Worker(SHERPA, [*model["files"], f"{folder}/clip-padded.wav", str(threads)])
    pair = Pair([], [])
    for _ in range(repeats):
        pair.ours.append(ours.run())
        pair.theirs.append(theirs.run())
    ours.close()
    theirs.close()
    return pair, ours.text == theirs.text


def compare_cold_starts(model: dict, folder: str, repeats: int) -> tuple[Pair, dict]:
    """Return the seconds of whole processes on the short clip, and their peak memory in MB, medians."""
    ours = [
        str(Path(sys.executable).with_name("onebest")),
        "transcribe",
        "--model",
        model["folder"],
        f"{folder}/cold.wav",
    ]
    once = SHERPA + "print(decode())"
    theirs = [sys.executable, "-c", once, *model["files"], f"{folder}/cold-padded.wav", "1", "once"]
    runs = [(run_process(ours), run_process(theirs)) for _ in range(repeats + 1)]
    del runs[0]  # it read the disk
    pair = Pair([ours[0] for ours, _ in runs], [theirs[0] for _, theirs in runs])
    return pair, {
        "onebest": statistics.median(ours[1] for ours, _ in runs),
        "sherpa_onnx": statistics.median(theirs[1] for _, theirs in runs),
    }


def run_process(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in MB of a whole process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"decode.py: {command[0]} ended with status {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def summarise(pair: Pair, seconds: float = 1.0) -> dict:
    """Return the medians, each side's seconds for a second of audio, and the spread of the ratio."""
    return {
        "onebest": statistics.median(pair.ours) / seconds,
        "sherpa_onnx": statistics.median(pair.theirs) / seconds,
        "speedup": statistics.median(pair.ratios),
        "lowest": min(pair.ratios),
        "highest": max(pair.ratios),
    }


def report(
    model: dict, rows: list[dict], cold_pair: Pair, memory: dict, arguments: argparse.Namespace
) -> None:
    """Print the table, then everything as one line of JSON."""
    cold = summarise(cold_pair)
    print(
        f"{model['name']}, {model['chunk_ms']} ms chunks, {Path(arguments.audio).name or 'noise'}, "
        f"{arguments.repeats} paired runs"
    )
    print(f"{'':24}{'onebest':>10}{'sherpa-onnx':>13}{'speed-up':>10}   lowest..highest")
    for row in rows:
        print_row(f"real-time factor, {row['threads']} thr.", row)
    print_row("cold start, s", cold)
    print(f"{'peak memory, MB':24}{memory['onebest']:10.1f}{memory['sherpa_onnx']:13.1f}")
    print(
        json.dumps(
            {
                "benchmark": "decode",
                "real_time_factor": rows[0]["onebest"],
                "speedup_vs_sherpa_onnx": rows[0]["speedup"],
                "cold_start_vs_sherpa_onnx": 1 / cold["speedup"],
                "peak_memory_mb": memory["onebest"],
                "rows": rows,
                "cold_start": cold,
                "peak_memory": memory,
                "same_tokens": all(row["same_tokens"] for row in rows),
                "model": {key: model[key] for key in ("name", "sha256", "chunk_ms")},
                "audio": Path(arguments.audio).name or "noise",
                "clip_seconds": CLIP_SECONDS,
                "repeats": arguments.repeats,
                "machine": describe_machine(),
                "versions": describe_versions("onebest", "onnxruntime", "sherpa-onnx", "numpy"),
            }
        )
    )


def print_row(name: str, row: dict) -> None:
    print(
        f"{name:24}{row['onebest']:10.4f}{row['sherpa_onnx']:13.4f}{row['speedup']:10.2f}"
        f"   {row['lowest']:.2f}..{row['highest']:.2f}"
    )


if __name__ == "__main__":
    main()
