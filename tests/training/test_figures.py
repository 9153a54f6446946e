"""Figures: what is drawn is what was measured, and the command writes it as a PNG."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import read_log
from target_paths import path_nodes, random_path
from target_stores import write_targets
from tone_corpus import PIECES, ToneCorpus

from onebest.cli import main
from onebest.cuts import read_cuts
from onebest.errors import ConfigError, DataError
from onebest_training.batches import pad_batch
from onebest_training.checkpoint import load_model
from onebest_training.decode import TAIL_FRAMES
from onebest_training.features import SAMPLES, FeatureStore, SampleAugmentation, make_store
from onebest_training.figure_data import read_delays, view_lattice
from onebest_training.figures import (
    DelayPoint,
    LatticeView,
    draw_curves,
    draw_delays,
    draw_lattice,
    path_line,
    short_names,
)
from onebest_training.speech import cut_text
from onebest_training.utterances import Utterance

PNG = b"\x89PNG\r\n"


def write_log(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("emissions", [[], [0], [2], [0, 0, 1, 1, 1], [4, 4], [0, 2, 3]])
def test_a_path_runs_through_all_its_nodes(emissions: list[int]) -> None:
    frames, labels = path_line(emissions, 5)
    assert list(zip(frames, labels, strict=True)) == path_nodes(emissions, 5)


def test_a_lattice_shows_occupancies_and_both_paths() -> None:
    occupancy = np.random.default_rng(0).random((6, 3))
    figure = draw_lattice(LatticeView("one", ("▁a", "b"), occupancy, (1, 3), (0, 2)))
    axes = figure.axes[0]
    (image,) = axes.get_images()
    assert np.array_equal(image.get_array(), occupancy.T)
    lines = {str(line.get_label()): line.get_xydata() for line in axes.get_lines()}
    for name, emissions in (("student's best path", (1, 3)), ("teacher's path", (0, 2))):
        times, labels = path_line(emissions, 6)
        np.testing.assert_allclose(lines[name], np.column_stack([0.04 * np.array(times), labels]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["", "▁a", "b"]
    assert (axes.get_title(), axes.get_xlabel()) == ("one", "time, seconds")
    # The pixel of frame t and label u is centred on the path's node.
    assert image.get_extent() == pytest.approx((-0.02, 0.22, -0.5, 2.5))


def test_a_view_is_of_the_averaged_model(corpus: ToneCorpus, unbroken: Path, tmp_path: Path) -> None:
    store = FeatureStore(corpus.dev)
    cut = store.cuts[1]
    model, tokens, _ = load_model(unbroken / "checkpoint.pt")
    labels = tokens.encode(cut_text(cut))
    batch = pad_batch([store.read(cut)], [TAIL_FRAMES], [Utterance(cut, store, "", tuple(labels), 1.0)])
    frames = int(batch.frame_lengths[0])
    path = random_path(labels, frames, PIECES)
    targets = write_targets(tmp_path / "targets", corpus, {cut.id: [path]})
    view = view_lattice(unbroken / "checkpoint.pt", corpus.dev, cut.id, targets, chunk=4)
    assert view.pieces == tuple(tokens.pieces()[label] for label in labels)
    assert view.teacher == tuple(path.frames[path.tokens != 0])
    assert view.occupancy.shape == (frames, len(labels) + 1)
    # Every path takes one node on each diagonal t + u.
    t, u = np.indices(view.occupancy.shape)
    diagonals = np.bincount((t + u).ravel(), view.occupancy.ravel())
    np.testing.assert_allclose(diagonals, 1.0, atol=1e-5)
    # No single change of the path is more probable.
    encoded = model.encoder(batch.features, batch.frame_lengths, 4, 128)
    logits = model.joiner(
        model.projection(encoded)[:, :, None],
        model.predictor(model.predictor.contexts(batch.labels))[:, None],
    )
    score = path_score(logits, labels)
    best = score(view.student)
    for index in range(len(labels)):
        for move in (-1, 1):
            other = list(view.student)
            other[index] += move
            if sorted(other) == other and min(other) >= 0 and max(other) < frames:
                assert score(tuple(other)) <= best + 1e-4


def path_score(logits: torch.Tensor, labels: list[int]) -> Callable[[tuple[int, ...]], float]:
    log_probs = logits[0].log_softmax(2).detach()

    def score(emissions: tuple[int, ...]) -> float:
        nodes = path_nodes(list(emissions), len(log_probs))
        following = [u for _, u in nodes[1:]] + [nodes[-1][1]]
        return sum(
            float(log_probs[t, u, labels[u] if after > u else 0])
            for (t, u), after in zip(nodes, following, strict=True)
        )

    return score


def test_cuts_that_are_not_there_are_refused(corpus: ToneCorpus, unbroken: Path) -> None:
    with pytest.raises(DataError, match=r"no cut nobody\. The first one there is dev-000"):
        view_lattice(unbroken / "checkpoint.pt", corpus.dev, "nobody")
    with pytest.raises(DataError, match="no labels"):
        view_lattice(unbroken / "checkpoint.pt", corpus.noise, "noise-000")


def test_curves_hold_every_row_of_the_logs(unbroken: Path, tmp_path: Path) -> None:
    other = write_log(tmp_path / "other", [{"step": 7, "loss": 2.0}, {"step": 8, "wer/plain/0": 150.0}])
    figure = draw_curves([unbroken, other])
    rows = read_log(unbroken)
    for axes, key in zip(
        figure.axes, ("loss", "wer/plain/16", "learning_rate", "audio_seconds_a_second"), strict=True
    ):
        lines = {(line.get_color(), line.get_label()): line.get_xydata() for line in axes.get_lines()}
        assert np.array_equal(lines["C0", key], [(row["step"], row[key]) for row in rows if key in row])
        assert axes.get_ylabel()
    loss, wer = figure.axes[:2]
    assert [line.get_xydata().tolist() for line in loss.get_lines()][1] == [[7, 2]]
    assert [line.get_xydata().tolist() for line in wer.get_lines() if line.get_color() == "C1"] == [
        [[8, 150]]
    ]
    assert wer.get_ylim()[0] == 0 < 150 < wer.get_ylim()[1]
    legend = wer.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["plain, full context", "plain, chunks of 640 ms"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [unbroken.name, "other"]


def test_delays_come_from_runs_and_from_tables(tmp_path: Path) -> None:
    measured = {"wer/a/16": 30.0, "emission_delay_p50_ms/a/16": 80.0, "emission_delay_p90_ms/a/16": 200.0}
    run = write_log(
        tmp_path / "run",
        [{"step": 1, **measured, "wer/a/16": 40.0}, {"step": 2, **measured, "wer/b/16": 1.0}],
    )
    table = tmp_path / "kd_table.json"
    delay = {"p50": 120.0, "p90": 240.0}
    rows = [
        {"name": "kd", "wer": {"a": 20.0, "b": 25.0}, "emission_delay_ms": delay},
        {"name": "nothing recognised", "wer": {"a": 100.0}, "emission_delay_ms": None},
    ]
    table.write_text(json.dumps({"rows": rows}))
    points = read_delays([run, table], [])
    assert points == [
        DelayPoint("run, 640 ms", "a", 30.0, 80.0, 200.0),
        DelayPoint("kd", "a", 20.0, 120.0, 240.0),
        DelayPoint("kd", "b", 25.0, 120.0, 240.0),
    ]
    assert read_delays([run, table], ["b"]) == points[2:]
    figure = draw_delays(points)
    drawn = {
        axes.get_title(): [line.get_xydata().tolist() for line in axes.get_lines()] for axes in figure.axes
    }
    assert drawn == {"a": [[[80, 30], [200, 30]], [[120, 20], [240, 20]]], "b": [[[120, 25], [240, 25]]]}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["run, 640 ms", "kd"]


def test_a_corpus_may_have_a_slash_in_its_name(tmp_path: Path) -> None:
    measured = {f"emission_delay_{part}_ms/a/dev/16": 80.0 for part in ("p50", "p90")}
    run = write_log(tmp_path / "run", [{"step": 1, "wer/a/dev/16": 30.0, **measured}])
    assert read_delays([run], ["a/dev"]) == [DelayPoint("run, 640 ms", "a/dev", 30.0, 80.0, 80.0)]
    legend = draw_curves([run]).axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a/dev, chunks of 640 ms"]


def test_sources_without_delays_are_refused(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", [{"step": 1, "wer/a/16": 40.0}])
    with pytest.raises(DataError, match="no error rate with an emission delay"):
        read_delays([run], [])
    for table in ("[]", '{"rows": [{"name": "a", "wer": [1], "emission_delay_ms": {"p50": 1, "p90": 2}}]}'):
        (tmp_path / "table.json").write_text(table)
        with pytest.raises(DataError, match="not a table as"):
            read_delays([tmp_path / "table.json"], [])
    run = write_log(tmp_path / "other", [{"step": 1, "wer/a/x": 40.0}])
    with pytest.raises(DataError, match="wer/a/x: no measure of a run"):
        read_delays([run], [])
    with pytest.raises(DataError, match="cannot be read as a run's log"):
        draw_curves([tmp_path / "gone"])


@pytest.mark.parametrize(
    "log",
    [
        "",
        '{"step": 1, "loss": 2.0}\n[1]\n{"step": 2}\n',
        '{"loss": 2.0}\n{"step": 2}\n',
        '{"step": "one"}\n{"step": 2}\n',
    ],
)
def test_what_is_no_log_of_a_run_is_refused(tmp_path: Path, log: str) -> None:
    (tmp_path / "log.jsonl").write_text(log)
    with pytest.raises(DataError, match=r"log\.jsonl: no run's log\. Expected at least one row"):
        draw_curves([tmp_path])


def test_a_lattice_needs_the_models_front_end(corpus: ToneCorpus, unbroken: Path, tmp_path: Path) -> None:
    make_store(list(read_cuts(corpus.manifest))[:1], tmp_path / "s", SampleAugmentation(), front_end=SAMPLES)
    with pytest.raises(ConfigError, match="made with --front-end 'samples'"):
        view_lattice(unbroken / "checkpoint.pt", tmp_path / "s", "train-000")


def test_names_of_runs_differ(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a", tmp_path / "b" / "log.jsonl"]) == ["a", "b"]
    assert short_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]


def test_the_commands_write_png(corpus: ToneCorpus, unbroken: Path, tmp_path: Path) -> None:
    cut = FeatureStore(corpus.dev).cuts[0].id
    measured = {"wer/a/0": 9.0, "emission_delay_p50_ms/a/0": 1.0, "emission_delay_p90_ms/a/0": 2.0}
    words = {
        "lattice": [str(unbroken / "checkpoint.pt"), str(corpus.dev), cut, "--chunk-ms", "160"],
        "curves": [str(unbroken)],
        "delay": [str(write_log(tmp_path / "run", [{"step": 1, **measured}])), "--corpus", "a"],
    }
    for kind, arguments in words.items():
        path = tmp_path / "figures" / f"{kind}.png"
        status = main(["figure", kind, *arguments, "--output", str(path)])
        assert status == 0
        assert path.read_bytes().startswith(PNG)


def test_the_command_wants_whole_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["figure", "lattice", "a", "b", "c", "--chunk-ms", "50", "--output", str(tmp_path / "x.png")]
    assert main(words) == 1
    assert "expected a multiple of 40" in capsys.readouterr().err


def test_a_full_disk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_log(tmp_path / "run", [{"step": 1, "loss": 2.0}])
    assert main(["figure", "curves", str(run), "--output", "/dev/full"]) == 1
    assert "/dev/full: cannot be written" in capsys.readouterr().err
    assert main(["figure", "curves", str(run), "--output", str(tmp_path)]) == 1
    assert f"{tmp_path} is a folder. Name a file to write." in capsys.readouterr().err
    (tmp_path / "x.png.partial").symlink_to("/dev/full")
    assert main(["figure", "curves", str(run), "--output", str(tmp_path / "x.png")]) == 1
    assert not (tmp_path / "x.png").exists()
