"""Lattice and sequence distillation against plain sums over nodes, classes and hypotheses, with gradients."""

from itertools import product

import pytest
import torch
from torch import Tensor

from onebest.errors import DataError
from onebest_training import planes as planes_module
from onebest_training.lattice_distillation import (
    collapsed_divergence,
    lattice_divergence,
    logit_divergence,
    sequence_divergence,
)
from onebest_training.planes import class_planes

LENGTHS, NODES, SIZE = [4, 2, 0], [3, 1, 2], (3, 5, 3, 6)


def random_logits(seed: int, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*size, generator=generator, dtype=torch.float64)).requires_grad_()


def divergence(teacher: list[Tensor], student: list[Tensor], temperature: float) -> Tensor:
    """KL of two lists of probabilities, each raised to 1/temperature and normalised."""
    teacher = [p ** (1 / temperature) for p in teacher]
    student = [q ** (1 / temperature) for q in student]
    total = torch.zeros((), dtype=torch.float64)
    for p, q in zip(teacher, student, strict=True):
        total = total + p / sum(teacher) * ((p / sum(teacher)) / (q / sum(student))).log()
    return total


def gradients(loss: Tensor, leaf: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), leaf)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_whole_vocabulary(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planes_module.CHUNK_ELEMENTS, "cpu", 40)
    student, teacher = random_logits(0, *SIZE), random_logits(1, *SIZE).detach()
    expected = []
    for i, (frames, nodes) in enumerate(zip(LENGTHS, NODES, strict=True)):
        each = [
            divergence(list(teacher[i, t, u].softmax(0)), list(student[i, t, u].softmax(0)), temperature)
            for t, u in product(range(frames), range(nodes))
        ]
        expected.append(torch.stack(each).sum() if each else 0 * student.sum())
    lengths = torch.tensor(LENGTHS), torch.tensor(NODES)
    found = lattice_divergence(student, teacher, *lengths, temperature=temperature)
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(gradients(found, student), gradients(torch.stack(expected), student))


def test_half_precision_stays_close() -> None:
    student, teacher = random_logits(0, *SIZE).detach(), random_logits(1, *SIZE).detach()
    lengths = torch.tensor(LENGTHS), torch.tensor(NODES)
    half = student.bfloat16().requires_grad_()
    found = lattice_divergence(half, teacher.bfloat16(), *lengths)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), lattice_divergence(student, teacher, *lengths), rtol=0.02, atol=0
    )
    assert gradients(found, half).dtype == torch.bfloat16


def test_logits_at_different_nodes_are_refused() -> None:
    lengths = torch.tensor([1]), torch.tensor([1])
    with pytest.raises(DataError, match="at the same nodes"):
        lattice_divergence(torch.zeros(1, 2, 2, 5), torch.zeros(1, 2, 2, 6), *lengths)


def test_logits_node_by_node() -> None:
    student, teacher = random_logits(2, 4, 6), random_logits(3, 4, 6).detach()
    pairs = zip(teacher.softmax(1), student.softmax(1), strict=True)
    expected = torch.stack([divergence(list(p), list(q), 2.0) for p, q in pairs])
    found = logit_divergence(student, teacher, temperature=2.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, student), gradients(expected, student))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_blank_next_label_and_the_rest(temperature: float) -> None:
    student, teacher = random_logits(4, *SIZE), random_logits(5, *SIZE).detach()
    labels = torch.tensor([[3, 1, 0], [5, 0, 0], [2, 4, 0]])
    lengths, nodes = torch.tensor([5, 2, 4]), torch.tensor([3, 1, 2])
    counts = (torch.arange(5)[:, None] < lengths[:, None, None]) & (torch.arange(3) < nodes[:, None, None])
    continues = (torch.arange(3) < (nodes - 1)[:, None, None]).expand(SIZE[:3])
    next_labels = labels[:, None].where(continues, 0)
    expected = []
    for i in range(3):
        total = torch.zeros((), dtype=torch.float64)
        for t, u in product(range(int(lengths[i])), range(int(nodes[i]))):
            named = [0, int(labels[i, u])] if u + 1 < nodes[i] else [0]
            classes = []
            for logits in (teacher[i, t, u], student[i, t, u]):
                probs = logits.softmax(0)
                rest = [probs[v] for v in range(6) if v not in named]
                classes.append([*(probs[v] for v in named), torch.stack(rest).sum()])
            total = total + divergence(*classes, temperature)
        expected.append(total)
    planes = [class_planes(logits, next_labels, lengths, nodes) for logits in (student, teacher)]
    found = collapsed_divergence(*planes, counts, continues, temperature=temperature)
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(gradients(found, student), gradients(torch.stack(expected), student))


def test_certainty_leaves_the_collapsed_loss_finite() -> None:
    blank = torch.tensor([[[0.0, -200.0]]], requires_grad=True)
    label = torch.tensor([[[-200.0, 0.0]]], requires_grad=True)
    everywhere = torch.ones(1, 1, 2, dtype=torch.bool)
    rest = torch.full((1, 1, 2), -200.0)
    teacher = (label.detach(), blank.detach(), rest)
    found = collapsed_divergence((blank, label, rest), teacher, everywhere, everywhere)
    torch.testing.assert_close(found, torch.tensor([400.0]), rtol=1e-4, atol=0)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), (blank, label)))


@pytest.mark.parametrize("lead", [5.0, 20.0, 60.0, 200.0])
def test_certainty_leaves_the_collapsed_gradient(lead: float) -> None:
    """A teacher that is sure of others moves a student in float32 as far as one in float64."""
    student, teacher = random_logits(10, 1, 2, 2, 6).detach(), random_logits(11, 1, 2, 2, 6).detach()
    student[..., 0] += lead
    next_labels = torch.tensor([[[2, 0], [2, 0]]])
    lengths, nodes, everywhere = torch.tensor([2]), torch.tensor([2]), torch.ones(1, 2, 2, dtype=torch.bool)
    found = []
    for dtype in (torch.float32, torch.float64):
        logits = student.to(dtype).requires_grad_()
        planes = [class_planes(x, next_labels, lengths, nodes) for x in (logits, teacher.to(dtype))]
        loss = collapsed_divergence(*planes, everywhere, next_labels > 0)
        found.append(gradients(loss, logits).double())
        assert found[-1].isfinite().all()
        if lead < 80:
            assert found[-1].abs().max() > 0.1
            torch.testing.assert_close(found[-1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_hypotheses_of_an_utterance(temperature: float) -> None:
    student, teacher = random_logits(6, 6), random_logits(7, 6).detach()
    utterances = torch.tensor([4, 0, 4, 4, 0, 2])
    expected = torch.zeros((), dtype=torch.float64)
    for members in ([0, 2, 3], [1, 4], [5]):
        probs = teacher[members].exp(), student[members].exp()
        expected = expected + divergence(*(list(p) for p in probs), temperature)
    found = sequence_divergence(student, teacher, utterances, temperature=temperature)
    assert found[5] == 0
    torch.testing.assert_close(found.sum(), expected)
    torch.testing.assert_close(gradients(found.sum(), student), gradients(expected, student))


def test_gradients_pass_gradcheck() -> None:
    student, teacher = random_logits(8, 1, 2, 2, 3), random_logits(9, 1, 2, 2, 3).detach()
    lengths = torch.tensor([2]), torch.tensor([2])
    assert torch.autograd.gradcheck(lambda x: lattice_divergence(x, teacher, *lengths), (student,))
