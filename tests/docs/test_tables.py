"""The README's tables come from results and from nothing else."""

import importlib
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
    "sizes": {
        "rows": [
            {"name": name, "sha256": digit * 64, "megabytes": size, "seconds": 0.01234, "scores": SCORES}
            for name, digit, size in (("small", "d", 14.96), ("large", "e", 27.0))
        ],
        "chunk_ms": 640,
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
MODEL = {"chunk_ms": 640, "model": {"sha256": "c" * 64}, **MACHINE}
RESULTS |= {
    "emission": {
        "rows": [
            {
                "latency": "320 ms",
                "reference": "the same model offline",
                **{"emission_p50_ms": 0.0, "emission_p90_ms": 40.0},
                **{"shown_p50_ms": 240.0, "shown_p90_ms": None},
            }
        ],
        **MODEL,
    },
    "robustness": {
        "rows": [{"condition": "noise, 5 dB", "wer": {"librispeech": 50.26, "overall": 60.0}}],
        **MODEL,
    },
    "noise_only": {
        "rows": [{"kind": "dog_bark", "hours": 0.25, "words": 3, "words_an_hour": 12.0}],
        **MODEL,
    },
    "long_audio": {
        **{
            "hours": 1.0,
            "utterances": 500,
            "wer_utterances": 20.0,
            "wer_one_stream": 20.5,
            "wer_ratio": 1.025,
        },
        **{"memory_mb": 103.4, "memory_growth_mb": 0.25},
        **MODEL,
    },
}
TEXT = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n\n" for name in RESULTS)


@pytest.fixture(scope="module")
def tables():
    sys.path.append(str(SCRIPT.parent))
    return importlib.import_module("tables")


@pytest.fixture
def folder(tmp_path):
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return tmp_path


def test_figures_stand_in_their_tables(tables, folder):
    text = tables.fill(TEXT, RESULTS, folder)
    assert "| WER % | librispeech, 1.31 h | overall, 2.00 h |\n| --- | ---: | ---: |" in text
    assert "| 640 ms | 25.0 | 33.0 |" in text
    assert "| seconds a second of audio, 1 thread | 0.0123 | 0.0200 |" in text
    assert "| cold start, seconds | 0.51 | 0.70 |\n| peak memory, MB | 101 | 150 |" in text
    assert "| small | 15.0 | 0.0123 | 25.0 | 33.0 |\n| large | 27.0 | 0.0123 | 25.0 | 33.0 |" in text
    assert "small dddddddddddd, large eeeeeeeeeeee; chunks of 640 ms" in text
    assert "| onebest mic | 0.51 | 0.70 | 0.40 |" in text
    assert "| 8, 400, 60, 500 | 900 | 4450 | 400 | 800 | 80 |" in text
    assert "| a-baseline-offline: none | 4.6 | 0.0 | 40.0 |  |  |" in text
    assert "| b-path-offline: one-best path | 4.6 | 0.0 | 31.0 (30.0 to 32.0) | 50 | 140 |" in text
    assert "| labelled, offline | 22.5 (20.0 to 25.0) | 11.5 |\n| labelled, streaming |  | 6.8 |" in text
    assert "| 320 ms | the same model offline | 0 | 40 | 240 |  |\n\nModel cccccccccccc" in text
    assert "| WER % | librispeech | overall |\n| --- | ---: | ---: |\n| noise, 5 dB | 50.3 | 60.0 |" in text
    assert "| dog bark | 0.25 | 3 | 12 |" in text
    assert "| ratio | 1.025 |\n| memory at the end, MB | 103 |" in text
    assert "\nold\n" not in text
    assert tables.fill(text, RESULTS, folder) == text


def test_delays_on_altered_speech_stand_beside_its_error_rates(tables):
    rows = [
        {"condition": name, "wer": {"overall": 50.0}, "emission_delay_ms": delay}
        for name, delay in (("slow", {"mean": 60.0, "p50": 40.0, "p90": 120.0}), ("fast", None))
    ]
    text = tables.robustness_table({"rows": rows, **MODEL})
    assert "| WER % | overall | delay, p50, ms | delay, p90, ms |" in text
    assert "| slow | 50.0 | 40 | 120 |\n| fast | 50.0 |  |  |" in text


def test_a_missing_result_is_said_to_be_missing(tables, folder):
    (folder / "decode.json").unlink()
    text = tables.fill(TEXT, RESULTS, folder)
    assert f"<!-- decode -->\n{tables.NOT_MEASURED}\n<!-- /decode -->" in text
    assert "| 640 ms | 25.0 | 33.0 |" in text


@pytest.mark.parametrize(
    ("name", "key"), [("wer", "rows"), ("decode", "peak_memory"), ("mic", "repeats"), ("loss", "machine")]
)
def test_a_missing_figure_is_an_error(tables, folder, name, key):
    result = {k: value for k, value in RESULTS[name].items() if k != key}
    (folder / f"{name}.json").write_text(json.dumps(result))
    with pytest.raises(KeyError, match=key):
        tables.fill(TEXT, RESULTS, folder)


def test_missing_marks_are_an_error(tables, folder):
    with pytest.raises(ValueError, match="<!-- wer -->"):
        tables.fill(TEXT.replace("<!-- /wer -->", ""), RESULTS, folder)


def test_a_table_says_if_another_model_was_measured(tables, folder):
    assert "Model aaaaaaaaaaaa, an earlier one than ships now;" in tables.fill(TEXT, RESULTS, folder)
    result = {**RESULTS["wer"], "model": {"sha256": tables.shipped_hash()}}
    (folder / "wer.json").write_text(json.dumps(result))
    assert f"Model {tables.shipped_hash()[:12]}; Z80" in tables.fill(TEXT, RESULTS, folder)


def test_a_card_has_the_figures_of_its_own_model(tables, folder):
    figures = importlib.import_module("figures")
    bundle, log = tables.MODEL, folder / "more.log.jsonl"
    card = json.loads((bundle / "card.json").read_text())
    steps = card["training"]["steps"]
    log.write_text(json.dumps({"step": steps, "hours": 12.34, "minutes": 90.0}) + "\n")
    first = folder / "z" / "log.jsonl"
    first.parent.mkdir()
    first.write_text(json.dumps({"step": steps - 1, "hours": 1.0, "minutes": 6.0}) + "\n")
    ours = {"sha256": tables.shipped_hash()}
    for name, model in {"wer": ours, "robustness": ours, "noise_only": {"sha256": "d" * 64}}.items():
        result = {"summary": {"figure": 1.5}, **RESULTS[name], "model": model}
        (folder / f"{name}.json").write_text(json.dumps(result))
    content = figures.update(json.dumps({**card, "limits": "old"}), bundle, folder, [log, first])
    found = json.loads(content)
    assert found["wer"] == {"figure": 1.5}
    assert found["measured"] == {
        "robustness": {"figures": {"figure": 1.5}, "with": "Z80, 1 cores; python 3.11"}
    }
    assert [run["run"] for run in found["training"]["runs"]] == ["z", "more"]
    assert found["training"]["runs"][1] == {
        "run": "more",
        "steps": steps,
        "audio_hours": 12.3,
        "wall_hours": 1.5,
    }
    assert found["limits"] == json.loads(figures.NOTES.read_text())["limits"]
    assert figures.update(content, bundle, folder, [log, first]) == content
    with pytest.raises(ValueError, match=f"run has {steps} steps"):
        figures.update(content, bundle, folder, [first])


def test_the_documents_say_what_was_measured():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_card_rounds_to_what_the_table_says(tables):
    """A rate that was rounded before is not rounded once more to another one."""
    card = json.loads((tables.MODEL / "card.json").read_text("utf-8"))
    rows = json.loads((tables.RESULTS / "wer.json").read_text("utf-8"))["rows"]
    table = {row["latency"]: row["scores"] for row in rows}
    for latency, rates in card["wer"].items():
        scores = table[latency]
        assert {corpus: f"{rate:.1f}" for corpus, rate in rates.items()} == {
            corpus: f"{score['wer']:.1f}" for corpus, score in scores.items()
        }
