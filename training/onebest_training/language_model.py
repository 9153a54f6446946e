"""Language models over the recogniser's own tokens: an LSTM, and one that sees so many labels and no more.

Either gives log P(label | labels before) with 0 for the blank, which is no label, so that it can be added to
a transducer's log-probabilities as it is. Either serves shallow fusion while targets are made; the second can
also go into a model that is exported: see ``fusion``. A sentence begins and ends with ``<sos/eos>``.

Axis legend: B sentences or hypotheses, U labels, L layers, W width, V vocabulary, K labels of context,
N contexts, H hidden width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onebest.errors import ConfigError, ModelError
from onebest_training.checkpoint import read, write
from onebest_training.strict import from_dict, require, to_dict
from onebest_training.transducer import BLANK
from onebest_training.vocabulary import TextEncoder

FORMAT = 1
SENTENCE_EDGE = 1


@dataclass(frozen=True)
class LstmConfig:
    """Sizes of an ``LstmLanguageModel``.

    Attributes:
        vocabulary_size: V.
        width: of the embedding and of each layer.
        layers: how many.
        dropout: probability of dropping a channel between layers, in training.
    """

    vocabulary_size: int
    width: int = 512
    layers: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require(self.vocabulary_size > 3, "a vocabulary_size above 3: blank, end and unknown come first")
        require(min(self.width, self.layers) > 0, "a width and layers above 0")
        require(0 <= self.dropout < 1, "dropout from 0 to 1")


@dataclass(frozen=True)
class ContextConfig:
    """Sizes of a ``ContextLanguageModel``.

    Attributes:
        vocabulary_size: V.
        context_size: labels that it sees, K.
        width: of the embedding.
        hidden: widths of the two layers behind it.
    """

    vocabulary_size: int
    context_size: int = 10
    width: int = 128
    hidden: tuple[int, int] = (768, 512)

    def __post_init__(self) -> None:
        require(self.vocabulary_size > 3, "a vocabulary_size above 3: blank, end and unknown come first")
        require(min(self.context_size, self.width, *self.hidden) > 0, "sizes above 0")


class LanguageModel(nn.Module):
    """What search and training ask of a language model.

    A state is a tensor whose first axis is the hypotheses'.
    """

    def __init__(self, config: LstmConfig | ContextConfig):
        super().__init__()
        self.config = config
        #: Hash of the file it was read from, empty for a fresh one.
        self.digest = ""

    def forward(self, labels: Tensor) -> Tensor:
        """Return log P of the label behind each of labels [B, U], [B, U, V]; the blank's is 0."""
        raise NotImplementedError

    def initial_state(self, count: int) -> Tensor:
        """Return the state of ``count`` sentences without labels."""
        raise NotImplementedError

    def advance(self, state: Tensor, labels: Tensor) -> Tensor:
        """Return the state after one more label each, [B]."""
        raise NotImplementedError

    def read(self, state: Tensor) -> Tensor:
        """Return log P of the next label in a state, [B, V]; the blank's is 0."""
        raise NotImplementedError

    @torch.inference_mode()
    def log_probs(self, labels: tuple[int, ...]) -> Tensor:
        """Return log P(. | labels before) at each of labels as the beginning of a sentence, [U, V]."""
        device = next(self.parameters()).device
        found: Tensor = self(torch.tensor([[SENTENCE_EDGE, *labels[:-1]]], device=device))[0, : len(labels)]
        return found

    def score(self, labels: tuple[int, ...]) -> float:
        """Return log P of labels as the beginning of a sentence."""
        found = self.log_probs(labels)
        places = torch.tensor(labels, dtype=torch.int64, device=found.device)
        return float(found.gather(1, places[:, None]).double().sum())


