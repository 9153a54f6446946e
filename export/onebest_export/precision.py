"""Which components an int8 bundle leaves in float32: none, unless the words say otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from onebest.bundle import Bundle, load_bundle
from onebest.graph import Graph
from onebest_export.deviation import Deviation, Reference, Utterance
from onebest_export.quantize import product_names, quantize

PARTS = ("encoder", "decoder", "joiner")
#: The joiner's only matrix follows a tanh.
TANH_BOUND = 1.0


class Component(NamedTuple):
    """Some products of one graph, which are quantised together or not at all."""

    name: str
    part: str
    products: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What was measured, and what follows.

    Attributes:
        budget: word error rate in percent that int8 may add.
        chunk_ms: latency that it was measured at.
        utterances: how many.
        wer: of the float32 graphs, in percent.
        in_float: names of the components left in float32.
        chosen: the int8 graphs with those.
        alone: each component by name, in int8 alone among float32 ones; empty unless it was asked for or
            needed.
    """

    budget: float
    chunk_ms: int
    utterances: int
    wer: float
    in_float: tuple[str, ...]
    chosen: Deviation
    alone: dict[str, Deviation]

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in a model card."""
        return asdict(self)


def find_components(folder: Path) -> list[Component]:
    """Return the components of float32 graphs: the stem, each block, the projection, predictor, joiner."""
    groups: dict[str, list[str]] = {}
    block = 0
    for name in product_names(folder / "encoder.onnx"):
        if name.startswith("/stem/"):
            component = "stem"
        elif name.startswith("/projection/"):
            component = "projection"
        else:
            block += name.startswith("/qkv")
            component = f"block {block}"
        groups.setdefault(component, []).append(name)
    return [
        *(Component(name, "encoder", tuple(products)) for name, products in groups.items()),
        Component("predictor", "decoder", tuple(product_names(folder / "decoder.onnx"))),
        Component("joiner", "joiner", tuple(product_names(folder / "joiner.onnx"))),
    ]


def quantize_graphs(folder: Path, target: Path, in_float: Collection[Component] = ()) -> list[Path]:
    """Write encoder, decoder and joiner of a folder in int8 but for some components; return their paths."""
    paths = []
    for part in PARTS:
        path = target / f"{part}.int8.onnx"
        bound = TANH_BOUND if part == "joiner" else None
        quantize(folder / f"{part}.onnx", path, bound=bound, in_float=products_of(part, in_float))
        paths.append(path)
    return paths


def products_of(part: str, components: Collection[Component]) -> set[str]:
    """Return the names of one graph's products in some components."""
    return {name for component in components if component.part == part for name in component.products}


def choose_precision(
    folder: Path, utterances: Sequence[Utterance], budget: float, report: bool = False
) -> tuple[Choice, list[Component]]:
    """Leave in float32 what it takes for the word error rate to stay within a budget.

    Components go back to float32 in the order of their logit errors, the largest first, one after the other
    until the word error rate on the utterances is at most ``budget`` above that of float32.

    Args:
        folder: float32 graphs ``encoder.onnx``, ``decoder.onnx``, ``joiner.onnx``, with ``tokens.txt``.
        utterances: speech to measure on.
        budget: in percent, absolute.
        report: measure each component alone even where nothing has to go back.
    """
    components = find_components(folder)
    reference_bundle = load_bundle(folder)
    reference = Reference(reference_bundle, utterances)

    def measure(in_float: Collection[Component]) -> Deviation:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            paths = quantize_graphs(folder, Path(name), in_float)
            return reference.measure(_with_graphs(reference_bundle, paths))

    left: list[Component] = []
    chosen, alone = measure(left), dict[str, Deviation]()
    if report or chosen.wer > reference.wer + budget:
        alone = {c.name: measure([other for other in components if other != c]) for c in components}
    worst_last = sorted(components, key=lambda c: alone[c.name].logit_error) if alone else []
    while chosen.wer > reference.wer + budget and worst_last:
        left.append(worst_last.pop())
        chosen = measure(left)
    names = tuple(component.name for component in left)
    chunk_ms = reference_bundle.sizes.chunk_ms
    return Choice(budget, chunk_ms, len(utterances), reference.wer, names, chosen, alone), left


def _with_graphs(bundle: Bundle, paths: Sequence[Path]) -> Bundle:
    encoder, decoder, joiner = (Graph.load(path, 1) for path in paths)
    return replace(bundle, encoder=encoder, decoder=decoder, joiner=joiner)
