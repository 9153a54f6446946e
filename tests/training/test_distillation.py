"""Path distillation against sums written out node by node and class by class, gradients included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from target_paths import make_path, random_log_probs, random_path
from torch import Tensor

from onebest.errors import DataError
from onebest_training.distillation import (
    collate_paths,
    grouped_log_softmax,
    node_divergence,
    path_divergence,
)
from onebest_training.targets import TeacherPath

VOCABULARY, WIDTH = 6, 5


class Student:
    """Random encoder and predictor outputs, and a linear joiner behind tanh, in float64."""

    def __init__(self, batch: int, frames: int, nodes: list[int], seed: int):
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_()

        self.projected = random(batch, frames, WIDTH)
        self.predicted = random(len(nodes), max(nodes, default=0), WIDTH)
        self.out = random(WIDTH, VOCABULARY)
        self.leaves = (self.projected, self.predicted, self.out)
        self.joined = 0

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        self.joined += len(encoded)
        return torch.tanh(encoded + predicted) @ self.out


def divergence_of_node(path: TeacherPath, node: int, logits: Tensor, temperature: float) -> Tensor:
    """KL over the named classes and the rest, from plain probabilities."""
    probs = logits.exp() / logits.exp().sum()
    ids = path.top_ids[node].tolist()
    teacher = [math.exp(x) for x in path.top_log_probs[node].astype(float)]
    student = [probs[index] for index in ids]
    others = [probs[index] for index in range(len(probs)) if index not in ids]
    if others:
        teacher.append(math.exp(float(path.rest_log_prob[node])))
        student.append(torch.stack(others).sum())
    teacher = [p ** (1 / temperature) for p in teacher]
    student = [q ** (1 / temperature) for q in student]
    total = torch.zeros((), dtype=logits.dtype)
    for p, q in zip(teacher, student, strict=True):
        if p > 0:
            p = p / sum(teacher)
            total = total + p * (math.log(p) - (q / sum(student)).log())
    return total


def brute_force(
    student: Student, hypotheses: list[list[TeacherPath]], frame_lengths: list[int], options: dict[str, float]
) -> Tensor:
    """The sum of each path, one node and one shift after another."""
    sums, number = [], 0
    for utterance, paths in enumerate(hypotheses):
        for path in paths:
            total = torch.zeros((), dtype=torch.float64)
            for node, (t, u) in enumerate(zip(path.frames.tolist(), path.labels.tolist(), strict=True)):
                found = []
                for back in range(int(options["window"])):
                    frame = t + int(options["shift"]) - back
                    if 0 <= frame < frame_lengths[utterance]:
                        hidden = student.projected[utterance, frame] + student.predicted[number, u]
                        logits = torch.tanh(hidden) @ student.out
                        found.append(divergence_of_node(path, node, logits, options["temperature"]))
                if found:
                    total = total + torch.stack(found).min()
            sums.append(total)
            number += 1
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[TeacherPath]], list[int]]:
    """Hypotheses of a few utterances, some without, and student lengths that differ from the teacher's."""
    hypotheses, frame_lengths = [], []
    for _ in range(draw(st.integers(1, 3))):
        frames = draw(st.integers(1, 5))
        frame_lengths.append(max(1, frames + draw(st.integers(-2, 2))))
        seeds = draw(st.lists(st.integers(0, 99), max_size=2))
        kept = draw(st.integers(1, VOCABULARY))
        reference = draw(st.lists(st.integers(1, VOCABULARY - 1), max_size=3))
        hypotheses.append([random_path(reference, frames, VOCABULARY, kept, seed) for seed in seeds])
    kept = min((path.top_ids.shape[1] for paths in hypotheses for path in paths), default=1)
    return [[cut(path, kept) for path in paths] for paths in hypotheses], frame_lengths


def cut(path: TeacherPath, kept: int) -> TeacherPath:
    """The same path with fewer classes, their mass among the rest."""
    top = path.top_log_probs.astype(float)
    rest = np.exp(path.rest_log_prob.astype(float)) + np.exp(top[:, kept:]).sum(1)
    with np.errstate(divide="ignore"):
        rest = np.log(rest).astype(np.float16)
    return TeacherPath(
        path.frames,
        path.labels,
        path.tokens,
        path.top_ids[:, :kept],
        path.top_log_probs[:, :kept],
        rest,
        path.score,
    )


