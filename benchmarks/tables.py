"""The README's tables, written from what the benchmarks measured: benchmarks/results/*.json -> README.md.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``. Every figure comes from NAME.json, the last
line of what benchmarks/NAME.py prints; one that is missing there is an error. ``--check`` writes nothing and
fails if the README differs from the results; before a benchmark's first run its table is a line that says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "*Not measured yet.*"

Results = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only; status 1 if something differs")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    before = readme.read_text("utf-8")
    try:
        after = fill(before, RESULTS, allow_missing=check)
    except (OSError, KeyError, ValueError) as error:
        print(f"tables.py: {describe(error)}", file=sys.stderr)
        return 1
    if check and after != before:
        print("tables.py: README.md differs from benchmarks/results; run: make tables", file=sys.stderr)
        return 1
    if not check:
        readme.write_text(after, "utf-8")
    return 0


def describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"a result lacks {error.args[0]!r}; run its benchmark again"
    return str(error)


def fill(text: str, folder: Path, allow_missing: bool = False) -> str:
    """Return the README's text with every table made from the results in a folder.

    Raises:
        FileNotFoundError: a result is missing, unless that is allowed; the table then says so.
        KeyError: a result lacks a figure.
        ValueError: the text lacks a table's marks, or a result is no JSON.
    """
    for name, make in TABLES.items():
        marks = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        if len(marks.findall(text)) != 1:
            raise ValueError(f"README.md: expected one <!-- {name} --> with its <!-- /{name} -->")
        path = folder / f"{name}.json"
        body = NOT_MEASURED if allow_missing and not path.exists() else make(read(path))
        text = marks.sub(lambda _, body=body: f"{body}\n", text)
    return text


def read(path: Path) -> Results:
    try:
        result: Results = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.name}: no such result; run benchmarks/{path.stem}.py") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: no JSON ({error})") from error
    return result


def wer_table(result: Results) -> str:
    rows = result["rows"]
    corpora = list(rows[0]["scores"])
    hours = [f"{corpus}, {rows[0]['scores'][corpus]['hours']:.2f} h" for corpus in corpora]
    body = [[row["latency"], *(f"{row['scores'][corpus]['wer']:.1f}" for corpus in corpora)] for row in rows]
    caption = f"Model {result['model']['sha256'][:12]}; {footnote(result)}."
    return grid(["WER %", *hours], body) + "\n\n" + caption


def decode_table(result: Results) -> str:
    rows = [
        [
            f"seconds a second of audio, {row['threads']} thread{'s' if row['threads'] > 1 else ''}",
            f"{row['onebest']:.4f}",
            f"{row['sherpa_onnx']:.4f}",
        ]
        for row in result["rows"]
    ]
    cold, memory = result["cold_start"], result["peak_memory"]
    rows.append(["cold start, seconds", f"{cold['onebest']:.2f}", f"{cold['sherpa_onnx']:.2f}"])
    rows.append(["peak memory, MB", f"{memory['onebest']:.0f}", f"{memory['sherpa_onnx']:.0f}"])
    caption = (
        f"Model {result['model']['sha256'][:12]}, chunks of {result['model']['chunk_ms']} ms, "
        f"{result['repeats']} paired runs, medians; {footnote(result)}."
    )
    return grid(["", "onebest", "sherpa-onnx"], rows) + "\n\n" + caption


def loss_table(result: Results) -> str:
    rows = [
        [
            shape(row["size"]),
            *(f"{row[key]:.0f}" for key in ("ours_ms", "torchaudio_ms", "ours_mb", "torchaudio_mb")),
            f"{row['band_ms']:.0f}",
        ]
        for row in result["rows"]
    ]
    head = ["B, T, U, V", "ms", "torchaudio, ms", "MB", "torchaudio, MB", "on a band, ms"]
    return grid(head, rows) + f"\n\nForward and backward, one thread; {footnote(result)}."


def mic_table(result: Results) -> str:
    keys = ("seconds_to_listening", "slowest_seconds_to_listening", "processor_seconds")
    row = ["onebest mic", *(f"{result[key]:.2f}" for key in keys)]
    head = ["from start to listening", "seconds", "slowest", "processor time"]
    return grid(head, [row]) + f"\n\n{result['repeats']} runs, median and slowest; {footnote(result)}."


def kd_table(result: Results) -> str:
    runs: dict[str, list[Results]] = {}
    for row in result["rows"]:
        runs.setdefault(row["name"], []).append(row)
    rows = []
    for name, seeds in runs.items():
        first = seeds[0]
        rates = [run["wer"]["overall"] for run in seeds]
        delays = [run["emission_delay_ms"] for run in seeds if run["emission_delay_ms"]]
        times = [
            f"{mean([delay[part] for delay in delays]):.0f}" if delays else "" for part in ("p50", "p90")
        ]
        hours = [f"{first[part]:.1f}" for part in ("labelled_hours", "unlabelled_hours")]
        spread = f" ({min(rates):.1f} to {max(rates):.1f})" if len(rates) > 1 else ""
        rows.append([f"{name}: {first['targets']}", *hours, f"{mean(rates):.1f}{spread}", *times])
    head = ["student, targets", "labelled, h", "unlabelled, h", "WER %", "delay p50, ms", "p90, ms"]
    gains = []
    for key, paper in result["paper"].items():
        ours, spread = result["werr"][key], result["werr_spread"][key]
        figure = "" if ours is None else f"{ours:.1f} ({spread[0]:.1f} to {spread[1]:.1f})"
        gains.append([key.replace("_", ", "), figure, f"{paper:.1f}"])
    steps = f"{result['rows'][0]['steps']} steps each; of several seeds, mean and range; {footnote(result)}."
    reduction = grid(["relative reduction of WER, %", "here", "paper"], gains)
    return f"{grid(head, rows)}\n\n{reduction}\n\n{steps}"


def shape(size: Results) -> str:
    sizes = ", ".join(str(size[axis]) for axis in ("batch", "frames", "labels", "vocabulary"))
    return sizes + (" (ragged)" if size["ragged"] else "")


def footnote(result: Results) -> str:
    """Where it was measured and with what."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    return f"{machine['processor']}, {machine['cores']} cores; {versions}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


TABLES: dict[str, Callable[[Results], str]] = {
    "wer": wer_table,
    "decode": decode_table,
    "mic": mic_table,
    "loss": loss_table,
    "kd_table": kd_table,
}


if __name__ == "__main__":
    sys.exit(main())
