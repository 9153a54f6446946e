"""What int8 changes on speech is measured, and what stays in float32 follows from it."""

import json

import numpy as np
import pytest

from onebest.bundle import load_bundle
from onebest.cli import main
from onebest.recognizer import Recognizer
from onebest_export import precision
from onebest_export.deviation import Deviation, Reference, Utterance
from onebest_export.precision import choose_precision, find_components, quantize_graphs

BLOCKS = ["block 1", "block 2", "block 3"]
COMPONENTS = ["stem", *BLOCKS, "projection", "predictor", "joiner"]


@pytest.fixture(scope="module")
def utterances(float_bundle):
    """Noise whose text is what the float32 model makes of it, so that its own error rate is 0."""
    from onebest.frontend import compute_features

    recognizer, made = Recognizer(float_bundle), []
    for seed in range(3):
        audio = np.random.default_rng(seed).normal(size=40000).astype(np.float32) * 0.1
        features = compute_features(np.concatenate([audio, np.zeros(8000, np.float32)]))
        made.append(Utterance(recognizer.transcribe(audio).text, features))
    return made


def test_components_hold_every_product_once(float_bundle):
    components = find_components(float_bundle)
    assert [component.name for component in components] == COMPONENTS
    products = [product for component in components for product in component.products]
    assert len(products) == 18
    assert len({(c.part, product) for c in components for product in c.products}) == 18


def test_the_same_graphs_do_not_deviate(float_bundle, utterances):
    reference = Reference(load_bundle(float_bundle), utterances)
    found = reference.measure(load_bundle(float_bundle))
    assert found == Deviation(0.0, 1.0, reference.wer)
    assert reference.wer < 10


def test_int8_deviates_and_less_with_components_in_float(float_bundle, int8_bundle, utterances, tmp_path):
    reference = Reference(load_bundle(float_bundle), utterances)
    whole = reference.measure(load_bundle(int8_bundle))
    components = find_components(float_bundle)
    quantize_graphs(float_bundle, tmp_path, [c for c in components if c.name != "joiner"])
    (tmp_path / "tokens.txt").write_bytes((float_bundle / "tokens.txt").read_bytes())
    joiner = reference.measure(load_bundle(tmp_path))
    assert 0 < joiner.logit_error < whole.logit_error < 1
    assert whole.agreement > 0.5


def test_within_the_budget_all_is_int8(float_copy, utterances):
    choice, left = choose_precision(float_copy, utterances, 100.0)
    assert (left, choice.in_float, choice.alone) == ([], (), {})
    assert choice.utterances == 3
    assert choice.chunk_ms == 160


def test_beyond_the_budget_the_worst_go_back_first(float_copy, utterances, monkeypatch):
    """The error rate is made up: each component in int8 adds a percent."""
    quantized = []

    def count(folder, target, in_float=()):
        quantized.append(len(COMPONENTS) - len(in_float))
        return quantize_graphs(folder, target, in_float)

    class Counted(Reference):
        def measure(self, bundle):
            found = super().measure(bundle)
            return Deviation(found.logit_error, found.agreement, self.wer + quantized[-1])

    monkeypatch.setattr(precision, "quantize_graphs", count)
    monkeypatch.setattr(precision, "Reference", Counted)
    choice, left = choose_precision(float_copy, utterances, 5.0)
    errors = sorted(choice.alone, key=lambda name: choice.alone[name].logit_error, reverse=True)
    assert list(choice.alone) == COMPONENTS
    assert choice.in_float == tuple(errors[:2]) == tuple(component.name for component in left)
    assert choice.chosen.wer == pytest.approx(choice.wer + 5)


def test_the_command_measures_and_tells(tiny, tmp_path, capsys, spoken):
    options = ["--dev", str(spoken), "--report", "--wer-budget", "1000", "--limit", "2"]
    assert main(["export", str(tiny.path), str(tmp_path / "model"), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].removesuffix(" alone") for line in lines[3:-2]] == COMPONENTS
    assert lines[-1] == "left in float32: no component"
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["int8"]["utterances"] == 2
    assert list(card["int8"]["alone"]) == COMPONENTS
    assert card["int8"]["chosen"]["wer"] == pytest.approx(card["int8"]["wer"], abs=1000)


def test_a_report_without_speech_is_refused(tiny, tmp_path, capsys):
    assert main(["export", str(tiny.path), str(tmp_path / "model"), "--report"]) == 1
    assert "--report measures on speech" in capsys.readouterr().err
