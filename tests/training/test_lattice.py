"""The transducer loss against a sum over every single alignment, and against torchaudio's kernel."""

import warnings
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebest_training.lattice import (
    IMPOSSIBLE,
    occupancies,
    transducer_loss,
    transducer_loss_from_planes,
    viterbi,
)
from onebest_training.planes import CHUNK_ELEMENTS


def paths(num_frames: int, num_labels: int) -> list[list[int]]:
    """Every way to emit the labels: the frame of each, in order."""
    steps = range(num_frames - 1 + num_labels)
    return [[step - i for i, step in enumerate(chosen)] for chosen in combinations(steps, num_labels)]


def path_score(blank: Tensor, label: Tensor, frames: list[int]) -> Tensor:
    """Log-probability of one path through the planes [T, U+1] and [T, U]."""
    score = blank.new_zeros(())
    for u, frame in enumerate(frames):
        score = score + label[frame, u]
    for t in range(len(blank)):
        score = score + blank[t, sum(frame <= t for frame in frames)]
    return score


def brute_force(blank: Tensor, label: Tensor, num_frames: int, num_labels: int) -> Tensor:
    blank, label = blank[:num_frames, : num_labels + 1], label[:num_frames, :num_labels]
    every = [path_score(blank, label, frames) for frames in paths(num_frames, num_labels)]
    return -torch.stack(every).logsumexp(0)


def random_planes(sizes: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, frames, labels = sizes
    blank = -3 * torch.rand(batch, frames, labels + 1, generator=generator, dtype=torch.float64)
    label = -3 * torch.rand(batch, frames, labels, generator=generator, dtype=torch.float64)
    return blank.requires_grad_(), label.requires_grad_()


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view_as(loss)
    return torch.autograd.grad((loss * weights).sum(), inputs, allow_unused=True, materialize_grads=True)


lengths = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(lengths, st.integers(0, 1000), st.sampled_from([0.0, 0.05]))
def test_planes_equal_the_sum_over_all_paths(sizes: list[tuple[int, int]], seed: int, penalty: float) -> None:
    num_frames, num_labels = (torch.tensor(column) for column in zip(*sizes, strict=True))
    # One frame and one label of padding, which must not matter.
    blank, label = random_planes((len(sizes), int(num_frames.max()) + 1, int(num_labels.max()) + 1), seed)
    loss = transducer_loss_from_planes(blank, label, num_frames, num_labels, delay_penalty=penalty)
    lead = (num_frames[:, None] - 1) / 2 - torch.arange(blank.shape[1])
    penalised = label + penalty * lead[:, :, None]
    expected = torch.stack([brute_force(blank[i], penalised[i], *sizes[i]) for i in range(len(sizes))])
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients(loss, blank, label), gradients(expected, blank, label), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_equal_the_sum_over_all_paths() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[3, 1], [2, 0]])
    num_frames, num_labels = torch.tensor([3, 2]), torch.tensor([2, 1])
    log_probs = logits.log_softmax(-1)
    expected = torch.stack(
        [
            brute_force(log_probs[0, :, :, 0], log_probs[0][:, [0, 1], [3, 1]], 3, 2),
            brute_force(log_probs[1, :, :, 0], log_probs[1][:, [0, 1], [2, 0]], 2, 1),
        ]
    )
    loss = transducer_loss(logits, labels, num_frames, num_labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, logits), gradients(expected, logits))


def test_gradient_passes_gradcheck() -> None:
    blank, label = random_planes((2, 4, 2))
    arguments = torch.tensor([4, 2]), torch.tensor([1, 2])

    def loss(blank: Tensor, label: Tensor) -> Tensor:
        return transducer_loss_from_planes(blank, label, *arguments, delay_penalty=0.1)

    assert torch.autograd.gradcheck(loss, (blank, label))


