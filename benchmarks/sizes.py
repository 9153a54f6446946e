"""Models of several sizes beside each other: their error rates, and the time that one stream takes.

    python benchmarks/sizes.py MANIFEST MODEL [MODEL ...] [--audio FILE] [--jobs N] [--limit N]

Each MODEL is a bundle's folder. The error rates are those of ``onebest evaluate`` at 640 ms; the times are of
one stream on one thread, medians of runs in which the models take turns. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from decode import default_audio
from machine import describe_machine, describe_versions, model_hash
from measuring import Results, Scores, evaluate
from sides import ONEBEST, PREPARE, Worker, run_program

from onebest.bundle import load_bundle

CHUNK_MS, CLIP_SECONDS = 640, 30


def main() -> None:
    arguments = parse_arguments()
    seconds = measure_times(arguments.models, arguments.audio, arguments.repeats)
    rows = [
        describe(
            model, evaluate(arguments.manifest, model, CHUNK_MS, arguments.jobs, arguments.limit)[0], time
        )
        for model, time in zip(arguments.models, seconds, strict=True)
    ]
    for row in rows:
        rates = ", ".join(f"{corpus} {score['wer']:.1f}" for corpus, score in row["scores"].items())
        print(f"{row['name']:20}{row['megabytes']:8.1f} MB{row['seconds']:10.4f} s a second   {rates}")
    result = {
        "benchmark": "sizes",
        "rows": rows,
        "chunk_ms": CHUNK_MS,
        "repeats": arguments.repeats,
        "manifest": arguments.manifest.name,
        "limit": arguments.limit,
        "machine": describe_machine(),
        "versions": describe_versions("onebest", "onnxruntime"),
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path, help="lhotse cut manifest, or a folder like LibriSpeech's")
    parser.add_argument("models", type=Path, nargs="+", help="folders of bundles")
    parser.add_argument("--audio", default=default_audio(), help="speech to time (default: what ships)")
    parser.add_argument("--repeats", type=int, default=11, help="runs of each model (default: 11)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N cuts only")
    return parser.parse_args()


def describe(model: Path, scores: Scores, seconds: float) -> Results:
    """Return a model's row."""
    return {
        "name": load_bundle(model).name,
        "sha256": model_hash(model),
        "megabytes": sum(path.stat().st_size for path in model.glob("*.onnx")) / 1e6,
        "seconds": seconds,
        "scores": scores,
    }


def measure_times(models: list[Path], audio: str, repeats: int) -> list[float]:
    """Return each model's seconds for a second of audio, one stream on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for model in models:
            run_program(PREPARE, [str(model), audio, folder, f"{model.name}={CLIP_SECONDS}"])
            workers.append(Worker(ONEBEST, [str(model), f"{folder}/{model.name}.wav", "1", "1"]))
        runs = [[worker.run() for worker in workers] for _ in range(repeats)]
        for worker in workers:
            worker.close()
    return [statistics.median(times) / CLIP_SECONDS for times in zip(*runs, strict=True)]


if __name__ == "__main__":
    main()
