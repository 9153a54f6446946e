"""The word error rate of a model on each corpus of a manifest, at several latencies and offline.

    python benchmarks/wer.py MANIFEST [--model DIR] [--jobs N] [--limit N]

Each row is ``onebest evaluate``, the shipped runtime, with another chunk length; offline is one chunk that
holds the longest utterance. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe_machine, describe_versions, model_hash

from onebest.recognizer import DEFAULT_MODEL

CHUNKS_MS = {"320 ms": 320, "640 ms": 640, "1280 ms": 1280, "offline": 40_000}


def main() -> None:
    arguments = parse_arguments()
    rows = {name: evaluate(arguments, chunk_ms) for name, chunk_ms in CHUNKS_MS.items()}
    corpora = list(next(iter(rows.values())))
    print(f"{'WER %':12}" + "".join(f"{corpus:>18}" for corpus in corpora))
    for name, scores in rows.items():
        print(f"{name:12}" + "".join(f"{scores[corpus]['wer']:18.2f}" for corpus in corpora))
    folder = arguments.model or DEFAULT_MODEL
    print(
        json.dumps(
            {
                "benchmark": "wer",
                "rows": [
                    {"latency": name, "chunk_ms": CHUNKS_MS[name], "scores": scores}
                    for name, scores in rows.items()
                ],
                "manifest": arguments.manifest.name,
                "model": {"name": folder.name, "sha256": model_hash(folder)},
                "machine": describe_machine(),
                "versions": describe_versions("onebest", "onnxruntime"),
            }
        )
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", type=Path, help="the model's folder (default: what ships)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, help="take the first N cuts only")
    return parser.parse_args()


def evaluate(arguments: argparse.Namespace, chunk_ms: int) -> dict[str, dict[str, float]]:
    """Return the scores by corpus at one chunk length."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        command = [
            Path(sys.executable).with_name("onebest"),
            "evaluate",
            arguments.manifest,
            "--json",
            out,
            "--chunk-ms",
            str(chunk_ms),
            "--jobs",
            str(arguments.jobs),
        ]
        command += ["--model", arguments.model] if arguments.model else []
        command += ["--limit", str(arguments.limit)] if arguments.limit else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text("utf-8"))["scores"]


if __name__ == "__main__":
    main()
