"""Language models over the recogniser's own tokens: an LSTM, and one that sees so many labels and no more.

Either gives log P(label | labels before) with 0 for the blank, which is no label, so that it can be added to
a transducer's log-probabilities as it is. Either serves shallow fusion while targets are made; the second can
also go into a model that is exported: see ``fusion``. A sentence begins and ends with ``<sos/eos>``.

Axis legend: B sentences or hypotheses, U labels, L layers, W width, V vocabulary, K labels of context,
N contexts, H hidden width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from onebest.errors import ConfigError, DataError, ModelError
from onebest_training.speech import writing
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


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        passes: over the sentences.
        batch_tokens: labels in a batch, with padding.
        learning_rate: at the start; it falls to 0 in a straight line.
        seed: of the weights, the order and the dropout.
        held_out: every so many-th sentence measures the model and is not trained on.
        join: up to so many sentences that follow one another become one, as they do in speech.
    """

    passes: int = 4
    batch_tokens: int = 4096
    learning_rate: float = 2e-3
    seed: int = 1
    held_out: int = 50
    join: int = 1

    def __post_init__(self) -> None:
        sizes = (self.passes, self.batch_tokens, self.join)
        require(min(sizes) > 0, "passes, batch_tokens and join above 0")
        require(self.learning_rate > 0 and self.held_out > 1, "a learning_rate above 0, held_out above 1")


def train_language_model(
    start: LstmConfig | ContextConfig | LanguageModel,
    sentences: Sequence[Sequence[int]],
    schedule: Schedule,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> tuple[LanguageModel, float]:
    """Train a model on sentences of token ids.

    Args:
        start: kind and sizes of a new one, or a model, which learns on.
        sentences: token ids of each; empty ones are passed over.
        schedule: how.
        progress: is told the step, how many there are, and the loss in nats a token.

    Returns:
        The model and its perplexity a token on the sentences held out.

    Raises:
        DataError: there are too few sentences to hold one out.
    """
    filled = [sentence for sentence in sentences if sentence]
    held_out, taught = (
        filled[:: schedule.held_out],
        [s for i, s in enumerate(filled) if i % schedule.held_out],
    )
    if not taught:
        raise DataError(f"expected at least two sentences with text, got {len(filled)}.")
    torch.manual_seed(schedule.seed)
    rng = np.random.default_rng(schedule.seed)
    model = (start if isinstance(start, LanguageModel) else make_language_model(start)).train()
    model.digest = ""  # no longer what a file has
    optimizer = torch.optim.AdamW(model.parameters(), schedule.learning_rate)
    passes = (_join(taught, schedule.join, rng) for _ in range(schedule.passes))
    batches = [batch for joined in passes for batch in _batches(joined, schedule.batch_tokens, rng)]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * (1 - step / len(batches))
        total, count = _loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total / count)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, len(batches), float(total.detach()) / count)
    return model.eval(), perplexity(model, held_out)


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


@torch.inference_mode()
def perplexity(model: LanguageModel, sentences: Sequence[Sequence[int]]) -> float:
    """Return the perplexity a token, the end of each sentence included."""
    measured = [_loss(model, [sentence]) for sentence in sentences]
    return math.exp(sum(float(total) for total, _ in measured) / sum(count for _, count in measured))


def _join(sentences: Sequence[Sequence[int]], most: int, rng: np.random.Generator) -> Sequence[Sequence[int]]:
    """Return sentences of which from one up to ``most`` that follow one another are joined."""
    if most == 1:
        return sentences
    joined, begin = [], 0
    while begin < len(sentences):
        end = begin + int(rng.integers(1, most + 1))
        joined.append(reduce(add, sentences[begin:end]))
        begin = end
    return joined


def _batches(
    sentences: Sequence[Sequence[int]], batch_tokens: int, rng: np.random.Generator
) -> Iterator[list[Sequence[int]]]:
    lengths = np.array([len(sentence) for sentence in sentences])
    batches: list[list[Sequence[int]]] = [[]]
    for index in np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths))):
        if batches[-1] and (lengths[index] + 1) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(sentences[index])
    for index in rng.permutation(len(batches)):
        yield batches[index]


def _loss(model: LanguageModel, sentences: Sequence[Sequence[int]]) -> tuple[Tensor, int]:
    """Return the sum of -log P of all labels and ends, and how many these are."""
    padded = torch.full((len(sentences), max(map(len, sentences)) + 2), BLANK)
    for row, sentence in zip(padded, sentences, strict=True):
        row[: len(sentence) + 2] = torch.tensor([SENTENCE_EDGE, *sentence, SENTENCE_EDGE])
    # Of the blank, which stands behind each sentence, the model says log P = 0, so it adds nothing.
    total = -model(padded[:, :-1]).gather(2, padded[:, 1:, None]).sum()
    return total, sum(len(sentence) + 1 for sentence in sentences)


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
    with writing(path):
        torch.save(content, path)


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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} instead of {FORMAT}")
        model = make_language_model(_read_config(content["config"]))
        model.load_state_dict(content["weights"])
        digest = content["tokens"]
    except Exception as error:  # whatever pickle and zip make of a damaged file
        raise ModelError(f"{path}: no language model ({error}). Make one with: onebest train-lm") from error
    if digest != tokens.digest:
        raise ConfigError(
            f"{path}: made for another vocabulary ({digest[:12]}) than this one ({tokens.digest[:12]}). "
            "Train one for it with: onebest train-lm"
        )
    model.digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return model.eval()
