"""The distillation table's figures: from runs to rows, and from rows to relative reductions of WER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from kd_recipes import CHUNK_FRAMES, RowConfig
from machine import describe_machine, describe_versions

from onebest_training.checkpoint import load_model
from onebest_training.config import TrainConfig
from onebest_training.decode import dev_batches, measure
from onebest_training.delay import summarize
from onebest_training.trainer import MEASURED_LEFT_FRAMES
from onebest_training.utterances import load_dev

Row = dict[str, Any]
OVERALL = "overall"
#: Every cut of dev is measured.
ALL_CUTS = 10**9
#: Relative reductions on test-other by the paper (arXiv 2110.03334), and the rows that we compare.
PAPER = {
    "labelled_offline": 11.5,
    "labelled_streaming": 6.8,
    "unlabelled_offline": 48.2,
    "unlabelled_streaming": 38.5,
}
COMPARED = {
    "labelled_offline": ("a-baseline-offline", "b-path-offline"),
    "labelled_streaming": ("a-baseline-streaming", "b-path-streaming"),
    "unlabelled_offline": ("a-baseline-offline", "c-path-offline"),
    "unlabelled_streaming": ("a-baseline-streaming", "c-path-streaming"),
}


def measure_run(row: RowConfig, config: TrainConfig, checkpoint: Path) -> Row:
    """Measure a run's averaged model on all of dev.

    Returns:
        Error rates in percent by corpus, and emission delays in ms over all, None if nothing is recognised.
    """
    model, tokens, _ = load_model(checkpoint)
    chunk = CHUNK_FRAMES[row.student]
    dev = load_dev(replace(config.data, dev_cuts=ALL_CUTS), tokens)
    errors, words, delays = 0, 0, []
    rates: dict[str, float] = {}
    for corpus, utterances in dev.items():
        found = measure(model, dev_batches(utterances), tokens, [chunk], MEASURED_LEFT_FRAMES)[chunk]
        rates[corpus] = round(100 * found.errors.transducer_errors / found.errors.words, 2)
        errors, words = errors + found.errors.transducer_errors, words + found.errors.words
        delays += found.delays
    rates[OVERALL] = round(100 * errors / words, 2)
    summary = summarize(delays)
    delay = {"p50": round(summary.p50_ms, 1), "p90": round(summary.p90_ms, 1)} if summary else None
    return {"wer": rates, "emission_delay_ms": delay}


def make_result(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the table as benchmarks/results holds it."""
    reductions = {key: relative_reductions(rows, *names) for key, names in COMPARED.items()}
    return {
        "benchmark": "kd_table",
        "rows": list(rows),
        "werr": {key: round(mean(found), 1) if found else None for key, found in reductions.items()},
        "werr_spread": {
            key: [round(min(found), 1), round(max(found), 1)] if found else None
            for key, found in reductions.items()
        },
        "paper": PAPER,
        "machine": describe_machine(),
        "versions": describe_versions("onebest", "torch"),
    }


def relative_reductions(rows: Sequence[Row], baseline: str, other: str) -> list[float]:
    """Return by how many percent each run of a row errs less than the baseline's mean, on all words."""
    rates = {name: [row["wer"][OVERALL] for row in rows if row["name"] == name] for name in (baseline, other)}
    if not rates[baseline]:
        return []
    return [100 * (1 - rate / mean(rates[baseline])) for rate in rates[other]]


def print_table(result: dict[str, Any]) -> None:
    """Print the rows, and the reductions beside the paper's."""
    for row in result["rows"]:
        rates = "  ".join(f"{corpus} {rate:.1f}" for corpus, rate in row["wer"].items())
        delay = row["emission_delay_ms"]
        times = f"  delay p50 {delay['p50']:.0f} p90 {delay['p90']:.0f} ms" if delay else ""
        print(f"{row['name']:28} seed {row['seed']}  {rates}{times}")
    print(f"\n{'relative reduction of WER, %':32}{'ours':>8}{'spread':>18}{'paper':>8}")
    for key, paper in PAPER.items():
        ours, spread = result["werr"][key], result["werr_spread"][key]
        figures = (
            f"{ours:8.1f}{f'{spread[0]:.1f} to {spread[1]:.1f}':>18}" if spread else f"{'-':>8}{'-':>18}"
        )
        print(f"{key:32}{figures}{paper:8.1f}")
