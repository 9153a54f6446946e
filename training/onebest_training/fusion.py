"""A language model inside a transducer, so that plain greedy search, ours or another program's, is led by it.

Of log P(label | no blank) the joiner's own view of language, which it learnt from the texts of speech, is
taken off, and that of a model that has read far more is put in its place:

    s(label) = joiner(frame, labels before) + weight * log P_lm(label | labels before)
               - internal_weight * log P_ilm(label | labels before)

What the joiner says without a frame, joiner(0, labels before), stands for P_ilm (Meng et al., "Internal
Language Model Estimation", arXiv 2011.01991, after Variani et al., arXiv 2003.07705). The labels keep the
mass that they had together, so that whether there is one at all stays the transducer's to say, and so that
neither term need be normalised.

Both terms depend on labels alone. So the predictor computes them, and hands them to the joiner behind its own
output: in a bundle decoder and joiner are graphs like any other's, but wider where they meet.

Axis legend: J joiner width, V vocabulary, K labels of context.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from onebest.errors import ConfigError
from onebest_training.language_model import ContextLanguageModel, LanguageModel, fuse
from onebest_training.strict import require, to_dict
from onebest_training.transducer import Joiner, Predictor, StatelessPredictor, Transducer


@dataclass(frozen=True)
class FusionWeights:
    """How much a language model counts.

    Attributes:
        language_model: of log P_lm.
        internal: of the joiner's own log P_ilm, which is taken off.
    """

    language_model: float = 0.5
    internal: float = 0.4

    def __post_init__(self) -> None:
        require(min(self.language_model, self.internal) >= 0, "weights of 0 or more")


class FusedPredictor(StatelessPredictor):
    """A stateless predictor that also says what is to be added to the labels' logits."""

    def __init__(
        self, predictor: Predictor, joiner: Joiner, model: ContextLanguageModel, weights: FusionWeights
    ):
        super().__init__(max(predictor.context_size, model.config.context_size))
        self.predictor, self.joiner, self.model, self.weights = predictor, joiner, model, weights

    def forward(self, context: Tensor) -> Tensor:
        """Turn contexts [..., K] (a negative label is no label) into [..., J + V]."""
        predicted: Tensor = self.predictor(context[..., -self.predictor.context_size :])
        language = self.model.logits(context[..., -self.model.config.context_size :])
        internal = self.joiner(predicted.new_zeros(1), predicted)
        added = self.weights.language_model * language - self.weights.internal * internal
        return torch.cat((predicted, added), -1)


class FusedJoiner(Joiner):
    """A joiner that adds to the labels' logits what the predictor says; see ``fuse``."""

    def __init__(self, joiner: Joiner):
        nn.Module.__init__(self)
        self.out = joiner.out

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Turn [..., J] and [..., J + V], broadcastable, into logits [..., V]."""
        width = self.out.in_features
        return fuse(super().forward(encoded, predicted[..., :width]), predicted[..., width:])


def describe(language_model: LanguageModel, weights: FusionWeights) -> dict[str, Any]:
    """Return what a card says of a language model inside: its sizes, the weights, and its file's hash."""
    return {**to_dict(language_model.config), **to_dict(weights), "sha256": language_model.digest}


def with_language_model(
    model: Transducer, language_model: LanguageModel, weights: FusionWeights
) -> Transducer:
    """Return a copy of a transducer with a language model inside.

    Raises:
        ConfigError: it is not the kind that can be, or of another vocabulary.
    """
    if not isinstance(language_model, ContextLanguageModel):
        raise ConfigError(
            "the language model is an LSTM, which has no end to its memory. Train one with: onebest train-lm "
            "--context 10"
        )
    if not isinstance(model.predictor, Predictor):
        raise ConfigError("a language model goes once into a model with a stateless predictor.")
    if language_model.config.vocabulary_size != model.config.vocabulary_size:
        raise ConfigError("the language model is of another vocabulary. Train one with the model's tokens.")
    fused = copy.deepcopy(model)
    predictor = FusedPredictor(model.predictor, model.joiner, language_model, weights)
    fused.predictor, fused.joiner = predictor, FusedJoiner(fused.joiner)
    fused.config = replace(model.config, context_size=predictor.context_size)
    return fused.eval()
