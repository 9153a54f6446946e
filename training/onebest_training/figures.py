"""Figures of training: the lattice of an utterance, the curves of runs, error rate against emission delay.

What is drawn comes as plain values, and what comes out is a matplotlib figure; none of this needs a display.

Axis legend: T encoder frames (40 ms), U labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from onebest_training.runlog import Row, corpus_and_chunk, read_rows

FRAME_SECONDS = 0.04
#: More labels than this are not named on the axis.
NAMED_LABELS = 60
STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X<>"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatticeView:
    """The lattice of an utterance.

    Attributes:
        name: of the utterance.
        pieces: the labels as text, U.
        occupancy: posterior probability of each node, [T, U+1].
        student: frame in which the student's best path emits each label, U.
        teacher: the same of the teacher's path, or None.
    """

    name: str
    pieces: tuple[str, ...]
    occupancy: Floats
    student: tuple[int, ...]
    teacher: tuple[int, ...] | None = None


class DelayPoint(NamedTuple):
    """Error rate in percent and emission delay in milliseconds of a run on a corpus."""

    run: str
    corpus: str
    wer: float
    p50_ms: float
    p90_ms: float


def path_line(emission_frames: Sequence[int], num_frames: int) -> tuple[list[int], list[int]]:
    """Return t and u of the nodes of a path that emits its labels in these frames, T + U of each."""
    frames: list[int] = []
    labels: list[int] = []
    out = 0
    for frame in range(num_frames):
        first, out = out, sum(emitted <= frame for emitted in emission_frames)
        frames += [frame] * (out - first + 1)
        labels += range(first, out + 1)
    return frames, labels


def draw_lattice(view: LatticeView) -> Figure:
    """Draw occupancies as shades, the paths as lines: time to the right, labels upward."""
    frames, nodes = view.occupancy.shape
    figure = Figure(figsize=(10, float(np.clip(0.22 * nodes, 4, 12))), layout="constrained")
    axes = figure.subplots()
    edge = FRAME_SECONDS / 2
    extent = (-edge, frames * FRAME_SECONDS - edge, -0.5, nodes - 0.5)
    image = axes.imshow(
        view.occupancy.T, cmap="Greys", vmin=0, vmax=1, origin="lower", aspect="auto", extent=extent
    )
    paths = {"student's best path": (view.student, "C0", "-")}
    if view.teacher is not None:
        paths["teacher's path"] = (view.teacher, "C1", "--")
    for name, (emissions, colour, style) in paths.items():
        at, out = path_line(emissions, frames)
        axes.plot(np.array(at) * FRAME_SECONDS, out, style, color=colour, label=name, linewidth=1.8)
    axes.set(title=view.name, xlabel="time, seconds", ylabel="labels emitted")
    if nodes <= NAMED_LABELS:
        axes.set_yticks(range(nodes), ["", *view.pieces], fontsize=8)
    axes.legend(loc="upper left")
    figure.colorbar(image, label="posterior probability of the node")
    return figure


def draw_curves(runs: Sequence[Path]) -> Figure:
    """Draw loss, error rate, learning rate and speed of runs over their steps; a colour is a run.

    Raises:
        DataError: a run has no log.
    """
    logs = {name: read_rows(run) for name, run in zip(short_names(runs), runs, strict=True)}
    figure = Figure(figsize=(12, 8), layout="constrained")
    (loss, wer), (rate, speed) = figure.subplots(2, 2, sharex=True)
    loss.set(title="training loss", ylabel="nats a label", yscale="log")
    wer.set(title="word error rate on dev", ylabel="%")
    rate.set(title="learning rate", ylabel="of the heads and new blocks", xlabel="step")
    speed.set(title="speed", ylabel="seconds of audio a second", xlabel="step")
    measured = sorted(
        {key for rows in logs.values() for row in rows for key in row if key.startswith("wer/")}
    )
    for index, rows in enumerate(logs.values()):
        colour = f"C{index}"
        _plot(loss, rows, "loss", colour)
        _plot(rate, rows, "learning_rate", colour)
        _plot(speed, rows, "audio_seconds_a_second", colour)
        for number, key in enumerate(measured):
            _plot(wer, rows, key, colour, STYLES[number % len(STYLES)], MARKERS[number % len(MARKERS)])
    wer.set_ylim(bottom=0)
    _legend_of_measures(wer, measured)
    handles = [Line2D([], [], color=f"C{index}", label=name) for index, name in enumerate(logs)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), title="run")
    for axes in (loss, wer, rate, speed):
        axes.grid(alpha=0.3)
    return figure


def _plot(axes: Axes, rows: Sequence[Row], key: str, colour: str, style: str = "-", marker: str = "") -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, style, color=colour, marker=marker, markersize=4, label=key)


def _legend_of_measures(axes: Axes, measured: Sequence[str]) -> None:
    handles = []
    for number, key in enumerate(measured):
        corpus, chunk = corpus_and_chunk(key)
        latency = f"chunks of {40 * chunk} ms" if chunk else "full context"
        style, marker = STYLES[number % len(STYLES)], MARKERS[number % len(MARKERS)]
        line = Line2D([], [], color="0.3", marker=marker, markersize=4)
        line.set(linestyle=style, label=f"{corpus}, {latency}")
        handles.append(line)
    if handles:
        axes.legend(handles=handles, fontsize=8)


def draw_delays(points: Sequence[DelayPoint]) -> Figure:
    """Draw error rate against emission delay, a panel a corpus: the median as a mark, a line up to p90."""
    corpora = list(dict.fromkeys(point.corpus for point in points))
    runs = list(dict.fromkeys(point.run for point in points))
    columns = math.ceil(math.sqrt(len(corpora)))
    size = (4.5 * columns + 2.5, 4 * math.ceil(len(corpora) / columns) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(math.ceil(len(corpora) / columns), columns, squeeze=False).flatten()
    for axes, corpus in zip(panels, corpora, strict=False):
        axes.set(title=corpus, xlabel="emission delay, ms (mark p50, line to p90)", ylabel="WER, %")
        axes.grid(alpha=0.3)
        for point in (point for point in points if point.corpus == corpus):
            index = runs.index(point.run)
            colour, marker = f"C{index % 10}", MARKERS[(index + index // 10) % len(MARKERS)]
            (line,) = axes.plot([point.p50_ms, point.p90_ms], [point.wer] * 2, color=colour, marker=marker)
            line.set(markevery=[0], label=point.run)
    for axes in panels[len(corpora) :]:
        axes.remove()
    marks = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(handles=list(marks.values()), loc="outside right upper", title="run", fontsize=8)
    return figure


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return names of runs by which they differ: their folders', with as many parents as that takes."""
    folders = [path.resolve().parent if path.name == "log.jsonl" else path.resolve() for path in paths]
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]
