"""The tables of the README and the model card, from what the benchmarks measured and the model's card.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``. Every figure comes from
benchmarks/results/NAME.json, the last line of what benchmarks/NAME.py prints, or from the shipped model's
card.json, which is brought up to date first (figures.py). Before a benchmark's first run its table is a line
that says so. ``--check`` writes nothing and fails if something differs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean

from figures import RESULTS, ROOT, Results, find_logs, footnote, read, update
from machine import model_hash

MODEL = ROOT / "runtime" / "onebest" / "model"
NOT_MEASURED = "*Not measured yet.*"
#: Which tables stand where.
DOCUMENTS = {
    "README.md": ("wer", "decode", "serve", "mic", "loss", "kd_table"),
    "docs/model-card.md": (
        "card",
        "data",
        "wer",
        "sizes",
        "emission",
        "robustness",
        "noise_only",
        "long_audio",
        "limits",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only; status 1 if something differs")
    check, card = parser.parse_args().check, MODEL / "card.json"
    try:
        after = {card: update(card.read_text("utf-8"), MODEL, RESULTS, find_logs())}
        if not check:
            card.write_text(after[card], "utf-8")
        for name, tables in DOCUMENTS.items():
            after[ROOT / name] = fill((ROOT / name).read_text("utf-8"), tables, RESULTS, name)
    except (OSError, KeyError, ValueError) as error:
        print(f"tables.py: {describe(error)}", file=sys.stderr)
        return 1
    stale = [str(path.relative_to(ROOT)) for path, text in after.items() if path.read_text("utf-8") != text]
    if check and stale:
        print(f"tables.py: {', '.join(stale)} differ from the results; run: make tables", file=sys.stderr)
        return 1
    for path, text in after.items() if not check else ():
        path.write_text(text, "utf-8")
    return 0


def describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"a result lacks {error.args[0]!r}; run its benchmark again"
    return str(error)


def fill(text: str, names: Sequence[str], folder: Path, where: str = "README.md") -> str:
    """Return a document's text with the named tables made from the results in a folder.

    Raises:
        KeyError: a result lacks a figure.
        ValueError: the text lacks a table's marks, or a result is no JSON.
    """
    for name in names:
        marks = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        if len(marks.findall(text)) != 1:
            raise ValueError(f"{where}: expected one <!-- {name} --> with its <!-- /{name} -->")
        result = read(MODEL / "card.json" if name in CARD_TABLES else folder / f"{name}.json")
        body = NOT_MEASURED if result is None else TABLES[name](result)
        if result is not None and name in COMMANDS:
            body += f" Command: `{COMMANDS[name]}`."
        text = marks.sub(lambda _, body=body: f"{body}\n", text)
    return text


@cache
def shipped_hash() -> str:
    return model_hash(MODEL)


def model_note(result: Results) -> str:
    """Name the model that was measured, and say so if another one ships now."""
    sha256 = result["model"]["sha256"]
    note = "" if sha256 == shipped_hash() else ", an earlier one than ships now"
    return f"Model {sha256[:12]}{note}"


def wer_table(result: Results) -> str:
    rows = result["rows"]
    corpora = list(rows[0]["scores"])
    hours = [f"{corpus}, {rows[0]['scores'][corpus]['hours']:.2f} h" for corpus in corpora]
    scores = [[row["scores"].get(corpus) for corpus in corpora] for row in rows]
    rates = [[f"{score['wer']:.1f}" if score else "" for score in each] for each in scores]
    body = [[row["latency"], *each] for row, each in zip(rows, rates, strict=True)]
    caption = f"{model_note(result)}; {footnote(result)}."
    return grid(["WER %", *hours], body) + "\n\n" + caption


def sizes_table(result: Results) -> str:
    corpora = list(result["rows"][0]["scores"])
    rows = [
        [
            row["name"],
            f"{row['megabytes']:.1f}",
            f"{row['seconds']:.4f}",
            *(f"{row['scores'][corpus]['wer']:.1f}" for corpus in corpora),
        ]
        for row in result["rows"]
    ]
    models = ", ".join(f"{row['name']} {row['sha256'][:12]}" for row in result["rows"])
    head = ["", "MB, int8", "seconds a second of audio", *(f"WER %, {corpus}" for corpus in corpora)]
    caption = f"{models}; chunks of {result['chunk_ms']} ms, one thread; {footnote(result)}."
    return grid(head, rows) + "\n\n" + caption


def decode_table(result: Results) -> str:
    rows = [
        [
            f"seconds a second of audio, {row['threads']} thread{'s' if row['threads'] > 1 else ''}",
            f"{row['onebest']:.4f}",
            f"{row['sherpa_onnx']:.4f}",
        ]
        for row in result["rows"]
    ]
    for row in result.get("streams", []):
        label = f"the same, 1 thread, {row['streams']} streams at once"
        rows.append([label, f"{row['onebest']:.4f}", f"{row['sherpa_onnx']:.4f}"])
    cold, memory = result["cold_start"], result["peak_memory"]
    rows.append(["cold start, seconds", f"{cold['onebest']:.2f}", f"{cold['sherpa_onnx']:.2f}"])
    rows.append(["peak memory, MB", f"{memory['onebest']:.0f}", f"{memory['sherpa_onnx']:.0f}"])
    caption = (
        f"{model_note(result)}, chunks of {result['model']['chunk_ms']} ms, "
        f"{result['repeats']} paired runs, medians; {footnote(result)}."
    )
    return grid(["", "onebest", "sherpa-onnx"], rows) + "\n\n" + caption


def percentiles(found: Results) -> str:
    return " / ".join(whole(found.get(f"p{part}")) for part in (50, 95, 99))


def serve_table(result: Results) -> str:
    sides = [result["sides"][name] for name in ("onebest", "sherpa-onnx")]
    rows = [["live streams, at most", *(str(side["streams"]) for side in sides)]]
    for key, label in (("final_ms", "final text after the last sample"), ("partial_ms", "partial text")):
        found = [side["best"][key] if side["best"] else {} for side in sides]
        rows.append([f"{label}, ms, p50 / p95 / p99", *map(percentiles, found)])
    first = [side["levels"][0] for side in sides]
    partials = (percentiles(level["partial_ms"]) for level in first)
    rows.append([f"the same with {first[0]['streams']} streams", *partials])
    rows.append(["memory a stream, MB", *(f"{side['bytes_a_stream'] / 1e6:.1f}" for side in sides)])
    growth = (f"{side['growth_bytes_a_second'] / 1e3:.0f}" for side in sides)
    rows.append(["growth under half of that load, kB a second", *growth])
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    chunks = f"{threads}, chunks of {result['model']['chunk_ms']} ms"
    caption = (
        f"A server on one core, {chunks}; clients in real time on the other; {model_note(result)}; "
        f"{footnote(result)}."
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


def emission_table(result: Results) -> str:
    keys = [f"{kind}_p{part}_ms" for kind in ("emission", "shown") for part in (50, 90)]
    rows = [[row["latency"], row["reference"], *(whole(row[key]) for key in keys)] for row in result["rows"]]
    head = ["", "later than", "emitted, p50, ms", "p90, ms", "can be shown, p50, ms", "p90, ms"]
    caption = f"{model_note(result)}; {footnote(result)}."
    return grid(head, rows) + "\n\n" + caption


def whole(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.0f}"


def robustness_table(result: Results) -> str:
    corpora = list(result["rows"][0]["wer"])
    parts = ("p50", "p90") if "emission_delay_ms" in result["rows"][0] else ()  # older results lack it
    rows = [
        [
            row["condition"],
            *(f"{row['wer'][corpus]:.1f}" for corpus in corpora),
            *(whole((row["emission_delay_ms"] or {}).get(part)) for part in parts),
        ]
        for row in result["rows"]
    ]
    caption = f"{model_note(result)}, chunks of {result['chunk_ms']} ms; {footnote(result)}."
    head = ["WER %", *corpora, *(f"delay, {part}, ms" for part in parts)]
    return grid(head, rows) + "\n\n" + caption


def noise_only_table(result: Results) -> str:
    rows = [
        [row["kind"].replace("_", " "), f"{row['hours']:.2f}", str(row["words"]), whole(row["words_an_hour"])]
        for row in result["rows"]
    ]
    caption = f"{model_note(result)}, chunks of {result['chunk_ms']} ms; {footnote(result)}."
    return grid(["nobody speaks", "hours", "words", "words an hour"], rows) + "\n\n" + caption


def long_audio_table(result: Results) -> str:
    ratio = result["wer_ratio"]
    rows = [
        [f"WER %, {result['utterances']} utterances one by one", f"{result['wer_utterances']:.1f}"],
        ["WER %, the same in one stream", f"{result['wer_one_stream']:.1f}"],
        ["ratio", "" if ratio is None else f"{ratio:.3f}"],
        ["memory at the end, MB", f"{result['memory_mb']:.0f}"],
        ["of it added after the first tenth, MB", f"{result['memory_growth_mb']:.1f}"],
    ]
    caption = f"{model_note(result)}, chunks of {result['chunk_ms']} ms; {footnote(result)}."
    return grid([f"{result['hours']:.2f} hours", ""], rows) + "\n\n" + caption


def card_table(card: Results) -> str:
    architecture, training = card["architecture"], card["training"]
    size = sum(path.stat().st_size for path in MODEL.iterdir() if path.suffix == ".onnx") / 1e6
    runs = [
        f"{run['run']}: {run['steps']} steps, {run['audio_hours']} h of audio in {run['wall_hours']} h"
        for run in training["runs"]
    ]
    rows = [
        ["name", card["name"]],
        ["language", card["language"]],
        ["size", f"{size:.1f} MB, {architecture['precision']}"],
        ["latency", f"{40 * architecture['chunk_frames']} ms, or any multiple of 40"],
        ["right context", f"{40 * architecture.get('right_frames', 0)} ms of it"],
        ["left context", f"{40 * architecture['left_frames'] / 1000:.1f} s"],
        ["first weights", training["first_weights"]],
        ["training", "; ".join(runs)],
        ["trained on", training["machine"]],
        ["recipe", training["recipe"]],
        ["language model", training["language_model"]],
        ["licence", card["license"]],
    ]
    return grid(["", ""], rows)


def data_table(card: Results) -> str:
    """Speech with its sum, then what is no speech, then what the language model read."""
    training = card["training"]
    data, sounds = (
        [[part["corpus"], f"{part['hours']:.2f}", part["license"]] for part in training[key]]
        for key in ("data", "sounds")
    )
    total = ["all speech", f"{sum(part['hours'] for part in training['data']):.2f}", ""]
    texts = [[f"text: {part['text']}", "", part["license"]] for part in training["texts"]]
    return grid(["corpus", "hours", "licence"], [*data, total, *sounds, *texts])


def limits(card: Results) -> str:
    text: str = card["limits"]
    return text


def shape(size: Results) -> str:
    sizes = ", ".join(str(size[axis]) for axis in ("batch", "frames", "labels", "vocabulary"))
    return sizes + (" (ragged)" if size["ragged"] else "")


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


_OF_MODEL = "make bench-model DEV=MANIFEST NOISE=MANIFEST ROOMS=MANIFEST TARGETS=FOLDER"
#: What makes a result.
COMMANDS = {
    "wer": "make bench-wer DEV=MANIFEST",
    "sizes": 'make bench-sizes DEV=MANIFEST MODELS="DIR ..."',
    "decode": "make bench-decode",
    "mic": "make bench-mic",
    "serve": "make bench-serve",
    "loss": "make bench-loss",
    "kd_table": "make bench-kd DATA=FOLDER WHISPER=FOLDER ENCODER=FILE",
    "emission": _OF_MODEL,
    "robustness": _OF_MODEL,
    "noise_only": _OF_MODEL,
    "long_audio": _OF_MODEL,
}
#: From the model's card and not from a result.
CARD_TABLES = ("card", "data", "limits")
TABLES: dict[str, Callable[[Results], str]] = {
    "card": card_table,
    "data": data_table,
    "limits": limits,
    "wer": wer_table,
    "sizes": sizes_table,
    "decode": decode_table,
    "mic": mic_table,
    "serve": serve_table,
    "loss": loss_table,
    "kd_table": kd_table,
    "emission": emission_table,
    "robustness": robustness_table,
    "noise_only": noise_only_table,
    "long_audio": long_audio_table,
}


if __name__ == "__main__":
    sys.exit(main())
