"""``onebest inspect``: a bundle -> what it is, and whether it is sound."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from onebest.bundle import FRAME_MS, Bundle, load_bundle
from onebest.card import find_files
from onebest.cli import Command
from onebest.recognizer import DEFAULT_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model", nargs="?", type=Path, help="folder, or OWNER/NAME of a fetched model (default: what ships)"
    )
    parser.add_argument("--json", action="store_true", help="print it all as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Load the bundle, which checks it, and print what it says of itself."""
    described = describe(load_bundle(arguments.model or DEFAULT_MODEL))
    print(json.dumps(described, indent=2) if arguments.json else format_description(described))
    return 0


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return what a bundle is: its sizes and files as they are, and its card."""
    files = find_files(bundle.folder, bundle.card)
    return {
        "name": bundle.name,
        "folder": str(bundle.folder),
        "bytes": {path.name: path.stat().st_size for path in files.paths},
        "chunk_ms": bundle.sizes.chunk_ms,
        "look_ahead_ms": bundle.sizes.layout.look_ahead_frames * FRAME_MS,
        "left_context": bundle.sizes.left_context,
        "tokens": bundle.sizes.vocab_size,
        "card": bundle.card,
    }


def format_description(described: dict[str, Any]) -> str:
    """Return the most of it as lines of text."""
    card, size = described["card"], sum(described["bytes"].values()) / 1e6
    training, architecture = _object(card, "training"), _object(card, "architecture")
    data = training["data"] if isinstance(training.get("data"), list) else []
    corpora = [entry for entry in data if isinstance(entry, dict)]
    hours = sum(entry["hours"] for entry in corpora if isinstance(entry.get("hours"), (int, float)))
    names = ", ".join(str(entry.get("corpus")) for entry in corpora)
    rows = {
        "name": described["name"],
        "folder": described["folder"],
        "files": f"{len(described['bytes'])}, {size:.1f} MB, "
        + ("as their card says" if card else "no card to compare with"),
        "language": card.get("language"),
        "precision": architecture.get("precision"),
        "chunk": f"{described['chunk_ms']} ms"
        + (f", of them {described['look_ahead_ms']} ms looked ahead" if described["look_ahead_ms"] else ""),
        "left context": described["left_context"] and f"{described['left_context'] * 40 / 1000:g} s",
        "vocabulary": f"{described['tokens']} tokens",
        "trained with": corpora and f"{hours:.1f} hours of speech: {names}",
        "limits": card.get("limits"),
        "license": card.get("license"),
    }
    lines = [f"{key:13} {value}" for key, value in rows.items() if value]
    return "\n".join([*lines, *_format_error_rates(_object(card, "wer"))])


def _object(card: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object of a card, empty where there is none: loading checks only what the model needs."""
    found = card.get(key)
    return found if isinstance(found, dict) else {}


def _format_error_rates(rates: dict[str, Any]) -> list[str]:
    found = {name: row for name, row in rates.items() if isinstance(row, dict)}
    return [
        f"{'WER % ' + name:13} " + ", ".join(f"{corpus} {_format_rate(rate)}" for corpus, rate in row.items())
        for name, row in found.items()
    ]


def _format_rate(rate: object) -> str:
    return f"{rate:.1f}" if isinstance(rate, (int, float)) else str(rate)


command = Command("say what a model is, and check it", add_arguments, run)