class LstmLanguageModel(LanguageModel):
    """Embedding, LSTM, output tied to the embedding; it remembers a sentence whole."""

    config: LstmConfig

    def __init__(self, config: LstmConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.lstm = nn.LSTM(config.width, config.width, config.layers, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)

    def forward(self, labels: Tensor) -> Tensor:
        """Return log P of the label behind each of labels [B, U], [B, U, V]; the blank's is 0."""
        x = functional.dropout(self.embedding(labels), self.config.dropout, self.training)
        x = functional.dropout(self.lstm(x)[0], self.config.dropout, self.training)
        return self._log_probs(x)

    def initial_state(self, count: int) -> Tensor:
        """Return the state of ``count`` sentences without labels, [B, 2, L, W]."""
        zeros = self.bias.new_zeros(count, 2, self.config.layers, self.config.width)
        return self.advance(zeros, zeros.new_full((count,), SENTENCE_EDGE, dtype=torch.int64))

    def advance(self, state: Tensor, labels: Tensor) -> Tensor:
        """Return the state [B, 2, L, W] after one more label each, [B]."""
        hidden, cell = (part.transpose(0, 1).contiguous() for part in state.unbind(1))
        _, after = self.lstm(self.embedding(labels)[:, None], (hidden, cell))
        return torch.stack(after).permute(2, 0, 1, 3)

    def read(self, state: Tensor) -> Tensor:
        """Return log P of the next label in a state [B, 2, L, W], [B, V]; the blank's is 0."""
        return self._log_probs(state[:, 0, -1])

    def _log_probs(self, x: Tensor) -> Tensor:
        return _without_blank(functional.linear(x, self.embedding.weight, self.bias))


class ContextLanguageModel(LanguageModel):
    """Embeddings of the last labels side by side, two layers with GELU, a projection to the vocabulary.

    Bengio et al., "A Neural Probabilistic Language Model", without the direct connections. Before the first
    label of a sentence stand blanks.
    """

    config: ContextConfig

    def __init__(self, config: ContextConfig):
        super().__init__(config)
        first, second = config.hidden
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.first = nn.Linear(config.context_size * config.width, first)
        self.second = nn.Linear(first, second)
        self.out = nn.Linear(second, config.vocabulary_size)

    def forward(self, labels: Tensor) -> Tensor:
        """Return log P of the label behind each of labels [B, U], [B, U, V]; the blank's is 0."""
        known = labels.masked_fill(labels == SENTENCE_EDGE, BLANK)
        before = functional.pad(known, (self.config.context_size - 1, 0), value=BLANK)
        return self.read(before.unfold(1, self.config.context_size, 1))

    def initial_state(self, count: int) -> Tensor:
        """Return the contexts of ``count`` sentences without labels, [B, K]."""
        size = (count, self.config.context_size)
        return torch.full(size, BLANK, device=self.out.bias.device)

    def advance(self, state: Tensor, labels: Tensor) -> Tensor:
        """Return the contexts [B, K] after one more label each, [B]."""
        return torch.cat((state[:, 1:], labels[:, None]), 1)

    def read(self, state: Tensor) -> Tensor:
        """Return log P of the label behind contexts [..., K], [..., V]; a negative label is a blank."""
        return _without_blank(self.logits(state))

    def logits(self, contexts: Tensor) -> Tensor:
        """Return what the softmax over the labels makes ``read`` of, [..., V]; the blank's means nothing."""
        x = self._first(contexts.clamp(min=BLANK).flatten(0, -2))
        x = functional.gelu(self.second(functional.gelu(x)))
        logits: Tensor = self.out(x)
        return logits.reshape(*contexts.shape[:-1], self.out.out_features)

    def _first(self, contexts: Tensor) -> Tensor:
        """Return the first layer's output for contexts [N, K], [N, H].

        It is a sum over places, and a place has V possible values. Where there are more contexts than that it
        costs less to compute all of these and to look them up.
        """
        size, width = self.config.vocabulary_size, self.config.width
        if len(contexts) <= size:
            found: Tensor = self.first(self.embedding(contexts).flatten(1))
            return found
        weight = self.first.weight.view(-1, self.config.context_size, width)
        values = torch.einsum("vd,hkd->kvh", self.embedding.weight, weight).flatten(0, 1)
        places = contexts + size * torch.arange(self.config.context_size, device=contexts.device)
        return functional.embedding_bag(places, values, mode="sum") + self.first.bias


def _without_blank(logits: Tensor) -> Tensor:
    log_probs = logits.float()[..., BLANK + 1 :].log_softmax(-1)
    return functional.pad(log_probs, (BLANK + 1, 0))


def make_language_model(config: LstmConfig | ContextConfig) -> LanguageModel:
    """Return an untrained model of a configuration's kind."""
    return LstmLanguageModel(config) if isinstance(config, LstmConfig) else ContextLanguageModel(config)


def fuse(logits: Tensor, weighted: Tensor) -> Tensor:
    """Add to the labels' logits [..., V] a language model's log-probabilities [..., V], times its weight.

    The labels keep the mass that they had together, and the blank its own.
    """
    before = logits[..., BLANK + 1 :]
    labels = before + weighted[..., BLANK + 1 :]
    kept = _log_sum_exp(before) - _log_sum_exp(labels)
    return torch.cat((logits[..., : BLANK + 1], labels + kept), -1)


def _log_sum_exp(x: Tensor) -> Tensor:
    """Return ``torch.logsumexp`` over the last axis.

    Of the ways to write it this one is quick in onnxruntime, and gives a row the same bits wherever it stands
    among others: sums and logarithms there depend on where in memory a row begins and how many there are.
    """
    return x.amax(-1, keepdim=True) - x.log_softmax(-1).amax(-1, keepdim=True)


def save_language_model(model: LanguageModel, tokens: TextEncoder, path: Path) -> None:
    """Write a model, its weights in half precision, with the hash of its tokens.

    Raises:
        DataError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "config": to_dict(model.config),
        "tokens": tokens.digest,
        "weights": {name: weight.half() for name, weight in model.state_dict().items()},
    }
    write(content, path)


def _read_config(values: dict[str, Any]) -> LstmConfig | ContextConfig:
    if "context_size" in values:
        return from_dict(ContextConfig, values, "config")
    return from_dict(LstmConfig, values, "config")


def load_language_model(path: Path, tokens: TextEncoder) -> LanguageModel:
    """Read a model, ready for use.

    Raises:
        ModelError: the file cannot be read as a language model.
        ConfigError: it is of another vocabulary.
    """
    content = read(path, "a language model", "Make one with: onebest train-lm")
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} instead of {FORMAT}")
        model = make_language_model(_read_config(content["config"]))
        model.load_state_dict(content["weights"])
        digest = content["tokens"]
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, ConfigError) as error:
        raise ModelError(f"{path}: no language model ({error}). Make one with: onebest train-lm") from error
    if digest != tokens.digest:
        raise ConfigError(
            f"{path}: made for another vocabulary ({digest[:12]}) than this one ({tokens.digest[:12]}). "
            "Train one for it with: onebest train-lm"
        )
    model.digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return model.eval()
