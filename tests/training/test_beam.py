"""Modified beam search against an enumeration of all paths, and its predictors and language model."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from onebest.errors import ConfigError
from onebest_training.beam import SearchOptions, beam_search
from onebest_training.config import BlockConfig, EncoderConfig, ModelConfig
from onebest_training.decode import transducer_greedy
from onebest_training.language_model import LanguageModel, LstmConfig, LstmLanguageModel
from onebest_training.transducer import BLANK, Transducer

VOCABULARY = 4


def make_model(predictor: str = "stateless", seed: int = 0, vocabulary: int = VOCABULARY) -> Transducer:
    torch.manual_seed(seed)
    encoder = EncoderConfig(16, 2, 60, (BlockConfig(1, 24),))
    model = Transducer(ModelConfig(encoder, vocabulary, 2, 8, 12, predictor)).eval()
    model.joiner.out.weight.data *= 8
    return model


def make_language_model(vocabulary: int = VOCABULARY) -> LanguageModel:
    torch.manual_seed(7)
    model = LstmLanguageModel(LstmConfig(vocabulary, 8, 2)).eval()
    model.embedding.weight.data *= 8
    return model


@torch.no_grad()
def enumerate_paths(
    model: Transducer, projected: torch.Tensor, weight: float, language_model: LanguageModel
) -> dict[tuple[int, ...], float]:
    """The log-probability of every label sequence: the sum over all ways to emit at most one a frame."""
    totals: dict[tuple[int, ...], list[float]] = {}
    for choices in product(range(VOCABULARY), repeat=len(projected)):
        labels: list[int] = []
        score = 0.0
        for frame, label in zip(projected, choices, strict=True):
            predicted = model.predictor(model.predictor.contexts(torch.tensor([labels], dtype=torch.int64)))
            log_probs = model.joiner(frame, predicted[0, -1]).log_softmax(0)
            score += float(log_probs[label])
            if label != BLANK:
                share = log_probs + weight * language_model.log_probs((*labels, label))[-1]
                score += float(share[label] - log_probs[label])
                score += float(log_probs[BLANK + 1 :].logsumexp(0) - share[BLANK + 1 :].logsumexp(0))
                labels.append(label)
        totals.setdefault(tuple(labels), []).append(score)
    return {labels: float(torch.tensor(scores).logsumexp(0)) for labels, scores in totals.items()}


@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_a_wide_beam_finds_every_sequence_with_its_probability(predictor: str, weight: float) -> None:
    model, language_model = make_model(predictor), make_language_model()
    projected = torch.randn(1, 3, 12)
    found = beam_search(model, projected, torch.tensor([3]), SearchOptions(400, weight), language_model)[0]
    expected = enumerate_paths(model, projected[0], weight, language_model)
    assert {h.labels for h in found} == expected.keys()
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.labels], abs=1e-4)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert sum(math.exp(h.score) for h in found) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
@torch.no_grad()
def test_a_beam_of_one_is_greedy_search(predictor: str) -> None:
    model, encoded, lengths = (
        make_model(predictor, vocabulary=7),
        torch.randn(3, 20, 16),
        torch.tensor([20, 13, 1]),
    )
    greedy = transducer_greedy(model, encoded, lengths)
    found = beam_search(model, model.projection(encoded), lengths, SearchOptions(1))
    assert [list(zip(h.labels, h.frames, strict=True)) for (h,) in found] == greedy
    assert max(map(len, greedy)) > 3


@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
def test_an_utterance_is_searched_as_if_alone(predictor: str) -> None:
    model, language_model = make_model(predictor, vocabulary=7), make_language_model(7)
    projected, lengths = torch.randn(3, 20, 12), torch.tensor([9, 20, 1])
    options = SearchOptions(4, 0.3)
    together = beam_search(model, projected, lengths, options, language_model)
    for row, length in enumerate(lengths.tolist()):
        alone = beam_search(
            model, projected[row : row + 1, :length], lengths[row : row + 1], options, language_model
        )
        assert [h[:2] for h in alone[0]] == [h[:2] for h in together[row]]
        assert [h.score for h in alone[0]] == pytest.approx([h.score for h in together[row]], abs=1e-4)
        assert len(together[row]) == 4
        assert all(
            h.frames == tuple(sorted(set(h.frames))) and h.frames[-1:] < (length,) for h in together[row]
        )


def test_a_beam_finds_what_greedy_search_misses() -> None:
    better = 0
    for seed in range(10):
        model = make_model(seed=seed, vocabulary=7)
        projected, lengths = torch.randn(1, 12, 12), torch.tensor([12])
        one, many = (beam_search(model, projected, lengths, SearchOptions(n))[0][0].score for n in (1, 8))
        assert many >= one - 1e-6
        better += many > one + 1e-3
    assert better > 3


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="a beam above 0"):
        SearchOptions(0)
    with pytest.raises(ConfigError, match="language_model_weight of 0 or more"):
        SearchOptions(1, -0.1)


@torch.no_grad()
def test_an_lstm_predictor_goes_step_by_step_as_over_the_whole() -> None:
    predictor, labels = make_model("lstm", vocabulary=7).predictor, torch.tensor([[3, 1, 5], [6, 6, 2]])
    whole = predictor(predictor.contexts(labels))
    assert whole.shape == (2, 4, 12)
    state = predictor.initial_state(2)
    for count in range(4):
        torch.testing.assert_close(predictor.read(state), whole[:, count])
        state = predictor.advance(state, labels[:, min(count, 2)])
