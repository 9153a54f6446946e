"""What a bundle's ``card.json`` says, from the notes on the model, its training's logs, and the benchmarks.

    python benchmarks/figures.py BUNDLE [--results DIR] [--logs FILE ...]

A figure that was measured on another model stays out. Every run's log says how long it trained; the last run
is the one that the card's ``steps`` are of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import model_hash

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LOGS = ROOT / "training" / "checkpoints"
NOTES = ROOT / "training" / "recipes" / "default-card.json"
#: Benchmarks whose ``summary`` goes into the card.
MEASURED = ("emission", "robustness", "noise_only", "long_audio")

Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--logs", type=Path, nargs="+", default=find_logs())
    arguments = parser.parse_args()
    path = arguments.bundle / "card.json"
    path.write_text(update(path.read_text("utf-8"), arguments.bundle, arguments.results, arguments.logs))


def find_logs() -> list[Path]:
    """Return the logs of the runs that made the shipped model."""
    return sorted(LOGS.glob("*.log.jsonl"))


def update(content: str, bundle: Path, results: Path, logs: Sequence[Path]) -> str:
    """Return the content of a bundle's card with the notes, what was measured, and how it was trained.

    Raises:
        KeyError: a result of this model lacks its summary.
        ValueError: the card or a result is no JSON, or no log is that of the bundle's run.
    """
    card, notes, sha256 = json.loads(content), json.loads(NOTES.read_text("utf-8")), model_hash(bundle)
    found = {name: read(results / f"{name}.json") for name in ("wer", *MEASURED)}
    ours = {name: result for name, result in found.items() if result and result["model"]["sha256"] == sha256}
    card["training"] |= notes.pop("training") | {"runs": read_runs(logs, card["training"]["steps"])}
    card |= notes
    card["wer"] = ours["wer"]["summary"] if "wer" in ours else {}
    card["measured"] = {
        name: {"figures": ours[name]["summary"], "with": footnote(ours[name])}
        for name in MEASURED
        if name in ours
    }
    return json.dumps(card, indent=2) + "\n"


def read(path: Path) -> Results | None:
    """Return a benchmark's result, or None before its first run."""
    if not path.exists():
        return None
    try:
        result: Results = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: no JSON ({error})") from error
    return result


def read_runs(logs: Sequence[Path], last_steps: int) -> list[Results]:
    """Return what runs did, by their logs, the one of so many steps last."""
    runs = []
    for path in logs:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        end, name = rows[-1], path.parent.name if path.name == "log.jsonl" else path.name.partition(".")[0]
        hours = {"audio_hours": round(end["hours"], 1), "wall_hours": round(end["minutes"] / 60, 2)}
        runs.append({"run": name, "steps": end["step"], **hours})
    if last_steps not in [run["steps"] for run in runs]:
        raise ValueError(
            f"the card's run has {last_steps} steps, the logs {[run['steps'] for run in runs]}; "
            "keep the log of the bundle's run with them"
        )
    return sorted(runs, key=lambda run: run["steps"] == last_steps)


def footnote(result: Results) -> str:
    """Where it was measured and with what."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    return f"{machine['processor']}, {machine['cores']} cores; {versions}"


if __name__ == "__main__":
    main()
