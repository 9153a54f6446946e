"""The training loop: batches in, checkpoints out; a killed run goes on to the result it would have had.

Everything random follows from the seed and the step. What is measured and exported is an exponential average
of the weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from onebest.errors import ConfigError, DataError, ModelError
from onebest_training import checkpoint as checkpoints
from onebest_training.batches import Batch, PassDataset, load_dev, load_training
from onebest_training.checkpoint import Checkpoint, Position
from onebest_training.config import StageConfig, TrainConfig
from onebest_training.decode import count_errors, dev_batches
from onebest_training.encoder import Block, Encoder
from onebest_training.features import FeatureStore
from onebest_training.losses import compute_losses
from onebest_training.runlog import Means, RunLog
from onebest_training.strict import to_dict
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import TextEncoder

log = logging.getLogger(__name__)
MEASURED_LEFT_FRAMES = 128
Progress = Callable[[Position, float], None]


class Trainer:
    """One run in one folder: ``checkpoint.pt``, ``log.jsonl``, TensorBoard's files.

    Args:
        config: the run's.
        folder: the run's; an unfinished run in it goes on.
        device: cpu, cuda or cuda:N.
        change_config: go on although the run began with another configuration.

    Raises:
        ConfigError: the configuration is not the run's, or does not fit the vocabulary or the first weights.
        DataError: a store or the vocabulary is missing or of no use.
        ModelError: the checkpoint or the first weights cannot be read or do not fit.
    """

    def __init__(self, config: TrainConfig, folder: Path, device: str = "cpu", change_config: bool = False):
        self.config, self.folder, self.device = config, folder, _find_device(device)
        self.path = folder / "checkpoint.pt"
        self.tokens_model, self.tokens = _read_tokens(config)
        torch.manual_seed(config.seed)
        self.model = Transducer(config.model)
        self.pretrained = _start_encoder(self.model.encoder, config.initial_encoder)
        _start_model(self.model, config.initial_model, self.tokens_model)
        self.model.to(self.device)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self._groups(), weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
        )
        self.position = Position()
        if self.path.exists():
            self._resume(change_config)
        self.utterances = load_training(config.data, self.tokens)
        self.noise = FeatureStore(Path(config.data.noise)) if config.data.noise else None
        dev = load_dev(config.data, self.tokens)
        self.dev = {name: dev_batches(members) for name, members in dev.items()}

    def _groups(self) -> list[dict[str, Any]]:
        named = list(self.model.named_parameters())
        trained = [p for name, p in named if name in self.pretrained]
        fresh = [p for name, p in named if name not in self.pretrained]
        return [{"params": fresh, "lr": 0.0}] + ([{"params": trained, "lr": 0.0}] if trained else [])

    def _resume(self, change_config: bool) -> None:
        saved = checkpoints.load(self.path)
        same = saved.tokens == self.tokens_model and self._is_run_of(saved)
        if not same and not change_config:
            raise ConfigError(
                f"{self.path} was made with another configuration or vocabulary. Give another folder, or "
                "allow it with --change-config."
            )
        try:
            self.model.load_state_dict(saved.weights)
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"{self.path}: does not fit the configured model ({error}). Give another folder."
            ) from error
        self.average = {name: value.to(self.device) for name, value in saved.average.items()}
        self.position = saved.position
        log.info("%s: going on after step %d", self.path, self.position.step)

    def _is_run_of(self, saved: Checkpoint) -> bool:
        """Whether a checkpoint has this configuration; keys that came later count as their defaults."""
        try:
            return checkpoints.run_config(saved, self.path) == self.config
        except ConfigError:
            return False

    def run(self, progress: Progress = lambda position, loss: None) -> None:
        """Train to the end of the last stage; ``progress`` is told the position and loss after every step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_log = RunLog(self.folder, self.position.step)
        try:
            for index in range(self.position.stage, len(self.config.stages)):
                if index != self.position.stage:
                    self.position = replace(self.position, stage=index, stage_step=0)
                self._run_stage(self.config.stages[index], run_log, progress)
        finally:
            run_log.close()
        self.save()

    def _run_stage(self, stage: StageConfig, run_log: RunLog, progress: Progress) -> None:
        self._choose_parameters(stage)
        recent, saved, since = Means(), time.monotonic(), time.monotonic()
        for batch, batches in self._batches(stage):
            losses = self._step(stage, batch)
            seconds, spent = batch.seconds, time.monotonic() - since
            self.position = self.position.after_batch(batches, seconds, spent)
            recent.add(losses, seconds, spent)
            progress(self.position, losses["loss"])
            ends = self.position.stage_step == stage.steps
            logs = ends or self.position.step % self.config.log_steps == 0
            if logs:
                rate = self.optimizer.param_groups[0]["lr"]
                run_log.write(self.position, {"stage": stage.name, "learning_rate": rate, **recent.take()})
            if ends or self.position.step % self.config.evaluate_steps == 0:
                run_log.write(self.position, self.evaluate())
            # Only with a row of the log, so that a resumed run's means are over the same steps.
            if ends or (logs and time.monotonic() - saved > 60 * self.config.checkpoint_minutes):
                self.save()
                saved = time.monotonic()
            since = time.monotonic()

    def _choose_parameters(self, stage: StageConfig) -> None:
        for name, parameter in self.model.named_parameters():
            frozen = (stage.trains == "heads" and name.startswith("encoder.")) or (
                stage.trains == "new" and name in self.pretrained
            )
            parameter.requires_grad_(not frozen)

    def _batches(self, stage: StageConfig) -> Iterator[tuple[Batch, int]]:
        """Give the stage's remaining batches, each with the number of batches in its pass."""
        data, seed = self.config.data, self.config.seed
        while (left := stage.steps - self.position.stage_step) > 0:
            number = self.position.number
            dataset = PassDataset(self.utterances, self.noise, data, stage.augment, (seed, number))
            order = range(self.position.batch, len(dataset))[:left]
            if not order:  # the configuration changed, and passes have become shorter
                self.position = replace(self.position, number=number + 1, batch=0)
                continue
            loader = DataLoader(dataset, batch_size=None, sampler=order, num_workers=data.workers)
            for batch in loader:
                yield batch, len(dataset)

    def _step(self, stage: StageConfig, batch: Batch) -> dict[str, float]:
        step = self.position.step
        torch.manual_seed(int(np.random.default_rng((self.config.seed, step, 2)).integers(2**31)))
        rng = np.random.default_rng((self.config.seed, step, 1))
        self._set_learning_rates(stage)
        self.model.train()
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            losses = compute_losses(self.model, batch, stage, rng)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["loss"])
        losses["gradient_norm"] = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.gradient_clip
        )
        if bool(torch.isfinite(losses["gradient_norm"])):
            self.optimizer.step()
            self._update_average(step)
        else:
            log.warning("step %d: the gradient is not finite; the step is left out", step)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _set_learning_rates(self, stage: StageConfig) -> None:
        at, left = self.position.stage_step, stage.steps - self.position.stage_step
        scale = min(
            1.0, (at + 1) / max(1, stage.warmup_steps), left / stage.decay_steps if stage.decay_steps else 1.0
        )
        rates = [stage.learning_rate, stage.encoder_learning_rate or stage.learning_rate]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * scale

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        share = 1.0 - min(self.config.average_decay, (1.0 + step) / (10.0 + step))
        state = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[name] for name in self.average], share)

    def evaluate(self) -> dict[str, float]:
        """Measure the averaged model on dev; return word error rates in percent by corpus and chunk size."""
        model = Transducer(self.config.model).to(self.device)
        model.load_state_dict(self.average)
        rates: dict[str, float] = {}
        for chunk in self.config.evaluate_chunk_frames:
            for corpus, batches in self.dev.items():
                counted = count_errors(model, batches, self.tokens, chunk, MEASURED_LEFT_FRAMES)
                rates[f"wer/{corpus}/{chunk}"] = round(100.0 * counted.transducer_errors / counted.words, 2)
                rates[f"ctc_wer/{corpus}/{chunk}"] = round(100.0 * counted.ctc_errors / counted.words, 2)
        return rates

    def save(self) -> None:
        """Write the checkpoint."""
        content = Checkpoint(
            to_dict(self.config),
            self.tokens_model,
            self.model.state_dict(),
            self.average,
            self.optimizer.state_dict(),
            self.position,
        )
        checkpoints.save(content, self.path)


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: expected cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch finds no CUDA device here. Train with --device cpu.")
    return device


