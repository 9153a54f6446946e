"""Arguments that do not fit the transducer loss."""

import pytest
import torch
from torch import Tensor

from onebest.errors import DataError
from onebest_training.lattice import occupancies, transducer_loss, transducer_loss_from_planes, viterbi

GOOD = {
    "blank": torch.zeros(2, 4, 3),
    "label": torch.zeros(2, 4, 2),
    "frame_lengths": torch.tensor([4, 3]),
    "label_lengths": torch.tensor([2, 1]),
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": torch.zeros(2, 4, 3)}, r"label \[B, T, U\]"),
        ({"blank": torch.zeros(4, 3)}, r"blank \[B, T, U\+1\]"),
        ({"frame_lengths": torch.tensor([4, 0])}, "frame_lengths from 1 to 4"),
        ({"frame_lengths": torch.tensor([5, 1])}, "frame_lengths from 1 to 4"),
        ({"frame_lengths": torch.tensor([4.0, 1.0])}, "frame_lengths as 2 integers"),
        ({"label_lengths": torch.tensor([3, 1])}, "label_lengths from 0 to 2"),
        ({"label_lengths": torch.tensor([1])}, "label_lengths as 2 integers"),
    ],
)
def test_planes_that_do_not_fit_are_refused(wrong: dict[str, Tensor], message: str) -> None:
    for function in (transducer_loss_from_planes, viterbi, occupancies):
        with pytest.raises(DataError, match=message):
            function(**GOOD | wrong)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((1, 4, 2, 5), [[1, 2]], "one node more"),
        ((4, 3, 5), [[1, 2]], "one node more"),
        ((1, 4, 3, 5), [[1, 0]], r"other than blank \(0\), got \[0\]"),
        ((1, 4, 3, 5), [[1, 5]], r"labels from 0 to 4 .* got \[5\]"),
        ((1, 4, 3, 5), [[-1, 2]], r"got \[-1\]"),
    ],
)
def test_logits_that_do_not_fit_are_refused(
    shape: tuple[int, ...], labels: list[list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        transducer_loss(torch.zeros(shape), torch.tensor(labels), torch.tensor([4]), torch.tensor([2]))
