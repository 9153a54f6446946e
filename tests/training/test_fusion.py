"""A language model inside a transducer: the formula, what stays as it was, and what cannot be put there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import make_model
from torch import Tensor

from onebest.errors import ConfigError
from onebest_training.beam import SearchOptions, beam_search
from onebest_training.fusion import FusionWeights, describe, with_language_model
from onebest_training.language_model import (
    ContextConfig,
    ContextLanguageModel,
    LstmConfig,
    LstmLanguageModel,
)
from onebest_training.transducer import BLANK, PREDICTORS, Transducer

CONTEXT = 5


@pytest.fixture
def model() -> Transducer:
    return make_model().eval()


def make_language_model(model: Transducer) -> ContextLanguageModel:
    torch.manual_seed(5)
    config = ContextConfig(model.config.vocabulary_size, CONTEXT, 8, (12, 10))
    found = ContextLanguageModel(config).eval()
    found.out.weight.data *= 20
    return found


def frames(model: Transducer, count: int = 6) -> Tensor:
    return torch.randn(count, model.config.joiner_width, generator=torch.Generator().manual_seed(1))


def contexts(model: Transducer, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    found = torch.randint(1, model.config.vocabulary_size, (count, CONTEXT), generator=generator)
    found[0] = torch.tensor([-1] * (CONTEXT - 1) + [BLANK])
    return found


@torch.no_grad()
def test_the_logits_are_those_of_the_formula(model: Transducer) -> None:
    language_model, weights = make_language_model(model), FusionWeights(0.7, 0.3)
    fused = with_language_model(model, language_model, weights)
    encoded, context = frames(model), contexts(model)
    found = fused.joiner(encoded, fused.predictor(context)).log_softmax(-1)

    predicted = model.predictor(context[:, -model.config.context_size :])
    joined = model.joiner(encoded, predicted).log_softmax(-1)
    silent = model.joiner(torch.zeros_like(encoded), predicted)[:, 1:].log_softmax(-1)
    language = language_model.read(context)[:, 1:]
    labels = (joined[:, 1:].exp() * language.exp() ** 0.7 / silent.exp() ** 0.3).double()
    mass = joined[:, 1:].double().exp().sum(1, keepdim=True)
    expected = torch.cat((joined[:, :1].double(), (labels / labels.sum(1, keepdim=True) * mass).log()), 1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, joined)
    torch.testing.assert_close(found[:, BLANK], joined[:, BLANK])


@torch.no_grad()
def test_without_weight_nothing_changes(model: Transducer) -> None:
    fused = with_language_model(model, make_language_model(model), FusionWeights(0, 0))
    encoded, context = frames(model), contexts(model)
    before = model.joiner(encoded, model.predictor(context[:, -model.config.context_size :]))
    torch.testing.assert_close(fused.joiner(encoded, fused.predictor(context)), before)


@torch.no_grad()
def test_search_takes_it_like_any_other_model(model: Transducer) -> None:
    """Steps of a state equal contexts of whole label sequences, and beam search goes on it."""
    fused = with_language_model(model, make_language_model(model), FusionWeights())
    assert fused.config.context_size == fused.predictor.context_size == CONTEXT
    labels = torch.tensor([[3, 2, 4, 4, 1, 2, 3]])
    whole, state = fused.predictor(fused.predictor.contexts(labels)), fused.predictor.initial_state(1)
    for place in range(8):
        torch.testing.assert_close(fused.predictor.read(state)[0], whole[0, place])
        state = fused.predictor.advance(state, labels[:, min(place, 6)])
    encoded = frames(model, 9)[None]
    found = beam_search(fused, encoded, torch.tensor([9]), SearchOptions(4))[0]
    assert found[0].score >= found[-1].score


@torch.no_grad()
def test_the_original_stays_as_it_was(model: Transducer) -> None:
    fused = with_language_model(model, make_language_model(model), FusionWeights())
    fused.joiner.out.bias[BLANK] -= 3
    encoded, context = frames(model), contexts(model)[:, -model.config.context_size :]
    logits = model.joiner(encoded, model.predictor(context))
    assert logits.shape == (6, model.config.vocabulary_size)
    torch.testing.assert_close(logits, make_model().eval().joiner(encoded, model.predictor(context)))


def test_what_cannot_go_in_is_refused(model: Transducer) -> None:
    size, weights = model.config.vocabulary_size, FusionWeights()
    with pytest.raises(ConfigError, match="is an LSTM"):
        with_language_model(model, LstmLanguageModel(LstmConfig(size, 8, 1)), weights)
    with pytest.raises(ConfigError, match="another vocabulary"):
        with_language_model(model, ContextLanguageModel(ContextConfig(size + 1)), weights)
    fused = with_language_model(model, make_language_model(model), weights)
    with pytest.raises(ConfigError, match="goes once into"):
        with_language_model(fused, make_language_model(model), weights)
    model.predictor = PREDICTORS["lstm"](replace(model.config, predictor="lstm"))
    with pytest.raises(ConfigError, match="stateless predictor"):
        with_language_model(model, make_language_model(model), weights)
    with pytest.raises(ConfigError, match="weights of 0 or more"):
        FusionWeights(-0.1)


def test_a_description_is_for_a_card(model: Transducer) -> None:
    found = describe(make_language_model(model), FusionWeights(0.5, 0.25))
    assert (found["context_size"], found["language_model"], found["internal"]) == (CONTEXT, 0.5, 0.25)
