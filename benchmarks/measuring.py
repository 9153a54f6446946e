"""What the benchmarks of a model share: their arguments, ``onebest evaluate``, the last line.

Axis legend: S samples at 16 kHz.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from machine import describe_machine, describe_versions, model_hash

from onebest.cli import main as run_onebest
from onebest.cuts import Cut, FloatArray, load_cuts, read_cuts, sort_cuts
from onebest.recognizer import DEFAULT_MODEL

Scores = dict[str, dict[str, float]]
Results = dict[str, Any]


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark of a model takes; the first line is its description."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("manifest", type=Path, help="lhotse cut manifest, or a folder like LibriSpeech's")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="its folder (default: what ships)")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N cuts only")
    return parser


def read_speech(manifest: Path, limit: int | None) -> Iterator[tuple[Cut, FloatArray]]:
    """Give the first cuts of a manifest with their samples [S], by recording and start."""
    return load_cuts(sort_cuts(islice(read_cuts(manifest), limit)))


def evaluate(
    manifest: Path, model: Path, chunk_ms: int, jobs: int = 1, limit: int | None = None, beam: int = 1
) -> tuple[Scores, list[Results]]:
    """Return the scores by corpus and the decoded cuts that ``onebest evaluate`` finds.

    Emission delays are against the same model at full context.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        words = [
            "evaluate",
            manifest,
            "--model",
            model,
            "--chunk-ms",
            chunk_ms,
            "--jobs",
            jobs,
            "--beam",
            beam,
            "--json",
            out,
        ]
        words += ["--limit", limit] if limit else []
        run(*words)
        content = json.loads(out.read_text("utf-8"))
    return content["scores"], content["cuts"]


def run(*words: object) -> None:
    """Run a command of onebest without what it prints, or end with its status."""
    with contextlib.redirect_stdout(io.StringIO()):
        status = run_onebest([str(word) for word in words])
    if status:
        raise SystemExit(status)


def print_result(
    benchmark: str, arguments: argparse.Namespace, packages: Sequence[str] = (), **found: Any
) -> None:
    """Print the last line: all that was found, of which model, from which speech, where and with what."""
    result = {
        "benchmark": benchmark,
        **found,
        "manifest": arguments.manifest.name,
        "limit": arguments.limit,
        "model": {"name": arguments.model.name, "sha256": model_hash(arguments.model)},
        "machine": describe_machine(),
        "versions": describe_versions("onebest", "onnxruntime", *packages),
    }
    print(json.dumps(result))
