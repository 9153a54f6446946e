"""The README's tables come from results and from nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"
MACHINE = {"machine": {"processor": "Z80", "cores": 1}, "versions": {"python": "3.11"}}
SCORES = {"librispeech": {"hours": 1.314, "wer": 25.04}, "overall": {"hours": 2.0, "wer": 33.0}}
RESULTS = {
    "wer": {
        "rows": [{"latency": "640 ms", "scores": SCORES}],
        "model": {"name": "model", "sha256": "a" * 64},
        **MACHINE,
    },
    "decode": {
        "rows": [{"threads": 1, "onebest": 0.01234, "sherpa_onnx": 0.02}],
        "cold_start": {"onebest": 0.512, "sherpa_onnx": 0.7},
        "peak_memory": {"onebest": 101.4, "sherpa_onnx": 150.2},
        "model": {"sha256": "b" * 64, "chunk_ms": 640},
        "repeats": 11,
        **MACHINE,
    },
    "mic": {
        "seconds_to_listening": 0.512,
        "slowest_seconds_to_listening": 0.7,
        "processor_seconds": 0.4,
        "repeats": 11,
        **MACHINE,
    },
    "loss": {
        "rows": [
            {
                "size": {"batch": 8, "frames": 400, "labels": 60, "vocabulary": 500, "ragged": False},
                **{"ours_ms": 900.2, "torchaudio_ms": 4450.0, "ours_mb": 400.0, "torchaudio_mb": 800.0},
                "band_ms": 80.0,
            }
        ],
        **MACHINE,
    },
}
SEEDS = [
    {"name": "a-baseline-offline", "targets": "none", "seed": 1, "wer": {"overall": 40.0}},
    {"name": "b-path-offline", "targets": "one-best path", "seed": 1, "wer": {"overall": 30.0}},
    {"name": "b-path-offline", "targets": "one-best path", "seed": 2, "wer": {"overall": 32.0}},
]
RESULTS["kd_table"] = {
    "rows": [
        {**row, "labelled_hours": 4.64, "unlabelled_hours": 0.0, "steps": 2000, "emission_delay_ms": delay}
        for row, delay in zip(SEEDS, [None, {"p50": 40, "p90": 120}, {"p50": 60, "p90": 160}], strict=True)
    ],
    "paper": {"labelled_offline": 11.5, "labelled_streaming": 6.8},
    "werr": {"labelled_offline": 22.5, "labelled_streaming": None},
    "werr_spread": {"labelled_offline": [20.0, 25.0], "labelled_streaming": None},
    **MACHINE,
}
TEXT = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n\n" for name in RESULTS)


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return tmp_path


def test_figures_stand_in_their_tables(tables, folder):
    text = tables.fill(TEXT, folder)
    assert "| WER % | librispeech, 1.31 h | overall, 2.00 h |\n| --- | ---: | ---: |" in text
    assert "| 640 ms | 25.0 | 33.0 |" in text
    assert "| seconds a second of audio, 1 thread | 0.0123 | 0.0200 |" in text
    assert "| cold start, seconds | 0.51 | 0.70 |\n| peak memory, MB | 101 | 150 |" in text
    assert "| onebest mic | 0.51 | 0.70 | 0.40 |" in text
    assert "| 8, 400, 60, 500 | 900 | 4450 | 400 | 800 | 80 |" in text
    assert "| a-baseline-offline: none | 4.6 | 0.0 | 40.0 |  |  |" in text
    assert "| b-path-offline: one-best path | 4.6 | 0.0 | 31.0 (30.0 to 32.0) | 50 | 140 |" in text
    assert "| labelled, offline | 22.5 (20.0 to 25.0) | 11.5 |\n| labelled, streaming |  | 6.8 |" in text
    assert "\nold\n" not in text
    assert tables.fill(text, folder) == text


def test_a_missing_result_is_an_error_or_said_to_be_missing(tables, folder):
    (folder / "decode.json").unlink()
    with pytest.raises(FileNotFoundError, match="decode"):
        tables.fill(TEXT, folder)
    text = tables.fill(TEXT, folder, allow_missing=True)
    assert f"<!-- decode -->\n{tables.NOT_MEASURED}\n<!-- /decode -->" in text
    assert "| 640 ms | 25.0 | 33.0 |" in text


@pytest.mark.parametrize(
    ("name", "key"), [("wer", "rows"), ("decode", "peak_memory"), ("mic", "repeats"), ("loss", "machine")]
)
def test_a_missing_figure_is_an_error(tables, folder, name, key):
    result = {k: value for k, value in RESULTS[name].items() if k != key}
    (folder / f"{name}.json").write_text(json.dumps(result))
    with pytest.raises(KeyError, match=key):
        tables.fill(TEXT, folder, allow_missing=True)


def test_missing_marks_are_an_error(tables, folder):
    with pytest.raises(ValueError, match="<!-- wer -->"):
        tables.fill(TEXT.replace("<!-- /wer -->", ""), folder)


def test_the_readme_says_what_was_measured():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
