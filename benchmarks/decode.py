"""How fast onebest decodes, beside sherpa-onnx: same model, same audio, same threads, same run.

    python benchmarks/decode.py [--model DIR] [--audio FILE]

Each side decodes in a process of its own (their copies of onnxruntime do not mix), the two take turns, and
what is reported is the median of the paired runs: one stream, and many that advance together. Cold start is a
whole process on ten seconds of audio: ``onebest transcribe`` against the shortest Python program that does
the same with sherpa-onnx.

The last line is JSON. There a speed-up is their time over ours on one thread, ``cold_start_ratio`` ours over
theirs, ``of_bound`` the least time the encoder could take (see ``bound``) over the time of one stream,
``bytes_a_stream`` what one more stream takes, and ``endless`` what an endless stream gains in an hour:
memory, and time for a minute of audio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from bound import measure_bound
from machine import describe_machine, describe_versions
from sides import ENDLESS, MEMORY, ONEBEST, PLAIN, PREPARE, SHERPA, Pair, Worker, run_process, run_program

SAMPLES = Path(__file__).parents[1] / "samples"
CLIP_SECONDS, COLD_SECONDS = 30, 10
THREADS = (1, 2)
STREAMS = (16, 64)


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(arguments, folder)
        rows, streams = [], []
        for threads in THREADS:
            row = compare_decoding(model, f"{folder}/clip", threads, 1, arguments.repeats)
            rows.append({"threads": threads, **row})
        for count in STREAMS:
            row = compare_decoding(model, f"{folder}/many", 1, count, arguments.repeats)
            streams.append({"streams": count, **row})
        cold, memory = compare_cold_starts(model, folder, arguments.repeats)
        memory_a_stream = compare_memory(model, f"{folder}/many")
        endless = measure_endless(model, f"{folder}/clip.wav", arguments.minutes)
    bound = measure_bound(model["files"][0], model["window_frames"])
    result = {
        "benchmark": "decode",
        "real_time_factor": rows[0]["onebest"],
        "speedup_vs_sherpa_onnx": rows[0]["speedup"],
        "cold_start_vs_sherpa_onnx": 1 / cold["speedup"],
        "peak_memory_mb": memory["onebest"],
        "single_stream_speedup": rows[0]["speedup"],
        **{f"streams_{row['streams']}_speedup": row["speedup"] for row in streams},
        "cold_start_ratio": 1 / cold["speedup"],
        "of_bound": bound["chunk_seconds"] / (rows[0]["onebest"] * model["step_ms"] / 1000),
        "bytes_a_stream": memory_a_stream["onebest"],
        "rows": rows,
        "streams": streams,
        "cold_start": cold,
        "peak_memory": memory,
        "memory_a_stream": memory_a_stream,
        "bound": bound,
        "endless": endless,
        "same_tokens": all(row["same_tokens"] for row in (*rows, *streams)),
        "model": {key: model[key] for key in ("name", "sha256", "chunk_ms")},
        "audio": Path(arguments.audio).name or "noise",
        "clip_seconds": CLIP_SECONDS,
        "stream_seconds": arguments.stream_seconds,
        "repeats": arguments.repeats,
        "machine": describe_machine(),
        "versions": describe_versions("onebest", "onnxruntime", "sherpa-onnx", "numpy"),
    }
    report(result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="", help="the model's folder (default: what ships)")
    parser.add_argument("--audio", default=default_audio(), help="speech (default: what ships, else noise)")
    parser.add_argument("--repeats", type=int, default=11, help="paired runs of each kind (default: 11)")
    parser.add_argument(
        "--stream-seconds", type=float, default=10.0, help="audio of each of many streams (default: 10)"
    )
    parser.add_argument("--minutes", type=int, default=60, help="audio of the endless stream (default: 60)")
    return parser.parse_args()


def default_audio() -> str:
    clips = sorted(path for path in SAMPLES.glob("*") if path.suffix in (".flac", ".wav", ".ogg", ".opus"))
    return str(clips[0]) if clips else ""


def prepare(arguments: argparse.Namespace, folder: str) -> dict:
    """Write the clips, the padded ones for sherpa-onnx, which does not pad; return what the model is."""
    clips = {"clip": CLIP_SECONDS, "cold": COLD_SECONDS, "many": arguments.stream_seconds}
    words = [f"{name}={seconds}" for name, seconds in clips.items()]
    model = json.loads(run_program(PREPARE, [arguments.model, arguments.audio, folder, *words]))
    return {**model, "seconds": {f"{folder}/{name}": seconds for name, seconds in clips.items()}}


def sides(model: dict, clip: str, threads: int, count: int) -> tuple[list[str], list[str]]:
    """Return both programs' arguments."""
    rest = [str(threads), str(count)]
    return [model["folder"], f"{clip}.wav", *rest], [*model["files"], f"{clip}-padded.wav", *rest]


