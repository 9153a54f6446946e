"""``onebest figure``: a lattice, the curves of runs, or error rate against emission delay, as a PNG."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from onebest.cli import Command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    lattice = kinds.add_parser("lattice", help="an utterance's lattice with the paths through it")
    lattice.add_argument("checkpoint", type=Path)
    lattice.add_argument("store", type=Path, help="feature store with the cut")
    lattice.add_argument("cut", help="id of the cut")
    lattice.add_argument("--targets", type=Path, help="folder of a teacher's targets")
    lattice.add_argument("--chunk-ms", type=int, default=0, help="a multiple of 40; 0 for full context")
    curves = kinds.add_parser("curves", help="loss, error rate, learning rate and speed of runs")
    curves.add_argument("runs", nargs="+", type=Path, help="folders of runs, or their log.jsonl")
    delay = kinds.add_parser("delay", help="error rate against emission delay")
    delay.add_argument("sources", nargs="+", type=Path, help="folders of runs, and tables of kd_table.py")
    delay.add_argument("--corpus", action="append", default=[], help="only this one; may be repeated")
    for kind in (lattice, curves, delay):
        kind.add_argument("--output", type=Path, required=True, help="the PNG to write")


def run(arguments: argparse.Namespace) -> int:
    """Draw and write."""
    from onebest_training.speech import BEGUN_ANEW, make_folder, replace_file, require_writable, writing

    drawn, output = io.BytesIO(), arguments.output
    _draw(arguments).savefig(drawn, format="png", dpi=130)
    make_folder(output.parent)
    require_writable(output)
    with writing(output, BEGUN_ANEW):
        replace_file(output, drawn.getbuffer())
    return 0


def _draw(arguments: argparse.Namespace) -> Figure:
    from onebest.errors import ConfigError
    from onebest_training.figure_data import read_delays, view_lattice
    from onebest_training.figures import draw_curves, draw_delays, draw_lattice

    if arguments.kind == "curves":
        return draw_curves(arguments.runs)
    if arguments.kind == "delay":
        return draw_delays(read_delays(arguments.sources, arguments.corpus))
    chunk, rest = divmod(arguments.chunk_ms, 40)
    if chunk < 0 or rest:
        raise ConfigError(f"--chunk-ms {arguments.chunk_ms}: expected a multiple of 40.")
    place = arguments.checkpoint, arguments.store, arguments.cut
    return draw_lattice(view_lattice(*place, arguments.targets, chunk))


command = Command("draw a lattice, curves of runs, or error rate against delay", add_arguments, run)
