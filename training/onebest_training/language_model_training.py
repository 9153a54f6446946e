"""Training a language model on sentences of token ids; stopped at any moment, it goes on to the same result.

Axis legend: as in ``language_model``.
"""

from __future__ import annotations

import hashlib
import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onebest.errors import ConfigError, DataError, ModelError
from onebest_training.checkpoint import write
from onebest_training.config import LARGEST_SEED
from onebest_training.language_model import (
    SENTENCE_EDGE,
    ContextConfig,
    LanguageModel,
    LstmConfig,
    make_language_model,
)
from onebest_training.strict import require
from onebest_training.transducer import BLANK


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
        require(
            0 < self.learning_rate < math.inf and self.held_out > 1,
            "a learning_rate above 0, held_out above 1",
        )
        require(0 <= self.seed <= LARGEST_SEED, f"a seed from 0 to {LARGEST_SEED}")


def train_language_model(
    start: LstmConfig | ContextConfig | LanguageModel,
    sentences: Sequence[Sequence[int]],
    schedule: Schedule,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 240.0,
) -> tuple[LanguageModel, float]:
    """Train a model on sentences of token ids.

    Args:
        start: kind and sizes of a new one, or a model, which learns on.
        sentences: token ids of each; empty ones are passed over.
        schedule: how.
        progress: is told the step, how many there are, and the loss in nats a token.
        checkpoint: a file that is written on the way, from which the same call goes on. It is for the
            caller to remove.
        checkpoint_seconds: how often.

    Returns:
        The model and its perplexity a token on the sentences held out.

    Raises:
        ConfigError: the checkpoint was begun with another model, other sentences or another schedule.
        DataError: there are too few sentences to hold one out, or the checkpoint cannot be written.
        ModelError: the checkpoint cannot be read, or the perplexity is not finite.
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
    identity = _identity(model, filled, schedule) if checkpoint else ""
    run = _Run(model, torch.optim.AdamW(model.parameters(), schedule.learning_rate), identity)
    passes = (_join(taught, schedule.join, rng) for _ in range(schedule.passes))
    batches = [batch for joined in passes for batch in _batches(joined, schedule.batch_tokens, rng)]
    if checkpoint and checkpoint.exists():
        run.load(checkpoint)
    saved = time.monotonic()
    while run.step < len(batches):
        loss = run.learn(batches[run.step], schedule.learning_rate * (1 - run.step / len(batches)))
        progress(run.step, len(batches), loss)
        if checkpoint and time.monotonic() - saved >= checkpoint_seconds:
            run.save(checkpoint)
            saved = time.monotonic()
    measured = perplexity(model.eval(), held_out)
    if not math.isfinite(measured):
        raise ModelError(f"the model has learnt nothing: perplexity {measured}. Lower the learning rate.")
    return model, measured


class _Run:
    """A model, its optimiser, and how many steps it has learnt; ``identity`` is what decides its end."""

    def __init__(self, model: LanguageModel, optimizer: torch.optim.Optimizer, identity: str):
        self._model, self._optimizer, self._identity = model, optimizer, identity
        self.step = 0

    def learn(self, batch: Sequence[Sequence[int]], learning_rate: float) -> float:
        """Take a step and return the loss in nats a token before it."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        total, count = _loss(self._model, batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total / count)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self.step += 1
        return float(total.detach()) / count

    def save(self, path: Path) -> None:
        """Write all that the next step depends on."""
        content = {
            "identity": self._identity,
            "step": self.step,
            "weights": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        write(content, path)

    def load(self, path: Path) -> None:
        """Go on from what was written.

        Raises:
            ConfigError: it is of another run.
            ModelError: it cannot be read.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = content["identity"]
            if found == self._identity:
                self._model.load_state_dict(content["weights"])
                self._optimizer.load_state_dict(content["optimizer"])
                torch.set_rng_state(content["random"])
                self.step = content["step"]
        except Exception as error:  # whatever pickle and zip make of a damaged file
            raise ModelError(f"{path}: cannot be read ({error}). Remove it to begin anew.") from error
        if found != self._identity:
            raise ConfigError(
                f"{path}: begun with other text, another model or other settings. Call with those to go on, "
                "or remove it to begin anew."
            )


def _identity(model: LanguageModel, sentences: Sequence[Sequence[int]], schedule: Schedule) -> str:
    """Return a hash of all that decides what becomes of a model."""
    digest = hashlib.sha256(f"{model.config} {schedule}".encode())
    for weight in model.state_dict().values():
        digest.update(weight.numpy().tobytes())
    for sentence in sentences:
        digest.update(array("i", [len(sentence), *sentence]).tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def perplexity(model: LanguageModel, sentences: Sequence[Sequence[int]]) -> float:
    """Return the perplexity a token, the end of each sentence included; inf where it is no float64."""
    measured = [_loss(model, [sentence]) for sentence in sentences]
    nats = sum(float(total) for total, _ in measured) / sum(count for _, count in measured)
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


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