def torchaudio_loss(
    logits: Tensor, labels: Tensor, num_frames: Tensor, num_labels: Tensor, blank: int
) -> Tensor:
    from torchaudio.functional import rnnt_loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchaudio announces that it will move the function
        return rnnt_loss(
            logits, labels.int(), num_frames.int(), num_labels.int(), blank=blank, reduction="none"
        )


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize(
    ("batch", "frames", "labels", "vocabulary"), [(1, 1, 1, 3), (3, 9, 5, 7), (4, 30, 12, 50), (2, 3, 11, 5)]
)
def test_logits_equal_torchaudio(batch: int, frames: int, labels: int, vocabulary: int, blank: int) -> None:
    torch.manual_seed(frames)
    logits = (3 * torch.randn(batch, frames, labels + 1, vocabulary)).requires_grad_()
    targets = torch.randint(0, vocabulary - 1, (batch, labels))
    targets += targets >= blank
    num_frames, num_labels = torch.randint(1, frames + 1, (batch,)), torch.randint(1, labels + 1, (batch,))
    num_frames[0], num_labels[0] = frames, labels
    ours = transducer_loss(logits, targets, num_frames, num_labels, blank=blank)
    theirs = torchaudio_loss(logits, targets, num_frames, num_labels, blank)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, logits), gradients(theirs, logits), rtol=1e-4, atol=1e-5)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 4, 6, requires_grad=True)
    arguments = torch.randint(1, 6, (2, 3)), torch.tensor([7, 5]), torch.tensor([3, 2])
    whole = transducer_loss(logits, *arguments)
    expected = gradients(whole, logits)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 50)
    pieces = transducer_loss(logits, *arguments)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(gradients(pieces, logits), expected)


def test_without_labels_every_frame_is_blank() -> None:
    logits = torch.randn(2, 5, 1, 4, requires_grad=True)
    loss = transducer_loss(
        logits, torch.empty(2, 0, dtype=torch.long), torch.tensor([5, 3]), torch.zeros(2).long()
    )
    blank = logits.log_softmax(-1)[:, :, 0, 0]
    expected = -torch.stack([blank[0].sum(), blank[1, :3].sum()])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, logits), gradients(expected, logits))


def test_fastemit_scales_label_gradients_and_not_the_loss() -> None:
    blank, label = random_planes((2, 4, 3))
    arguments = torch.tensor([4, 3]), torch.tensor([3, 1])
    plain = torch.stack(
        [brute_force(blank[i], label[i], *lengths) for i, lengths in enumerate([(4, 3), (3, 1)])]
    )
    scaled = transducer_loss_from_planes(blank, label, *arguments, fastemit=0.25)
    torch.testing.assert_close(scaled, plain)
    (plain_blank, plain_label), (blank_grad, label_grad) = (
        gradients(loss, blank, label) for loss in (plain, scaled)
    )
    torch.testing.assert_close(blank_grad, plain_blank)
    torch.testing.assert_close(label_grad, 1.25 * plain_label)


@pytest.mark.parametrize("value", [IMPOSSIBLE, -torch.inf])
def test_ruled_out_arcs_get_no_gradient_and_spoil_nothing(value: float) -> None:
    blank, label = random_planes((1, 4, 3))
    ruled_out_blank, ruled_out_label = torch.zeros_like(blank).bool(), torch.zeros_like(label).bool()
    ruled_out_blank[0, 1:, 0] = ruled_out_label[0, 0, 1:] = ruled_out_label[0, 3, 1] = True
    blank_plane = blank.masked_fill(ruled_out_blank, value)
    label_plane = label.masked_fill(ruled_out_label, value)
    lengths = torch.tensor([4]), torch.tensor([3])
    loss = transducer_loss_from_planes(blank_plane, label_plane, *lengths)
    expected = brute_force(blank_plane[0], label_plane[0], 4, 3)
    torch.testing.assert_close(loss[0], expected)
    occupied_blank, occupied_label = occupancies(blank_plane.detach(), label_plane.detach(), *lengths)
    assert (occupied_blank[ruled_out_blank] == 0).all()
    assert (occupied_label[ruled_out_label] == 0).all()
    grad_blank, grad_label = gradients(loss, blank_plane, label_plane)
    assert (grad_blank[ruled_out_blank] == 0).all()
    assert (grad_label[ruled_out_label] == 0).all()
    torch.testing.assert_close(grad_blank, -0.5 * occupied_blank)


@pytest.mark.parametrize("value", [IMPOSSIBLE, -torch.inf])
def test_without_a_possible_path_the_loss_is_infinite_and_pulls_nowhere(value: float) -> None:
    blank, label = torch.full((2, 3, 3), -0.5), torch.full((2, 3, 2), -1.0)
    label[0, :, 1] = value
    blank.requires_grad_()
    loss = transducer_loss_from_planes(
        blank, label.requires_grad_(), torch.tensor([3, 3]), torch.tensor([2, 2])
    )
    assert loss[0] == torch.inf
    assert loss[1].isfinite()
    for grad in gradients(loss, blank, label):
        assert (grad[0] == 0).all()
        assert grad[1].isfinite().all()


