"""The losses of a stage: each term alone, the band, what gets a gradient, labels that fit no alignment."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import (
    LABELS,
    LENGTHS,
    compute,
    encode,
    gradients,
    lattice_of,
    make_batch,
    make_model,
    stage_with,
)
from torch import Tensor
from torch.nn import functional

from onebest_training.batches import Batch
from onebest_training.lattice import transducer_loss
from onebest_training.losses import compute_losses
from onebest_training.outputs import labels_fit
from onebest_training.transducer import BLANK


def test_ctc_alone() -> None:
    model, batch = make_model(), make_batch()
    log_probs = model.ctc(encode(model, batch)).log_softmax(2)
    alone = []
    for i, labels in enumerate(LABELS):
        own, count = log_probs[i, : LENGTHS[i]], (len(labels),)
        alone.append(functional.ctc_loss(own, torch.tensor(labels), (LENGTHS[i],), count) * len(labels))
    losses = compute(model, batch, stage_with(ctc=2.0))
    assert losses.keys() == {"ctc", "loss", "left_out"}
    torch.testing.assert_close(losses["ctc"], sum(alone) / 7)
    torch.testing.assert_close(losses["loss"], 2 * losses["ctc"])
    assert losses["left_out"] == 0


def test_the_whole_transducer_alone() -> None:
    model, batch = make_model(), make_batch()
    encoded, total = encode(model, batch), torch.zeros(())
    for i, labels in enumerate(LABELS):
        logits = lattice_of(model, encoded[i, : LENGTHS[i]], labels)
        arguments = torch.tensor([labels]), torch.tensor([LENGTHS[i]]), torch.tensor([len(labels)])
        total = total + transducer_loss(logits[None], *arguments)[0]
    losses = compute(model, batch, stage_with(transducer=0.5, band=0))
    assert losses.keys() == {"transducer", "loss", "left_out"}
    torch.testing.assert_close(losses["transducer"], total / 7)
    torch.testing.assert_close(losses["loss"], losses["transducer"] / 2)


def test_a_band_over_everything_is_the_whole_lattice() -> None:
    model, batch = make_model(), make_batch()
    options = {"transducer": 1.0, "fastemit": 0.1, "delay_penalty": 0.02}
    whole = compute(model, batch, stage_with(band=0, **options))
    expected = gradients(model, whole["loss"])
    banded = compute(model, batch, stage_with(band=10**9, **options))
    torch.testing.assert_close(banded["loss"], whole["loss"])
    found = gradients(model, banded["loss"])
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)


def test_a_narrow_band_loses_paths() -> None:
    model, batch = make_model(), make_batch()
    whole = compute(model, batch, stage_with(transducer=1.0, band=0))["loss"]
    assert compute(model, batch, stage_with(transducer=1.0, band=2))["loss"] > whole


def test_self_distillation_alone() -> None:
    model, batch = make_model(), make_batch()
    chunked, whole = encode(model, batch), encode(model, batch, chunk=0)
    errors = [(chunked[i, :n] - whole[i, :n]).square().mean(1) for i, n in enumerate(LENGTHS)]
    losses = compute(model, batch, stage_with(self_distillation=1.0))
    torch.testing.assert_close(losses["self_distillation"], torch.cat(errors).mean())
    losses["loss"].backward()
    assert model.encoder.blocks[0].attention.qkv.weight.grad.abs().sum() > 0
    assert model.ctc[1].weight.grad is None
    with_ctc = stage_with(chunk=0, ctc=1.0, self_distillation=1.0)
    assert "self_distillation" not in compute(model, batch, with_ctc)


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_gets_a_finite_gradient(autocast: bool) -> None:
    model, batch = make_model(), make_batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = compute(model, batch, stage_with(ctc=0.5, transducer=1.0, self_distillation=0.1, band=3))
    found = gradients(model, losses["loss"])
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(grad.isfinite().all() for grad in found.values())


def test_heads_alone_leave_the_encoder_without_a_gradient() -> None:
    model, batch = make_model(), make_batch()
    found = gradients(
        model, compute(model, batch, stage_with(trains="heads", ctc=1.0, transducer=1.0))["loss"]
    )
    assert found.keys() == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}


def test_which_labels_fit() -> None:
    batch = make_batch([4, 3, 3, 2, 6], [[1, 2, 3, 4], [1, 1], [1, 1, 2], [1, 2, 3], [1, 1, 1, 2]])
    assert labels_fit(batch).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("band", [0, 2, 5])
def test_labels_that_fit_no_alignment_count_for_nothing(band: int) -> None:
    model, stage = make_model(), stage_with(ctc=1.0, transducer=1.0, band=band)
    spoilt = make_batch([*LENGTHS, 3], [*LABELS, [5, 5, 5, 6, 1, 2, 3, 4]])
    good = Batch(*(part[:3] for part in spoilt[:4]), spoilt.texts[:3])
    good = good._replace(labels=good.labels[:, :4])
    expected, found = compute(model, good, stage), compute(model, spoilt, stage)
    assert found["left_out"] == 1
    for name in ("ctc", "transducer", "loss"):
        torch.testing.assert_close(found[name], expected[name])
    grads = gradients(model, compute(model, good, stage)["loss"])
    for name, grad in gradients(model, compute(model, spoilt, stage)["loss"]).items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-4, atol=1e-6)


def test_a_batch_in_which_nothing_fits_pulls_nowhere() -> None:
    model, batch = make_model(), make_batch([2, 2], [[1, 2, 3, 4, 5], [1, 1]])
    losses = compute(model, batch, stage_with(ctc=1.0, transducer=1.0, band=2))
    assert (losses["loss"].item(), losses["left_out"].item()) == (0.0, 2.0)
    assert all((grad == 0).all() for grad in gradients(model, losses["loss"]).values())


def test_chunks_and_contexts_are_drawn_from_those_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, seen = make_model(), make_batch(), set()
    stage = replace(stage_with(ctc=1.0), chunk_frames=(0, 4, 8), left_frames=(2, 16), right_frames=3)
    forward = model.encoder.forward

    def spy(features: Tensor, lengths: Tensor, chunk: int, left: int, start: int, right: int) -> Tensor:
        seen.add((chunk, left))
        assert right == 3
        return forward(features, lengths, chunk, left, start, right)

    monkeypatch.setattr(model.encoder, "forward", spy)
    for seed in range(40):
        compute_losses(model, batch, stage, np.random.default_rng(seed))
    assert seen == {(chunk, left) for chunk in (0, 4, 8) for left in (2, 16)}


@pytest.mark.parametrize("band", [0, 3])
@pytest.mark.parametrize("labels", [[[], [2, 1]], [[], []]])
def test_where_nothing_is_said_the_loss_is_that_of_blanks(band: int, labels: list[list[int]]) -> None:
    model, batch = make_model(), make_batch([5, 6], labels)
    losses = compute(model, batch, stage_with(ctc=1.0, transducer=1.0, band=band))
    second = Batch(*(part[1:] for part in batch[:5]))
    spoken = compute(model, second, stage_with(ctc=1.0, transducer=1.0, band=band))
    count = max(1, sum(map(len, labels)))
    encoded, empty = encode(model, batch), torch.zeros(1, 0, dtype=torch.int64)
    predicted = model.predictor(model.predictor.contexts(empty))[0, 0]
    by_transducer = -model.joiner(model.projection(encoded), predicted).log_softmax(2)[..., BLANK]
    by_ctc = -model.ctc(encoded).log_softmax(2)[..., BLANK]
    for name, blanks in (("transducer", by_transducer), ("ctc", by_ctc)):
        total = blanks[0, :5].sum()
        total = total + (spoken[name] * 2 if count > 1 else blanks[1].sum())
        torch.testing.assert_close(losses[name], total / count)
    assert all(grad.isfinite().all() for grad in gradients(model, losses["loss"]).values())
    assert losses["left_out"] == 0
