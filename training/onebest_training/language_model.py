"""A language model over the recogniser's own tokens: an LSTM, for shallow fusion while targets are made.

It gives log P(label | labels before) with 0 for the blank, which is no label, so that it can be added to a
transducer's log-probabilities as it is. A sentence begins and ends with ``<sos/eos>``.

Axis legend: B sentences or hypotheses, U labels, L layers, W width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
class LanguageModelConfig:
    """Sizes.

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


class LanguageModel(nn.Module):
    """Embedding, LSTM, output tied to the embedding."""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.lstm = nn.LSTM(config.width, config.width, config.layers, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        #: Hash of the file it was read from, empty for a fresh one.
        self.digest = ""

    def forward(self, labels: Tensor) -> Tensor:
        """Return log P of the label behind each of labels [B, U], [B, U, V]; the blank's is 0."""
        x = functional.dropout(self.embedding(labels), self.config.dropout, self.training)
        x = functional.dropout(self.lstm(x)[0], self.config.dropout, self.training)
        return self._log_probs(x)

    def _log_probs(self, x: Tensor) -> Tensor:
        logits = functional.linear(x, self.embedding.weight, self.bias).float()
        log_probs = logits[..., BLANK + 1 :].log_softmax(-1)
        return functional.pad(log_probs, (BLANK + 1, 0))

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

    @torch.inference_mode()
    def log_probs(self, labels: tuple[int, ...]) -> Tensor:
        """Return log P(. | labels before) at each of labels as the beginning of a sentence, [U, V]."""
        before = torch.tensor([[SENTENCE_EDGE, *labels[:-1]]], device=self.bias.device)
        found: Tensor = self(before)[0, : len(labels)]
        return found

    def score(self, labels: tuple[int, ...]) -> float:
        """Return log P of labels as the beginning of a sentence."""
        places = torch.tensor(labels, dtype=torch.int64, device=self.bias.device)
        return float(self.log_probs(labels).gather(1, places[:, None]).double().sum())


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        passes: over the sentences.
        batch_tokens: labels in a batch, with padding.
        learning_rate: at the start; it falls to 0 in a straight line.
        seed: of the weights, the order and the dropout.
        held_out: every so many-th sentence measures the model and is not trained on.
    """

    passes: int = 4
    batch_tokens: int = 4096
    learning_rate: float = 2e-3
    seed: int = 1
    held_out: int = 50

    def __post_init__(self) -> None:
        require(min(self.passes, self.batch_tokens) > 0, "passes and batch_tokens above 0")
        require(self.learning_rate > 0 and self.held_out > 1, "a learning_rate above 0, held_out above 1")


def train_language_model(
    config: LanguageModelConfig,
    sentences: list[list[int]],
    schedule: Schedule,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> tuple[LanguageModel, float]:
    """Train a model on sentences of token ids.

    Args:
        config: sizes.
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
    model = LanguageModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), schedule.learning_rate)
    batches = [b for _ in range(schedule.passes) for b in _batches(taught, schedule.batch_tokens, rng)]
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


def fuse(log_probs: Tensor, weighted: Tensor) -> Tensor:
    """Add to the labels' log-probabilities [N, V] a language model's [N, V], times its weight.

    The labels keep the mass that they had together, and the blank its own.
    """
    labels = log_probs[:, BLANK + 1 :] + weighted[:, BLANK + 1 :]
    before = log_probs[:, BLANK + 1 :].logsumexp(1, keepdim=True)
    labels = labels - labels.logsumexp(1, keepdim=True) + before
    return torch.cat((log_probs[:, : BLANK + 1], labels), 1)


@torch.inference_mode()
def perplexity(model: LanguageModel, sentences: list[list[int]]) -> float:
    """Return the perplexity a token, the end of each sentence included."""
    measured = [_loss(model, [sentence]) for sentence in sentences]
    return math.exp(sum(float(total) for total, _ in measured) / sum(count for _, count in measured))


def _batches(
    sentences: list[list[int]], batch_tokens: int, rng: np.random.Generator
) -> Iterator[list[list[int]]]:
    lengths = np.array([len(sentence) for sentence in sentences])
    batches: list[list[list[int]]] = [[]]
    for index in np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths))):
        if batches[-1] and (lengths[index] + 1) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(sentences[index])
    for index in rng.permutation(len(batches)):
        yield batches[index]


def _loss(model: LanguageModel, sentences: list[list[int]]) -> tuple[Tensor, int]:
    """Return the sum of -log P of all labels and ends, and how many these are."""
    padded = torch.full((len(sentences), max(map(len, sentences)) + 2), BLANK)
    for row, sentence in zip(padded, sentences, strict=True):
        row[: len(sentence) + 2] = torch.tensor([SENTENCE_EDGE, *sentence, SENTENCE_EDGE])
    # Of the blank, which stands behind each sentence, the model says log P = 0, so it adds nothing.
    total = -model(padded[:, :-1]).gather(2, padded[:, 1:, None]).sum()
    return total, sum(len(sentence) + 1 for sentence in sentences)


def save_language_model(model: LanguageModel, tokens: TextEncoder, path: Path) -> None:
    """Write a model with the hash of its tokens.

    Raises:
        DataError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "config": to_dict(model.config),
        "tokens": tokens.digest,
        "weights": model.state_dict(),
    }
    with writing(path):
        torch.save(content, path)


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
        model = LanguageModel(from_dict(LanguageModelConfig, content["config"], "config"))
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
