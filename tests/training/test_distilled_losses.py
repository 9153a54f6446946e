"""The distillation losses of a batch: each against lattices of single utterances, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import (
    LABELS,
    LENGTHS,
    VOCABULARY,
    compute,
    encode,
    gradients,
    lattice_of,
    make_batch,
    make_model,
    stage_with,
)
from target_paths import path_nodes, random_path
from torch import Tensor
from torch.nn import functional

from onebest.errors import ConfigError
from onebest_training.band import band_starts, ctc_viterbi
from onebest_training.batches import Batch, TeacherInput
from onebest_training.config import BlockConfig, EncoderConfig
from onebest_training.distillation import collate_paths
from onebest_training.frozen_teacher import FrozenTeacher
from onebest_training.lattice import transducer_loss
from onebest_training.outputs import Outputs
from onebest_training.targets import TeacherPath
from onebest_training.transducer import Transducer

#: Teachers have a frame more or less than the student now and then.
TEACHER_LENGTHS = [13, 9, 6]


def make_hypotheses() -> list[list[TeacherPath]]:
    """Three hypotheses of the first utterance, of the second its text alone, none of the third."""
    second = [3, 1, 5], [2, 2]
    first = random_path(LABELS[0], TEACHER_LENGTHS[0], VOCABULARY, seed=1, score=-3.0)
    others = [
        random_path(labels, TEACHER_LENGTHS[0], VOCABULARY, seed=seed, score=-3.0 - seed / 4)
        for seed, labels in enumerate(second, 2)
    ]
    return [[first, *others], [random_path(LABELS[1], TEACHER_LENGTHS[1], VOCABULARY, seed=5)], []]


def make_distilled_batch() -> Batch:
    return make_batch()._replace(targets=collate_paths(make_hypotheses()))


def make_teacher(seed: int = 9) -> FrozenTeacher:
    model = make_model(seed, width=8).requires_grad_(False).eval()
    return FrozenTeacher(model.encoder, model)


def path_sum(model: Transducer, encoded: Tensor, path: TeacherPath, shift: int) -> Tensor:
    """Sum of the divergences at one path's nodes, from plain probabilities."""
    lattice = lattice_of(model, encoded, list(path.reference)).double().softmax(2)
    total = torch.zeros((), dtype=torch.float64)
    for node, (t, u) in enumerate(zip(path.frames.tolist(), path.labels.tolist(), strict=True)):
        if t + shift >= len(encoded):
            continue
        ids = torch.from_numpy(path.top_ids[node]).long()
        teacher = torch.from_numpy(path.top_log_probs[node]).double().exp()
        teacher = torch.cat((teacher, torch.tensor([float(path.rest_log_prob[node])]).double().exp()))
        student = lattice[t + shift, u][ids]
        student = torch.cat((student, (1 - student.sum())[None]))
        teacher = teacher / teacher.sum()
        total = total + (teacher * (teacher / student).log()).sum()
    return total


@pytest.mark.parametrize(("chunk", "shift"), [(0, 0), (4, 0), (4, 2), (4, 30)])
def test_paths(chunk: int, shift: int) -> None:
    model, batch = make_model(), make_distilled_batch()
    encoded, hypotheses = encode(model, batch, chunk), make_hypotheses()
    each = [path_sum(model, encoded[i, : LENGTHS[i]], hypotheses[i][0], shift) for i in (0, 1)]
    losses = compute(model, batch, stage_with(chunk, path=0.5, shift=shift))
    assert losses.keys() == {"path", "loss", "left_out"}
    torch.testing.assert_close(losses["path"], (sum(each) / 7).float())
    torch.testing.assert_close(losses["loss"], losses["path"] / 2)


def test_full_context_knows_no_shift_and_no_window() -> None:
    model, batch = make_model(), make_distilled_batch()
    expected = compute(model, batch, stage_with(0, path=1.0))["path"]
    assert torch.equal(compute(model, batch, stage_with(0, path=1.0, shift=2, window=3))["path"], expected)
    chunked = compute(model, batch, stage_with(4, path=1.0))["path"]
    assert compute(model, batch, stage_with(4, path=1.0, shift=2, window=3))["path"] < chunked