def _read_tokens(config: TrainConfig) -> tuple[bytes, TextEncoder]:
    path, size = Path(config.data.tokens), config.model.vocabulary_size
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: no vocabulary there. Make one with: onebest vocabulary") from error
    tokens = TextEncoder(model)
    if len(tokens) != size:
        raise ConfigError(f"{path} has {len(tokens)} pieces, but model.vocabulary_size is {size}.")
    return model, tokens


def _start_encoder(encoder: Encoder, path: str) -> frozenset[str]:
    """Load pre-trained weights, let what they lack add nothing; return the names of what came trained."""
    if not path:
        return frozenset()
    try:
        weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    except Exception as error:
        raise ModelError(f"{path}: cannot be read. Make it with: onebest convert-encoder") from error
    for block in encoder.blocks:
        if isinstance(block, Block):
            block.start_as_identity()
    try:
        unexpected = encoder.load_state_dict(weights, strict=False).unexpected_keys
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the configured encoder: {error}") from error
    if unexpected:
        raise ConfigError(
            f"{path} has {unexpected[0]}, which the configured encoder lacks. Give the first blocks the "
            "sizes of the pre-trained encoder."
        )
    return frozenset(f"encoder.{name}" for name in weights)


def _start_model(model: Transducer, path: str, tokens_model: bytes) -> None:
    """Load the average of a trained checkpoint, whole or in half precision, of the same vocabulary."""
    if not path:
        return
    trained, _, checkpoint = checkpoints.load_model(Path(path))
    if checkpoint.tokens != tokens_model:
        raise ConfigError(
            f"{path} was trained with another vocabulary. Train on with its own as data.tokens."
        )
    try:
        model.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the configured model: {error}") from error
