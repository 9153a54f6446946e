"""Predictor, joiner, and greedy search over whole batches."""

import pytest
import torch
from torch import Tensor

from onebest_training.config import BlockConfig, EncoderConfig, ModelConfig
from onebest_training.decode import ctc_greedy, transducer_greedy
from onebest_training.transducer import BLANK, Transducer

VOCABULARY = 7


def make_model(context_size: int = 2, seed: int = 0) -> Transducer:
    torch.manual_seed(seed)
    encoder = EncoderConfig(16, 2, 60, (BlockConfig(1, 24),))
    model = Transducer(ModelConfig(encoder, VOCABULARY, context_size, 8, 12)).eval()
    model.joiner.out.weight.data *= 8  # so that the best label changes from frame to frame
    return model


def context_before(labels: list[int], count: int, context_size: int) -> list[int]:
    """The last labels before label ``count``, behind -1, ..., -1, blank."""
    history = [-1] * (context_size - 1) + [BLANK] + labels[:count]
    return history[-context_size:]


@pytest.mark.parametrize("context_size", [1, 2, 3])
def test_contexts_are_the_last_labels(context_size: int) -> None:
    labels = [[3, 1, 5, 2], [6, 6, 1, 4]]
    found = make_model(context_size).predictor.contexts(torch.tensor(labels))
    expected = [[context_before(row, count, context_size) for count in range(5)] for row in labels]
    assert found.tolist() == expected


@pytest.mark.parametrize("context_size", [1, 2, 3])
@torch.no_grad()
def test_all_positions_at_once_equal_one_after_another(context_size: int) -> None:
    model, labels = make_model(context_size), [3, 1, 5, 2]
    at_once = model.predictor(model.predictor.contexts(torch.tensor([labels])))
    assert at_once.shape == (1, 5, 12)
    for count in range(5):
        context = torch.tensor(context_before(labels, count, context_size))
        torch.testing.assert_close(model.predictor(context), at_once[0, count])


@torch.no_grad()
def test_no_label_is_an_embedding_of_zeros() -> None:
    predictor = make_model().predictor
    spoilt = predictor(torch.tensor([[-1, 4]]))
    kept = predictor(torch.tensor([[0, 4]]))
    predictor.embedding.weight[0] = 0
    torch.testing.assert_close(predictor(torch.tensor([[0, 4]])), spoilt)
    assert not torch.allclose(spoilt, kept)


@torch.no_grad()
def brute_force_greedy(model: Transducer, encoded: Tensor) -> list[tuple[int, int]]:
    """Greedy search of one utterance [T, D], a frame at a time, at most one label a frame, with its frame."""
    labels: list[int] = []
    timed: list[tuple[int, int]] = []
    for index, frame in enumerate(encoded):
        context = torch.tensor([context_before(labels, len(labels), model.config.context_size)])
        joined = torch.tanh(model.projection(frame) + model.predictor(context)[0])
        best = int(model.joiner.out(joined).argmax())
        if best != BLANK:
            labels.append(best)
            timed.append((best, index))
    return timed


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_greedy_search_of_a_batch(seed: int) -> None:
    model, encoded, lengths = make_model(seed=seed), torch.randn(3, 20, 16), torch.tensor([20, 13, 1])
    found = transducer_greedy(model, encoded, lengths)
    expected = [brute_force_greedy(model, row[:n]) for row, n in zip(encoded, lengths.tolist(), strict=True)]
    assert found == expected
    assert max(map(len, found)) > 3


def test_ctc_merges_what_repeats_and_drops_blanks() -> None:
    paths = [[0, 3, 3, 0, 3, 2, 2, 0], [5, 5, 0, 0, 1, 1, 4, 4]]
    logits = torch.nn.functional.one_hot(torch.tensor(paths), VOCABULARY).float()
    assert ctc_greedy(logits, torch.tensor([8, 5])) == [[3, 3, 2], [5, 1]]