@settings(max_examples=40, deadline=None)
@given(
    cases(),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from([1.0, 0.5, 2.0]),
    st.integers(0, 99),
)
def test_paths_equal_the_sum_over_their_nodes(
    drawn: tuple[list[list[TeacherPath]], list[int]], shift: int, window: int, temperature: float, seed: int
) -> None:
    hypotheses, frame_lengths = drawn
    options = {"shift": shift, "window": window, "temperature": temperature}
    nodes = [len(path.reference) + 1 for paths in hypotheses for path in paths]
    student = Student(len(hypotheses), max(frame_lengths) + 1, nodes, seed)
    targets, lengths = collate_paths(hypotheses), torch.tensor(frame_lengths)
    found = path_divergence(student.join, student.projected, student.predicted, targets, lengths, **options)
    expected = brute_force(student, hypotheses, frame_lengths, options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    arguments = {"allow_unused": True, "materialize_grads": True}
    if len(found):
        for ours, theirs in zip(
            torch.autograd.grad(found.sum(), student.leaves, **arguments),
            torch.autograd.grad(expected.sum() + 0 * student.out.sum(), student.leaves, **arguments),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_only_the_nodes_of_the_paths_are_joined() -> None:
    hypotheses = [[random_path([1, 2], 4, VOCABULARY)], [random_path([3], 3, VOCABULARY)]]
    student = Student(2, 4, [3, 2], 0)
    arguments = student.projected, student.predicted, collate_paths(hypotheses)
    path_divergence(student.join, *arguments, torch.tensor([4, 3]))
    assert student.joined == (4 + 2) + (3 + 1)


def test_gradient_passes_gradcheck() -> None:
    targets = collate_paths([[random_path([1, 2], 3, VOCABULARY, 2)]])
    student = Student(1, 3, [3], 1)

    def loss(projected: Tensor, predicted: Tensor) -> Tensor:
        lengths = torch.tensor([3])
        return path_divergence(student.join, projected, predicted, targets, lengths, shift=1, temperature=2.0)

    assert torch.autograd.gradcheck(loss, student.leaves[:2])


@pytest.mark.parametrize("kept", [1, 3, VOCABULARY])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_says_the_same_has_nothing_to_learn(kept: int, temperature: float) -> None:
    log_probs = random_log_probs(1, 4, VOCABULARY)[0]
    top, ids = log_probs.sort(1, descending=True)
    logits = (log_probs + 7.0).requires_grad_()
    kept_classes = ids[:, :kept], top[:, :kept], top[:, kept:].logsumexp(1)
    divergence = node_divergence(logits, *kept_classes, temperature=temperature)
    torch.testing.assert_close(divergence, torch.zeros_like(divergence))
    (gradient,) = torch.autograd.grad(divergence.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_certain_teachers_and_students_stay_finite() -> None:
    logits = torch.tensor([[200.0, -200, 0, 0], [0, 0, 0, 0]], requires_grad=True)
    top = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    ids, rest = torch.tensor([[1, 2], [0, 3]]), torch.tensor([-torch.inf, -torch.inf])
    divergence = node_divergence(logits, ids, top, rest)
    torch.testing.assert_close(divergence, torch.tensor([400.0, math.log(4)]))
    assert torch.autograd.grad(divergence.sum(), logits)[0].isfinite().all()


def test_collating_keeps_everything_in_its_place() -> None:
    log_probs = random_log_probs(4, 2, VOCABULARY)
    first = make_path([3, 5], [1, 1], 3, log_probs, 3, score=-2.0)
    second = make_path([4], [3], 4, log_probs, 2, score=-1.0)
    third = make_path([], [], 1, log_probs, 4, score=-4.0)
    targets = collate_paths([[first, second], [], [third]])
    assert targets.utterances.tolist() == [0, 0, 2]
    assert targets.ranks.tolist() == [0, 1, 0]
    assert targets.lengths.tolist() == [5, 5, 1]
    assert targets.frames.tolist() == [[0, 1, 1, 1, 2], [0, 1, 2, 3, 3], [0, 0, 0, 0, 0]]
    assert targets.labels.tolist() == [[0, 0, 1, 2, 2], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert targets.references.tolist() == [[3, 5], [4, 0], [0, 0]]
    assert targets.reference_lengths.tolist() == [2, 1, 0]
    assert targets.emission_frames.tolist() == [[1, 1], [3, 0], [0, 0]]
    for row, path in enumerate((first, second, third)):
        assert targets.top_ids[row, : len(path.frames)].tolist() == path.top_ids[:, :2].tolist()
        total = targets.top_log_probs[row].exp().sum(1) + targets.rest_log_probs[row].exp()
        torch.testing.assert_close(total[: len(path.frames)], torch.ones(len(path.frames)), rtol=0, atol=2e-3)
    best = targets.best(1)
    assert best.utterances.tolist() == [0, 2]
    assert best.reference_lengths.tolist() == [2, 0]
    torch.testing.assert_close(targets.weights()[:2], torch.tensor([-2.0, -1.0]).softmax(0))
    torch.testing.assert_close(best.weights(), torch.ones(2))


def test_a_batch_without_any_path() -> None:
    targets = collate_paths([[], []])
    student = Student(2, 3, [], 0)
    arguments = student.projected, student.predicted, targets, torch.tensor([3, 2])
    assert path_divergence(student.join, *arguments, window=3).shape == (0,)
    assert targets.best(1).weights().shape == (0,)


def test_softmax_within_groups() -> None:
    scores = torch.tensor([1.0, -300.0, 5.0, 2.0], dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([3, 0, 3, 0])
    one, two = scores[[0, 2]].log_softmax(0), scores[[1, 3]].log_softmax(0)
    expected = torch.stack((one[0], two[0], one[1], two[1]))
    found = grouped_log_softmax(scores, groups)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found @ weights, scores), torch.autograd.grad(expected @ weights, scores)
    )


def test_targets_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(DataError, match="name class 9, but the student's vocabulary has 6"):
        node_divergence(torch.zeros(1, 6), torch.tensor([[9]]), torch.zeros(1, 1), torch.zeros(1))