def test_hypotheses_are_weighed_by_their_scores() -> None:
    model, batch, hypotheses = make_model(), make_distilled_batch(), make_hypotheses()
    encoded = encode(model, batch)
    weights = torch.tensor([path.score for path in hypotheses[0]]).softmax(0)
    paths = [(0, path, w) for path, w in zip(hypotheses[0], weights, strict=True)]
    paths.append((1, hypotheses[1][0], torch.ones(())))
    path, transducer = torch.zeros(()), torch.zeros(())
    for i, hypothesis, weight in paths:
        own = encoded[i, : LENGTHS[i]]
        path = path + weight * path_sum(model, own, hypothesis, 0)
        transducer = transducer + weight * sequence_loss(model, own, list(hypothesis.reference))
    transducer = transducer + sequence_loss(model, encoded[2, : LENGTHS[2]], LABELS[2])
    losses = compute(model, batch, stage_with(path=1.0, transducer=1.0, band=0, hypotheses=3))
    torch.testing.assert_close(losses["path"].double(), path / 7, check_dtype=False)
    torch.testing.assert_close(losses["transducer"], transducer / 7)


def sequence_loss(model: Transducer, encoded: Tensor, labels: list[int]) -> Tensor:
    logits = lattice_of(model, encoded, labels)
    lengths = torch.tensor([len(encoded)]), torch.tensor([len(labels)])
    return transducer_loss(logits[None], torch.tensor([labels]), *lengths)[0]


@pytest.mark.parametrize("band", [0, 20])
def test_whole_sequences(band: int) -> None:
    model, batch, hypotheses = make_model(), make_distilled_batch(), make_hypotheses()
    encoded = encode(model, batch)[0, : LENGTHS[0]]
    scores = torch.stack([-sequence_loss(model, encoded, list(path.reference)) for path in hypotheses[0]])
    teacher = torch.tensor([path.score for path in hypotheses[0]]).softmax(0)
    expected = (teacher * (teacher / scores.softmax(0)).log()).sum() / 7
    losses = compute(model, batch, stage_with(sequence=1.0, band=band))
    torch.testing.assert_close(losses["sequence"], expected)


def teacher_lattice(teacher: FrozenTeacher, batch: Batch, i: int) -> Tensor:
    assert teacher.transducer is not None
    encoded = teacher.encoder(batch.features, batch.frame_lengths, 0, 0)
    return lattice_of(teacher.transducer, encoded[i, : LENGTHS[i]], LABELS[i])


