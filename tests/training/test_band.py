"""The banded loss against the whole lattice, the band against the path it follows, and the CTC alignment."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebest.errors import DataError
from onebest_training.band import (
    band_labels,
    band_nodes,
    band_starts,
    banded_planes,
    banded_transducer_loss,
    ctc_viterbi,
)
from onebest_training.lattice import IMPOSSIBLE, transducer_loss, transducer_loss_from_planes


def in_band(logits: Tensor, starts: Tensor, width: int, label_lengths: Tensor) -> Tensor:
    """The logits [B, T, S, V] of the band's nodes, from those of the whole lattice [B, T, U+1, V]."""
    nodes = band_nodes(starts, width, label_lengths)
    return logits.gather(2, nodes[..., None].expand(-1, -1, -1, logits.shape[3]))


def random_batch(num_frames: list[int], num_labels: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shape = len(num_frames), max(num_frames), max(num_labels) + 1, 6
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(1, 6, (shape[0], shape[2] - 1))
    return logits, labels, torch.tensor(num_frames), torch.tensor(num_labels)


@st.composite
def paths(draw: st.DrawFn) -> tuple[list[list[int]], list[int], int]:
    """Emission frames of a few utterances (bursts included), numbers of frames, and a width that suffices."""
    utterances, num_frames = [], []
    for _ in range(draw(st.integers(1, 3))):
        frames = draw(st.integers(1, 12))
        utterances.append(sorted(draw(st.lists(st.integers(0, frames - 1), max_size=15))))
        num_frames.append(frames)
    least = max(-(-len(path) // frames) + 1 for path, frames in zip(utterances, num_frames, strict=True))
    return utterances, num_frames, draw(st.integers(least, least + 6))


def as_tensors(utterances: list[list[int]], num_frames: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    num_labels = [len(path) for path in utterances]
    padded = [path + [0] * (max(num_labels) - len(path)) for path in utterances]
    emission_frames = torch.tensor(padded, dtype=torch.long).view(len(padded), max(num_labels))
    return emission_frames, torch.tensor(num_frames), torch.tensor(num_labels)


@settings(max_examples=150, deadline=None)
@given(paths())
def test_the_band_is_legal_and_holds_the_path(drawn: tuple[list[list[int]], list[int], int]) -> None:
    utterances, num_frames, width = drawn
    starts = band_starts(*as_tensors(utterances, num_frames), width)
    assert starts.shape == (len(utterances), max(num_frames))
    for row, path, frames in zip(starts.tolist(), utterances, num_frames, strict=True):
        assert row[0] == 0
        assert all(0 <= after - before <= width - 1 for before, after in pairwise(row))
        assert row[frames - 1] <= len(path) <= row[frames - 1] + width - 1
        assert row[frames - 1 :] == [row[frames - 1]] * (max(num_frames) - frames + 1)
        if max((path.count(frame) for frame in path), default=0) <= width - 1:
            for t in range(frames):
                assert row[t] <= sum(frame < t for frame in path)
                assert sum(frame <= t for frame in path) <= row[t] + width - 1


@settings(max_examples=50, deadline=None)
@given(paths())
def test_a_band_always_has_a_path(drawn: tuple[list[list[int]], list[int], int]) -> None:
    utterances, num_frames, width = drawn
    emission_frames, frame_lengths, label_lengths = as_tensors(utterances, num_frames)
    starts = band_starts(emission_frames, frame_lengths, label_lengths, width)
    band = torch.zeros(*starts.shape, width)
    planes = banded_planes(band, band, starts, emission_frames.shape[1])
    assert transducer_loss_from_planes(*planes, frame_lengths, label_lengths).isfinite().all()


def test_a_burst_is_put_off_to_the_next_frames() -> None:
    path = torch.tensor([[2, 2, 2, 2, 2, 7]])
    starts = band_starts(path, torch.tensor([9]), torch.tensor([6]), 3)
    assert starts.tolist() == [[0, 0, 0, 2, 3, 4, 4, 4, 4]]


def test_starts_cover_padded_frames() -> None:
    starts = band_starts(torch.tensor([[1, 2]]), torch.tensor([3]), torch.tensor([2]), 2, num_frames=5)
    assert starts.tolist() == [[0, 0, 1, 1, 1]]


def test_a_band_over_everything_is_the_whole_lattice() -> None:
    logits, labels, frame_lengths, label_lengths = random_batch([7, 5, 4], [4, 2, 0])
    starts = torch.zeros(3, 7, dtype=torch.long)
    options = {"fastemit": 0.1, "delay_penalty": 0.05}
    banded = banded_transducer_loss(logits, labels, starts, frame_lengths, label_lengths, **options)
    whole = transducer_loss(logits, labels, frame_lengths, label_lengths, **options)
    torch.testing.assert_close(banded, whole)
    torch.testing.assert_close(
        torch.autograd.grad(banded.sum(), logits), torch.autograd.grad(whole.sum(), logits)
    )


def test_a_narrow_band_is_the_lattice_with_the_rest_ruled_out() -> None:
    logits, labels, frame_lengths, label_lengths = random_batch([8, 6, 5], [5, 3, 0])
    path = torch.tensor([[0, 2, 2, 4, 7], [1, 1, 5, 0, 0], [0, 0, 0, 0, 0]])
    starts = band_starts(path, frame_lengths, label_lengths, 3)
    band = in_band(logits, starts, 3, label_lengths)
    loss = banded_transducer_loss(band, labels, starts, frame_lengths, label_lengths)
    log_probs = logits.log_softmax(-1)
    node = torch.arange(6)
    outside = (node < starts[:, :, None]) | (node >= starts[:, :, None] + 3)
    next_label = labels[:, None, :, None].expand(-1, 8, -1, -1)
    expected = transducer_loss_from_planes(
        log_probs[..., 0].masked_fill(outside, IMPOSSIBLE),
        log_probs[:, :, :-1].gather(3, next_label)[..., 0].masked_fill(outside[:, :, :-1], IMPOSSIBLE),
        frame_lengths,
        label_lengths,
    )
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0])
    assert (grad[outside] == 0).all()
    assert (loss >= transducer_loss(logits, labels, frame_lengths, label_lengths)).all()


def test_planes_land_at_their_nodes_and_gradients_come_back() -> None:
    band = torch.arange(1.0, 7).view(1, 3, 2).requires_grad_()
    blank, label = banded_planes(band, 10 * band, torch.tensor([[0, 1, 2]]), 2)
    no = torch.tensor(IMPOSSIBLE).item()
    assert blank.tolist() == [[[1, 2, no], [no, 3, 4], [no, no, 5]]]
    assert label.tolist() == [[[10, 20], [no, 30], [no, no]]]
    (grad,) = torch.autograd.grad(blank.sum() + label.sum(), band)
    assert grad.tolist() == [[[11, 11], [11, 1], [1, 0]]]


def test_labels_of_the_band() -> None:
    labels, left = band_labels(
        torch.tensor([[5, 6, 7], [8, 9, 9]]), torch.tensor([[0, 2], [0, 0]]), 2, torch.tensor([3, 1])
    )
    assert labels.tolist() == [[[5, 6], [7, 0]], [[8, 0], [8, 0]]]
    assert left.tolist() == [[[True, True], [True, False]], [[True, False], [True, False]]]


def best_ctc_score(log_probs: Tensor, labels: list[int]) -> tuple[float, list[int]]:
    """The best of all V^T frame labellings that collapse to the labels, and where each label begins."""
    best = (-torch.inf, [])
    for tokens in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        starts = [t for t, token in enumerate(tokens) if token and (t == 0 or tokens[t - 1] != token)]
        if [tokens[t] for t in starts] == labels:
            best = max(best, (float(log_probs[range(len(tokens)), tokens].sum()), starts))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_ctc_viterbi_finds_the_best_alignment(seed: int) -> None:
    torch.manual_seed(seed)
    log_probs = (2 * torch.randn(4, 6, 4)).log_softmax(-1)
    labels = torch.tensor([[1, 1, 2], [3, 2, 0], [2, 0, 0], [0, 0, 0]])
    num_frames, num_labels = torch.tensor([6, 4, 1, 5]), torch.tensor([3, 2, 1, 0])
    found = ctc_viterbi(log_probs, labels, num_frames, num_labels)
    for row, log_prob, label, frames, count in zip(
        found.tolist(), log_probs, labels.tolist(), num_frames.tolist(), num_labels.tolist(), strict=True
    ):
        _, starts = best_ctc_score(log_prob[:frames], label[:count])
        assert row == starts + [0] * (3 - count)


def test_labels_that_do_not_fit_are_spread_evenly() -> None:
    log_probs = torch.zeros(3, 8, 3)
    log_probs[2, :, 2] = -torch.inf
    labels = torch.tensor([[1, 1, 1, 1], [1, 2, 1, 2], [1, 2, 0, 0]])
    found = ctc_viterbi(log_probs, labels, torch.tensor([6, 2, 8]), torch.tensor([4, 4, 2]))
    assert found.tolist() == [[0, 2, 3, 5], [0, 0, 1, 1], [2, 6, 0, 0]]


def test_a_ctc_path_makes_a_band() -> None:
    torch.manual_seed(0)
    logits, labels, frame_lengths, label_lengths = random_batch([12, 9], [4, 3])
    path = ctc_viterbi(torch.randn(2, 12, 6), labels, frame_lengths, label_lengths)
    starts = band_starts(path, frame_lengths, label_lengths, 3)
    loss = banded_transducer_loss(
        in_band(logits, starts, 3, label_lengths), labels, starts, frame_lengths, label_lengths
    )
    whole = transducer_loss(logits, labels, frame_lengths, label_lengths)
    assert (loss >= whole).all()
    assert loss.isfinite().all()


def test_too_narrow_a_band_is_refused() -> None:
    path, frames = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([2])
    with pytest.raises(DataError, match="at least 4 nodes, got a width of 3"):
        band_starts(path, frames, torch.tensor([5]), 3)
    assert band_starts(path, frames, torch.tensor([5]), 4).tolist() == [[0, 2]]
    with pytest.raises(DataError, match="at least 1 nodes"):
        band_starts(path, frames, torch.tensor([0]), 0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    one, starts = torch.tensor([1]), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(DataError, match=r"starts \[B, T\]"):
        banded_planes(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), starts[:, :3], 3)
    with pytest.raises(DataError, match="starts from 0 to 3, got 5 to 5"):
        banded_planes(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), starts + 5, 3)
    with pytest.raises(DataError, match=r"logits \[B, T, S, V\]"):
        banded_transducer_loss(torch.zeros(1, 4, 2), torch.tensor([[1]]), starts, one, one)
    with pytest.raises(DataError, match="other than blank"):
        banded_transducer_loss(torch.zeros(1, 4, 2, 3), torch.tensor([[0]]), starts, one, one)
    with pytest.raises(DataError, match=r"log_probs \[B, T, V\]"):
        ctc_viterbi(torch.zeros(4, 3), torch.tensor([[1]]), one, one)
    with pytest.raises(DataError, match="frame_lengths from 1 to 4"):
        ctc_viterbi(torch.zeros(1, 4, 3), torch.tensor([[1]]), one + 4, one)