def compare_decoding(model: dict, clip: str, threads: int, count: int, repeats: int) -> dict:
    """Return both sides' seconds a second of audio, and whether their tokens are the same.

    Ours goes without a start margin and pauses, which sherpa-onnx does not have, so that both do the same.
    """
    our_words, their_words = sides(model, clip, threads, count)
    ours, theirs = Worker(ONEBEST + PLAIN, our_words), Worker(SHERPA, their_words)
    pair = Pair([], [])
    for _ in range(repeats):
        pair.ours.append(ours.run())
        pair.theirs.append(theirs.run())
    ours.close()
    theirs.close()
    return {"same_tokens": ours.text == theirs.text, **pair.summarise(count * model["seconds"][clip])}


def compare_cold_starts(model: dict, folder: str, repeats: int) -> tuple[dict, dict]:
    """Return the seconds of whole processes on the short clip, and their peak memory in MB, medians.

    The first run of each does not count: it reads the disk and writes the bytecode, which installed
    packages have.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    onebest = str(Path(sys.executable).with_name("onebest"))
    ours = [onebest, "transcribe", "--model", model["folder"], f"{folder}/cold.wav"]
    words = sides(model, f"{folder}/cold", 1, 1)[1]
    theirs = [sys.executable, "-c", SHERPA + "print(decode())", *words]
    runs = [(run_process(ours), run_process(theirs)) for _ in range(repeats + 1)]
    del runs[0]
    pair = Pair([ours[0] for ours, _ in runs], [theirs[0] for _, theirs in runs])
    return pair.summarise(), {
        "onebest": statistics.median(ours[1] for ours, _ in runs),
        "sherpa_onnx": statistics.median(theirs[1] for _, theirs in runs),
    }


def compare_memory(model: dict, clip: str) -> dict:
    """Return the bytes that one more stream takes on each side."""
    ours, theirs = sides(model, clip, 1, STREAMS[0])
    return {
        "onebest": float(run_program(ONEBEST + MEMORY, ours)),
        "sherpa_onnx": float(run_program(SHERPA + MEMORY, theirs)),
    }


def measure_endless(model: dict, audio: str, minutes: int) -> dict:
    """Return what an endless stream gains in an hour, from straight lines: bytes, and part of its time."""
    told = json.loads(run_program(ENDLESS, [model["folder"], audio, str(minutes)]))
    seconds, memory = np.array(told["seconds"][1:]), np.array(told["memory"][1:])
    hours = np.arange(len(seconds)) / 60
    return {
        "minutes": minutes,
        "bytes_an_hour": float(np.polyfit(hours, memory, 1)[0]),
        "slower_an_hour": float(np.polyfit(hours, seconds, 1)[0] / seconds.mean()),
    }


def report(result: dict) -> None:
    """Print the tables, then everything as one line of JSON."""
    model, bound, endless = result["model"], result["bound"], result["endless"]
    print(
        f"{model['name']}, {model['chunk_ms']} ms chunks, {result['audio']}, {result['repeats']} paired runs"
    )
    print(f"{'':24}{'onebest':>10}{'sherpa-onnx':>13}{'speed-up':>10}   lowest..highest")
    for row in result["rows"]:
        print_row(f"real-time factor, {row['threads']} thr.", row)
    for row in result["streams"]:
        print_row(f"the same, {row['streams']} streams", row)
    print_row("cold start, s", result["cold_start"])
    for name, key, unit in (("peak memory, MB", "peak_memory", 1), ("MB a stream", "memory_a_stream", 1e6)):
        values = result[key]
        print(f"{name:24}{values['onebest'] / unit:10.1f}{values['sherpa_onnx'] / unit:13.1f}")
    rates = ", ".join(f"{rate / 1e9:.0f} G/s {kind}" for kind, rate in bound["rates"].items())
    counts = ", ".join(f"{count / 1e6:.0f} M {kind}" for kind, count in bound["multiply_adds"].items())
    print(
        f"least time a chunk: {bound['chunk_seconds'] * 1e3:.2f} ms ({counts} at {rates}), "
        f"{result['of_bound']:.2f} of one stream's time"
    )
    print(
        f"endless stream, {endless['minutes']} min: {endless['bytes_an_hour'] / 1e6:+.2f} MB an hour, "
        f"{endless['slower_an_hour']:+.1%} time a minute of audio an hour"
    )
    print(json.dumps(result))


def print_row(name: str, row: dict) -> None:
    print(
        f"{name:24}{row['onebest']:10.4f}{row['sherpa_onnx']:13.4f}{row['speedup']:10.2f}"
        f"   {row['lowest']:.2f}..{row['highest']:.2f}"
    )


if __name__ == "__main__":
    main()