@pytest.mark.parametrize(("band", "chunk", "shift"), [(0, 0, 0), (20, 4, 0), (0, 4, 2), (20, 4, 10)])
@pytest.mark.parametrize("name", ["lattice", "collapsed"])
def test_lattices(name: str, band: int, chunk: int, shift: int) -> None:
    model, batch, teacher = make_model(), make_batch(), make_teacher()
    encoded, total = encode(model, batch, chunk), torch.zeros(())
    for i, labels in enumerate(LABELS):
        student = lattice_of(model, encoded[i, : LENGTHS[i]], labels).softmax(2)[shift:]
        likely = teacher_lattice(teacher, batch, i).softmax(2)[: len(student)]
        if name == "collapsed":
            student, likely = collapse(student, labels), collapse(likely, labels)
        total = total + (likely * (likely / student).log()).nansum()
    stage = stage_with(chunk, band=band, shift=shift, teacher="a.pt", **{name: 1.0})
    losses = compute(model, batch, stage, teacher)
    torch.testing.assert_close(losses[name], total / 7, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lattice", "collapsed"])
def test_teachers_that_read_less_than_the_student(name: str) -> None:
    """Frames that only the student has are not taught; those that only the teacher has are not asked for."""
    torch.manual_seed(5)
    config = EncoderConfig(8, 2, 60, (BlockConfig(1, 24),), pretrained="whisper:a", inputs=3)
    transducer = Transducer(replace(make_model().config, encoder=config)).requires_grad_(False).eval()
    teacher, shift, chunk = FrozenTeacher(transducer.encoder, transducer), 2, 4
    own = TeacherInput(torch.randn(3, 13, 3), torch.tensor([13, 6, 7]))
    model, batch = make_model(), make_batch()._replace(teacher=own)
    encoded, total = encode(model, batch, chunk), torch.zeros(())
    heard = transducer.encoder(*own, 0, 0)
    for i, labels in enumerate(LABELS):
        student = lattice_of(model, encoded[i, : LENGTHS[i]], labels).softmax(2)[shift:]
        likely = lattice_of(transducer, heard[i, : own.frame_lengths[i]], labels).softmax(2)
        frames = min(len(student), len(likely))
        student, likely = student[:frames], likely[:frames]
        if name == "collapsed":
            student, likely = collapse(student, labels), collapse(likely, labels)
        total = total + (likely * (likely / student).log()).nansum()
    stage = stage_with(chunk, band=0, shift=shift, teacher="a.pt", **{name: 1.0})
    losses = compute(model, batch, stage, teacher)
    torch.testing.assert_close(losses[name], total / 7, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="Name a teacher_store"):
        compute(model, make_batch(), stage, teacher)


def collapse(probs: Tensor, labels: list[int]) -> Tensor:
    """Blank, next label and rest [T, U+1, 3] of [T, U+1, V]; no label has no probability."""
    following = torch.stack([probs[:, u, label] for u, label in enumerate(labels)], 1)
    following = functional.pad(following, (0, 1))
    return torch.stack((probs[..., 0], following, 1 - probs[..., 0] - following), 2)


def test_a_narrow_band_has_the_terms_of_its_nodes() -> None:
    model, batch, teacher = make_model(), make_batch(), make_teacher()
    whole = compute(model, batch, stage_with(lattice=1.0, band=0, teacher="a.pt"), teacher)["lattice"]
    narrow = compute(model, batch, stage_with(lattice=1.0, band=2, teacher="a.pt"), teacher)["lattice"]
    assert 0 < narrow < whole


def test_a_band_around_the_path_of_the_teacher() -> None:
    model, batch = make_model(), make_distilled_batch()
    around = {name: stage_with(transducer=1.0, band=2, band_around=name) for name in ("ctc", "path")}
    found = {name: compute(model, batch, stage)["transducer"] for name, stage in around.items()}
    assert found["ctc"] != found["path"]
    wide = replace(around["path"], loss=replace(around["path"].loss, band=20))
    whole = compute(model, batch, stage_with(transducer=1.0, band=0))["transducer"]
    torch.testing.assert_close(compute(model, batch, wide)["transducer"], whole)
    known = batch._replace(targets=collate_paths([*make_hypotheses()[:2], [random_path(LABELS[2], 7, 7)]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(model, "ctc")  # where all paths are known, the CTC head is not asked
        assert compute(model, known, around["path"])["transducer"] > whole


def test_the_band_follows_the_path_of_the_teacher_tau_later() -> None:
    model, batch, hypotheses = make_model(), make_distilled_batch(), make_hypotheses()
    stage = stage_with(transducer=1.0, band=2, band_around="path", shift=2)
    encoded = encode(model, batch)
    for chunk, shift in ((4, 2), (0, 0)):
        starts = Outputs(model, batch, stage.loss, None, chunk, 0, encoded).nodes.starts
        for i in (0, 1):
            path = hypotheses[i][0]
            due = torch.from_numpy(path.frames[path.tokens != 0]).long()[None] + shift
            lengths = batch.frame_lengths[i : i + 1], batch.label_lengths[i : i + 1]
            expected = band_starts(due, *lengths, 2, num_frames=encoded.shape[1])[0]
            assert starts[i].tolist() == expected.tolist()


def test_embeddings() -> None:
    teacher, delay = make_teacher(), 2
    model, batch = make_model(embedding_width=8), make_batch()
    encoded = model.embedding(encode(model, batch))
    wanted = teacher.encoder(batch.features, batch.frame_lengths, 0, 0)
    errors = []
    for i, length in enumerate(LENGTHS):
        for t in range(length - delay):
            x = wanted[i, t]
            x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
            errors.append((encoded[i, t + delay] - x).square().mean())
    stage = stage_with(embedding=1.0, embedding_delay=delay, teacher="a.pt")
    losses = compute(model, batch, stage, FrozenTeacher(teacher.encoder, None))
    torch.testing.assert_close(losses["embedding"], torch.stack(errors).mean())
    found = gradients(model, losses["loss"])
    assert {"embedding.weight", "embedding.bias"} == {n for n in found if not n.startswith("encoder.")}
    late = stage_with(embedding=1.0, embedding_delay=40, teacher="a.pt")
    assert compute(model, batch, late, teacher)["embedding"] == 0


def test_ctc_posteriors_of_its_own_full_context() -> None:
    model, batch = make_model(), make_batch()
    chunked, whole = (model.ctc(encode(model, batch, chunk)).softmax(2) for chunk in (4, 0))
    each = (whole * (whole / chunked).log()).sum(2)
    expected = torch.cat([each[i, :length] for i, length in enumerate(LENGTHS)]).mean()
    losses = compute(model, batch, stage_with(self_ctc=1.0))
    torch.testing.assert_close(losses["self_ctc"], expected)
    assert "self_ctc" not in compute(model, batch, stage_with(chunk=0, self_ctc=1.0, ctc=1.0))


def two_views() -> Batch:
    batch = make_batch()
    other = torch.randn(batch.features.shape, generator=torch.Generator().manual_seed(8))
    twice = [torch.cat((part, part)) for part in batch[1:4]]
    return Batch(torch.cat((batch.features, other)), *twice, batch.texts * 2, views=2)


@pytest.mark.parametrize("chunk", [0, 4])
def test_two_views_learn_from_each_other(chunk: int) -> None:
    model, batch = make_model(), two_views()
    encoded = encode(model, batch, chunk)
    views, total = model.ctc(encoded).softmax(2).chunk(2), torch.zeros(())
    for own, fixed in [views, reversed(views)]:
        for i, length in enumerate(LENGTHS):
            p, q = fixed[i, :length].detach(), own[i, :length]
            total = total + (p * (p / q).log()).sum()
    losses = compute(model, batch, stage_with(chunk, consistency=0.5, ctc=0.5))
    torch.testing.assert_close(losses["consistency"], total / 14)
    log_probs = model.ctc(encoded).log_softmax(2).transpose(0, 1)
    ctc = functional.ctc_loss(log_probs, *batch[2:3], *batch[1:4:2], reduction="sum")
    torch.testing.assert_close(losses["ctc"], ctc / 14)
    expected = gradients(model, (total + ctc) / 28)
    found = gradients(model, compute(model, batch, stage_with(chunk, consistency=0.5, ctc=0.5))["loss"])
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)


def test_consistency_needs_two_views() -> None:
    with pytest.raises(ConfigError, match="two views"):
        compute(make_model(), make_batch(), stage_with(consistency=1.0))


@pytest.mark.parametrize("shift", [0, 2])
def test_joiner_posteriors_of_its_own_full_context(shift: int) -> None:
    model, batch = make_model(), make_batch()
    chunked, whole = encode(model, batch, 4), encode(model, batch, 0)
    lengths = batch.frame_lengths, batch.label_lengths
    paths = ctc_viterbi(model.ctc(whole).log_softmax(2), batch.labels, *lengths).tolist()
    total = torch.zeros(())
    for i, labels in enumerate(LABELS):
        student = lattice_of(model, chunked[i, : LENGTHS[i]], labels).softmax(2)
        teacher = lattice_of(model, whole[i, : LENGTHS[i]], labels).softmax(2)
        for t, u in path_nodes(paths[i][: len(labels)], LENGTHS[i]):
            if t + shift < LENGTHS[i]:
                p = teacher[t, u]
                total = total + (p * (p / student[t + shift, u]).log()).sum()
    losses = compute(model, batch, stage_with(self_joiner=1.0, shift=shift))
    torch.testing.assert_close(losses["self_joiner"], total / 7)
    assert "projection.weight" in gradients(model, losses["loss"])


@pytest.mark.parametrize("autocast", [False, True])
def test_all_at_once_give_every_parameter_a_finite_gradient(autocast: bool) -> None:
    model, batch, teacher = make_model(embedding_width=8), make_distilled_batch(), make_teacher()
    names = ["ctc", "transducer", "self_distillation", "self_ctc", "self_joiner", "path", "collapsed"]
    names += ["lattice", "sequence", "embedding"]
    options = {"band_around": "path", "shift": 1, "window": 2, "temperature": 2.0, "hypotheses": 2}
    weights = dict.fromkeys(names, 0.5)
    stage = stage_with(**weights, **options, band=3, embedding_delay=1, teacher="a.pt")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = compute(model, batch, stage, teacher)
    assert losses.keys() == {*names, "loss", "left_out"}
    torch.testing.assert_close(losses["loss"], sum(losses[name] for name in names) / 2)
    found = gradients(model, losses["loss"])
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(grad.isfinite().all() for grad in found.values())


@pytest.mark.parametrize("trains", ["all", "heads"])
def test_a_batch_without_targets_among_others_with_them(trains: str) -> None:
    model = make_model()
    batch = make_batch()._replace(targets=collate_paths([[], [], []]))
    stage = stage_with(trains=trains, path=1.0, sequence=1.0)
    losses = compute(model, batch, stage)
    assert losses["loss"] == 0
    assert all((grad == 0).all() for grad in gradients(model, losses["loss"]).values())
    options = {"transducer": 1.0, "band": 3, "hypotheses": 2, "band_around": "path"}
    expected = compute(model, make_batch(), stage_with(transducer=1.0, band=3))
    torch.testing.assert_close(compute(model, batch, stage_with(**options))["loss"], expected["loss"])


def test_hypotheses_that_do_not_fit_count_for_nothing() -> None:
    model, hypotheses = make_model(), make_hypotheses()
    impossible = random_path([5] * 12, 8, VOCABULARY, score=-1.0)
    batch = make_batch()._replace(targets=collate_paths([[*hypotheses[0], impossible], *hypotheses[1:]]))
    stage = stage_with(sequence=1.0, band=0)
    expected = compute(model, make_distilled_batch(), stage)["sequence"]
    torch.testing.assert_close(compute(model, batch, stage)["sequence"], expected)
    found = compute(model, batch, stage_with(transducer=1.0, band=2, hypotheses=4))["loss"]
    assert found.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(model, found).values())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"path": 1.0}, r"loss\.path needs a teacher's targets"),
        ({"sequence": 1.0}, r"loss\.sequence needs a teacher's targets"),
        ({"transducer": 1.0, "hypotheses": 2}, r"loss\.hypotheses needs a teacher's targets"),
        ({"transducer": 1.0, "band_around": "path"}, r"loss\.band_around needs a teacher's targets"),
        ({"lattice": 1.0, "teacher": "a.pt"}, "need a transducer as loss.teacher"),
        ({"embedding": 1.0, "teacher": "a.pt"}, r"Set model\.embedding_width"),
    ],
)
def test_losses_without_what_they_need_are_refused(loss: dict[str, float | str], message: str) -> None:
    teacher = FrozenTeacher(make_teacher().encoder, None)
    with pytest.raises(ConfigError, match=message):
        compute(make_model(), make_batch(), stage_with(**loss), teacher)


def test_hard_pseudo_labels() -> None:
    """What a teacher wrote becomes the batch's labels: nothing but the transducer loss is needed."""
    model, batch = make_model(), make_distilled_batch()
    assert batch.targets is not None
    best = batch.targets.best(1)
    hard = Batch(
        batch.features[:2],
        batch.frame_lengths[:2],
        best.references,
        best.reference_lengths,
        batch.texts[:2],
    )
    losses = compute(model, hard, stage_with(transducer=1.0, band=0))
    encoded = encode(model, hard)
    each = [sequence_loss(model, encoded[i, : LENGTHS[i]], LABELS[i]) for i in (0, 1)]
    torch.testing.assert_close(losses["transducer"], sum(each) / 6)
