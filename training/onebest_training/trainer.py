"""The training loop: batches in, checkpoints out; a killed run goes on to the result it would have had.

Everything random follows from the seed and the step. What is measured and exported is an exponential average of the
weights. Axis legend: B batch, T encoder frames, U labels, V vocabulary.
"""

from __future__ import annotations

import json
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
from torch.utils.tensorboard import SummaryWriter

from onebest.errors import ConfigError
from onebest_training import checkpoint as checkpoints
from onebest_training.batches import Batch, PassDataset, load_dev, load_training
from onebest_training.checkpoint import Checkpoint, Position
from onebest_training.config import StageConfig, TrainConfig, to_dict
from onebest_training.decode import count_errors, dev_batches
from onebest_training.features import FeatureStore
from onebest_training.losses import compute_losses
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import TextEncoder

log = logging.getLogger(__name__)
MEASURED_LEFT_FRAMES = 128


class Trainer:
    """One run in one folder: ``checkpoint.pt``, ``log.jsonl``, TensorBoard's files."""

    def __init__(self, config: TrainConfig, folder: Path, device: str = "cpu", change_config: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.config, self.folder, self.device = config, folder, torch.device(device)
        self.path = folder / "checkpoint.pt"
        self.tokens_model = Path(config.data.tokens).read_bytes()
        self.tokens = TextEncoder(self.tokens_model)
        if len(self.tokens) != config.model.vocabulary_size:
            raise ConfigError(
                f"{config.data.tokens} has {len(self.tokens)} pieces, but model.vocabulary_size is "
                f"{config.model.vocabulary_size}."
            )
        torch.manual_seed(config.seed)
        self.model = Transducer(config.model)
        self.pretrained = self._start_encoder()
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
        self.dev = {
            name: dev_batches(members) for name, members in load_dev(config.data, self.tokens).items()
        }
        self.board = SummaryWriter(str(folder), purge_step=self.position.step)

    def _start_encoder(self) -> frozenset[str]:
        """Load the pre-trained encoder, make the blocks above it the identity; return the names of what came trained."""
        if not self.config.initial_encoder:
            return frozenset()
        weights = torch.load(self.config.initial_encoder, weights_only=True)
        encoder = self.model.encoder
        outcome = encoder.load_state_dict(weights, strict=False)
        if outcome.unexpected_keys:
            raise ConfigError(
                f"{self.config.initial_encoder} has {outcome.unexpected_keys[0]}, which the configured "
                "encoder lacks. Give the first blocks the sizes of the pre-trained encoder."
            )
        for index in {int(key.split(".")[1]) for key in outcome.missing_keys if key.startswith("blocks.")}:
            encoder.blocks[index].start_as_identity()
        return frozenset(f"encoder.{name}" for name in weights)

    def _groups(self) -> list[dict[str, Any]]:
        named = list(self.model.named_parameters())
        trained = [p for name, p in named if name in self.pretrained]
        fresh = [p for name, p in named if name not in self.pretrained]
        return [{"params": fresh, "lr": 0.0}] + ([{"params": trained, "lr": 0.0}] if trained else [])

    def _resume(self, change_config: bool) -> None:
        saved = checkpoints.load(self.path)
        if saved.config != to_dict(self.config) and not change_config:
            raise ConfigError(
                f"{self.path} was made with another configuration. Give another folder, or allow it "
                "with --change-config."
            )
        self.model.load_state_dict(saved.weights)
        self.average = {name: value.to(self.device) for name, value in saved.average.items()}
        self.optimizer.load_state_dict(saved.optimizer)
        self.position = saved.position
        rows = (self.folder / "log.jsonl").read_text().splitlines()
        kept = [row for row in rows if json.loads(row)["step"] <= self.position.step]
        (self.folder / "log.jsonl").write_text("".join(row + "\n" for row in kept))

    def run(self, progress: Callable[[Position, float], None] = lambda position, loss: None) -> None:
        """Train to the end of the last stage; ``progress`` is told the position and the loss after every step."""
        for index in range(self.position.stage, len(self.config.stages)):
            stage = self.config.stages[index]
            if index != self.position.stage:
                self.position = replace(self.position, stage=index, stage_step=0)
            self._run_stage(stage, progress)
        self.save()

    def _run_stage(self, stage: StageConfig, progress: Callable[[Position, float], None]) -> None:
        self._choose_parameters(stage)
        last_save, recent, since = time.monotonic(), _Means(), time.monotonic()
        for batch, batches in self._batches(stage):
            if self.position.stage_step >= stage.steps:
                return
            losses = self._step(stage, batch)
            seconds, now = batch.features.shape[0] * batch.features.shape[1] / 100.0, time.monotonic()
            self.position = self.position.after_batch(batches, seconds, now - since)
            recent.add(losses, seconds, now - since)
            since = now
            progress(self.position, losses["loss"])
            if self.position.step % self.config.log_steps == 0:
                self._log(
                    {
                        "stage": stage.name,
                        "learning_rate": self.optimizer.param_groups[0]["lr"],
                        **recent.take(),
                    }
                )
            if (
                self.position.step % self.config.evaluate_steps == 0
                or self.position.stage_step == stage.steps
            ):
                self._log(self.evaluate())
            if (
                now - last_save > 60 * self.config.checkpoint_minutes
                or self.position.stage_step == stage.steps
            ):
                self.save()
                last_save = time.monotonic()
            since = time.monotonic() if self.position.step % self.config.evaluate_steps == 0 else since

    def _choose_parameters(self, stage: StageConfig) -> None:
        for name, parameter in self.model.named_parameters():
            frozen = (stage.trains == "heads" and name.startswith("encoder.")) or (
                stage.trains == "new" and name in self.pretrained
            )
            parameter.requires_grad_(not frozen)

    def _batches(self, stage: StageConfig) -> Iterator[tuple[Batch, int]]:
        while True:
            dataset = PassDataset(
                self.utterances,
                self.noise,
                self.config.data,
                stage.augment,
                self.config.seed,
                self.position.number,
            )
            order = range(self.position.batch, len(dataset))
            for batch in DataLoader(
                dataset, batch_size=None, sampler=order, num_workers=self.config.data.workers
            ):
                yield batch, len(dataset)

    def _step(self, stage: StageConfig, batch: Batch) -> dict[str, float]:
        step = self.position.step
        torch.manual_seed(hash((self.config.seed, step)) & 0x7FFFFFFF)
        rng = np.random.default_rng((self.config.seed, step, 1))
        self._set_learning_rates(stage)
        self.model.train()
        batch = Batch(*(part.to(self.device) if isinstance(part, Tensor) else part for part in batch))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            losses = compute_losses(self.model, batch, stage, rng)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
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

    def _log(self, values: dict[str, Any]) -> None:
        row = {
            "step": self.position.step,
            "hours": round(self.position.seconds / 3600, 3),
            "minutes": round(self.position.wall_seconds / 60, 2),
            **values,
        }
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self.board.add_scalar(name, value, self.position.step)

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoints.save(
            Checkpoint(
                to_dict(self.config),
                self.tokens_model,
                self.model.state_dict(),
                self.average,
                self.optimizer.state_dict(),
                self.position,
            ),
            self.path,
        )


class _Means:
    """Means of losses since they were last taken, and the seconds of audio a second."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps, self._audio, self._wall = 0, 0.0, 0.0

    def add(self, losses: dict[str, float], audio: float, wall: float) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps, self._audio, self._wall = self._steps + 1, self._audio + audio, self._wall + wall

    def take(self) -> dict[str, float]:
        means = {name: round(total / self._steps, 5) for name, total in self._sums.items()}
        means["audio_seconds_a_second"] = round(self._audio / max(self._wall, 1e-9), 1)
        self.__init__()  # type: ignore[misc]
        return means