def test_garbage_in_the_padding_stays_there() -> None:
    blank, label = (plane.detach().float() for plane in random_planes((2, 5, 3)))
    blank[1, 3:] = label[1, 3:] = blank[1, :, 2:] = label[1, :, 1:] = torch.nan
    lengths = torch.tensor([5, 3]), torch.tensor([3, 1])
    blank.requires_grad_(), label.requires_grad_()
    loss = transducer_loss_from_planes(blank, label, *lengths)
    torch.testing.assert_close(loss[1], brute_force(blank[1, :3, :2], label[1, :3, :1], 3, 1))
    assert all(grad.isfinite().all() for grad in gradients(loss, blank, label))


def test_garbage_in_the_padding_of_logits_stays_there() -> None:
    logits = torch.randn(2, 5, 4, 6)
    logits[1, 3:] = logits[1, :, 2:] = torch.nan
    logits.requires_grad_()
    labels = torch.tensor([[1, 2, 3], [4, -1, 99]])
    loss = transducer_loss(logits, labels, torch.tensor([5, 3]), torch.tensor([3, 1]))
    alone = transducer_loss(logits[1:, :3, :2], labels[1:, :1], torch.tensor([3]), torch.tensor([1]))
    torch.testing.assert_close(loss[1:], alone)
    (grad,) = gradients(loss, logits)
    assert (grad[1, 3:] == 0).all()
    assert (grad[1, :, 2:] == 0).all()
    assert grad.isfinite().all()


def test_nan_is_not_hidden() -> None:
    blank, label = random_planes((1, 3, 2))
    blank = blank.detach().index_fill(1, torch.tensor([1]), torch.nan)
    assert transducer_loss_from_planes(blank, label, torch.tensor([3]), torch.tensor([2])).isnan().all()


def test_a_long_lattice_is_exact_in_float32() -> None:
    torch.manual_seed(0)
    blank, label = -4 * torch.rand(2, 300, 61), -4 * torch.rand(2, 300, 60)
    lengths = torch.tensor([300, 250]), torch.tensor([60, 40])
    exact = transducer_loss_from_planes(blank.double(), label.double(), *lengths)
    loss = transducer_loss_from_planes(blank, label, *lengths)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-7, atol=0)


def test_bfloat16_logits_get_a_bfloat16_gradient() -> None:
    logits = torch.randn(1, 6, 3, 8).bfloat16().requires_grad_()
    arguments = torch.tensor([[5, 2]]), torch.tensor([6]), torch.tensor([2])
    exact = logits.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = transducer_loss(logits, *arguments)
        (grad,) = gradients(loss, logits)
    expected = transducer_loss(exact, *arguments)
    torch.testing.assert_close(loss, expected)
    (exact_grad,) = gradients(expected, exact)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), exact_grad, rtol=1e-2, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 1000))
def test_viterbi_finds_the_best_of_all_paths(sizes: list[tuple[int, int]], seed: int) -> None:
    num_frames, num_labels = (torch.tensor(column) for column in zip(*sizes, strict=True))
    blank, label = random_planes((len(sizes), int(num_frames.max()) + 1, int(num_labels.max()) + 1), seed)
    found = viterbi(blank, label, num_frames, num_labels)
    for i, (frames, labels) in enumerate(sizes):
        planes = blank[i, :frames, : labels + 1].detach(), label[i, :frames, :labels].detach()
        best = max(paths(frames, labels), key=lambda path: float(path_score(*planes, path)))
        assert found[i].tolist() == best + [0] * (found.shape[1] - labels)


def test_occupancies_are_shares_of_the_paths() -> None:
    blank, label = (plane.detach() for plane in random_planes((2, 5, 3)))
    num_frames, num_labels = torch.tensor([5, 3]), torch.tensor([3, 2])
    by_blank, by_label = occupancies(blank, label, num_frames, num_labels)
    # Each frame is left exactly once, and each label is emitted exactly once.
    torch.testing.assert_close(by_blank.sum(2), (torch.arange(5) < num_frames[:, None]).double())
    torch.testing.assert_close(by_label.sum(1), (torch.arange(3) < num_labels[:, None]).double())
