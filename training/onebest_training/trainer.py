"""The training loop: batches in, checkpoints out; a killed run goes on to the result it would have had.

Everything random follows from the seed and the number of a batch, so the same batches give the same result
however many processes share them. What is measured and exported is an exponential average of the weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from onebest.errors import ConfigError, ModelError
from onebest_training import checkpoint as checkpoints
from onebest_training.batches import Batch, PassDataset
from onebest_training.checkpoint import Checkpoint, Position
from onebest_training.config import EncoderConfig, StageConfig, TrainConfig
from onebest_training.decode import dev_batches, measure
from onebest_training.delay import summarize
from onebest_training.features import FeatureStore
from onebest_training.frozen_teacher import load_teachers
from onebest_training.losses import compute_losses
from onebest_training.outputs import labels_fit
from onebest_training.parallel import Processes
from onebest_training.runlog import Means, RunLog
from onebest_training.speech import alone_in
from onebest_training.start import read_tokens, start_encoder, start_model
from onebest_training.strict import to_dict
from onebest_training.transducer import Transducer
from onebest_training.utterances import check_delays, load_dev, load_training

log = logging.getLogger(__name__)
MEASURED_LEFT_FRAMES = 128
Progress = Callable[[Position, float], None]


class Trainer:
    """One run in one folder: ``checkpoint.pt``, ``log.jsonl``, TensorBoard's files.

    Under torchrun each process has a trainer, all of the same folder; the first of them logs and saves.

    Args:
        config: the run's.
        folder: the run's; an unfinished run in it goes on.
        device: cpu, cuda or cuda:N.
        change_config: go on although the run began with another configuration.

    Raises:
        ConfigError: the configuration is not the run's, does not fit the vocabulary or the first weights, or
            its ``accumulation`` is no multiple of the processes.
        DataError: a store or the vocabulary is missing or of no use.
        ModelError: the checkpoint or the first weights cannot be read or do not fit.
    """

    def __init__(self, config: TrainConfig, folder: Path, device: str = "cpu", change_config: bool = False):
        self.config, self.folder, self.processes = config, folder, Processes(device)
        self.device, self.path = self.processes.device, folder / "checkpoint.pt"
        if config.accumulation % self.processes.size:
            raise ConfigError(
                f"accumulation is {config.accumulation}, which {self.processes.size} processes cannot share "
                "evenly. Make it a multiple."
            )
        self.tokens_model, self.tokens = read_tokens(config)
        torch.manual_seed(config.seed)
        self.model = Transducer(config.model)
        self.pretrained = start_encoder(self.model.encoder, config.initial_encoder)
        start_model(self.model, config.initial_model, self.tokens_model)
        self.model.to(self.device)
        self.teachers = load_teachers(config, self.tokens_model, self.device)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self._groups(), weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
        )
        self.position, self.front_end = Position(), ""
        if self.path.exists():
            self._resume(change_config)
        self.utterances = load_training(config.data, self.tokens)
        check_delays(config.stages, self.utterances)
        self.noise = FeatureStore(Path(config.data.noise)) if config.data.noise else None
        if self.noise:
            self.noise.check_front_end(EncoderConfig())  # sounds are mixed into log-mel features alone
        dev = load_dev(config.data, self.tokens)
        self.front_end = self.front_end or self.utterances[0].store.front_end_digest
        for store in {u.store for u in self.utterances} | {u.store for u in chain(*dev.values())}:
            store.check_front_end(config.model.encoder, self.front_end)
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
                f"{self.path}: does not fit the configured model ({checkpoints.misfit(error)}). Give another "
                "folder."
            ) from error
        self.average = {name: value.to(self.device) for name, value in saved.average.items()}
        self.position, self.front_end = saved.position, saved.front_end
        log.info("%s: going on after step %d", self.path, self.position.step)

    def _is_run_of(self, saved: Checkpoint) -> bool:
        """Whether a checkpoint has this configuration; keys that came later count as their defaults."""
        try:
            return checkpoints.run_config(saved, self.path) == self.config
        except ConfigError:
            return False

    def run(self, progress: Progress = lambda position, loss: None) -> None:
        """Train to the end of the last stage; ``progress`` is told the position and loss after every step.

        A run that is finished stays as it is, down to the bytes of its checkpoint, by which targets know it.

        Raises:
            DataError: another process writes into the folder, or a file cannot be written.
            ModelError: the weights are not finite, as first ones or as too high a learning rate made them.
        """
        with alone_in(self.folder) if self.processes.is_first else nullcontext():
            self._run_stages(progress)

    def _run_stages(self, progress: Progress) -> None:
        run_log = RunLog(self.folder, self.position.step) if self.processes.is_first else None
        try:
            for index in range(self.position.stage, len(self.config.stages)):
                if index != self.position.stage:
                    self.position = replace(self.position, stage=index, stage_step=0)
                self._run_stage(self.config.stages[index], run_log, progress)
        finally:
            if run_log:
                run_log.close()

    def _run_stage(self, stage: StageConfig, run_log: RunLog | None, progress: Progress) -> None:
        def write(values: dict[str, Any]) -> None:
            if run_log:
                run_log.write(self.position, values)

        self._choose_parameters(stage)
        recent, saved, since = Means(), time.monotonic(), time.monotonic()
        for batches, place in self._steps(stage):
            (seconds,) = self.processes.sum([sum(batch.seconds for batch in batches)])
            loss = self._step(stage, batches, recent)
            spent = time.monotonic() - since
            self.position = self.position.after_step(*place, seconds, spent)
            recent.add_time(seconds, spent)
            progress(self.position, loss)
            ends = self.position.stage_step == stage.steps
            logs = ends or self.position.step % self.config.log_steps == 0
            if logs:
                rate = self.optimizer.param_groups[0]["lr"]
                write({"stage": stage.name, "learning_rate": rate, **recent.take(self.processes.gather)})
            if ends or self.position.step % self.config.evaluate_steps == 0:
                write(self.evaluate())
            if self.config.keep_steps and self.position.step % self.config.keep_steps == 0:
                self._keep()
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

    def _steps(self, stage: StageConfig) -> Iterator[tuple[list[Batch], tuple[int, int]]]:
        """Give for each remaining step this process's batches, and the place in the data after the step."""
        batches = self._batches(stage)
        for _ in range(stage.steps - self.position.stage_step):
            taken = list(islice(batches, self.config.accumulation))
            yield [batch for batch, _ in taken if batch is not None], taken[-1][1]

    def _batches(self, stage: StageConfig) -> Iterator[tuple[Batch | None, tuple[int, int]]]:
        """Give batches from the run's place on, pass after pass, each with the number and batch after it.

        Of all processes' batches, which take turns, those of others are None.
        """
        data, size, turn = self.config.data, self.processes.size, 0
        number, first = self.position.number, self.position.batch
        left = (stage.steps - self.position.stage_step) * self.config.accumulation
        while left > turn:
            dataset = PassDataset(
                self.utterances,
                self.noise,
                data,
                stage.augment,
                (self.config.seed, number),
                stage.loss.views,
            )
            order = range(first, len(dataset))[: left - turn]
            is_own = [(turn + index) % size == self.processes.rank for index in range(len(order))]
            sampler = list(compress(order, is_own))
            loader = iter(DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=data.workers))
            for index, own in zip(order, is_own, strict=True):
                place = (number, index + 1) if index + 1 < len(dataset) else (number + 1, 0)
                yield next(loader) if own else None, place
            number, first, turn = number + 1, 0, turn + len(order)

    def _step(self, stage: StageConfig, batches: list[Batch], recent: Means) -> float:
        """Take a step on all processes' batches, of which these are ours; return the mean loss on ours."""
        step, size, sizes = self.position.step, self.config.accumulation, [_weight(b) for b in batches]
        (total,) = self.processes.sum([sum(sizes)])
        draws = range(step * size + self.processes.rank, (step + 1) * size, self.processes.size)
        self._set_learning_rates(stage)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for draw, batch, weight in zip(draws, batches, sizes, strict=True):
            losses = self._losses(stage, batch, draw)
            torch.autograd.backward(losses["loss"] * (weight / total))
            values = {name: float(value.detach()) for name, value in losses.items()}
            recent.add(values, weight / total)
            loss += values["loss"] * weight / sum(sizes)
        self.processes.sum_gradients(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        recent.add({"gradient_norm": float(norm)}, 1.0 / self.processes.size)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self._update_average(step)
        else:
            self._check_weights()
            log.warning("step %d: the gradient is not finite; the step is left out", step)
        return loss

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise ModelError(
                f"step {self.position.step}: the weights are not finite, and no step can change that. Begin "
                "a new run with a lower learning rate, or with other first weights."
            )

    def _losses(self, stage: StageConfig, batch: Batch, draw: int) -> dict[str, Tensor]:
        """Compute the losses of batch ``draw`` of the run, a number that decides all that is drawn."""
        torch.manual_seed(int(np.random.default_rng((self.config.seed, draw, 2)).integers(2**31)))
        rng = np.random.default_rng((self.config.seed, draw, 1))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            teacher = self.teachers.get(stage.loss.teacher)
            return compute_losses(self.model, batch.to(self.device), stage, rng, teacher)

    def _set_learning_rates(self, stage: StageConfig) -> None:
        at, left = self.position.stage_step, stage.steps - self.position.stage_step
        risen = min(1.0, (at + 1) / max(1, stage.warmup_steps))
        rise = stage.initial_scale + (1 - stage.initial_scale) * risen
        kept = min(1.0, left / stage.decay_steps) if stage.decay_steps else 1.0
        scale = min(rise, stage.final_scale ** (1 - kept) if stage.final_scale else kept)
        rates = [stage.learning_rate, stage.encoder_learning_rate or stage.learning_rate]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * scale

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        share = 1.0 - min(self.config.average_decay, (1.0 + step) / (10.0 + step))
        state = self.model.state_dict()
        means = {name: value for name, value in self.average.items() if value.is_floating_point()}
        torch._foreach_lerp_(list(means.values()), [state[name] for name in means], share)
        for name in self.average.keys() - means.keys():  # a batch norm's count
            self.average[name].copy_(state[name])

    def evaluate(self) -> dict[str, float]:
        """Measure the averaged model on dev, each corpus with each chunk size.

        Returns:
            Word error rates in percent, and emission delays in milliseconds if a token was recognised at all.
        """
        model = Transducer(self.config.model).to(self.device)
        model.load_state_dict(self.average)
        chunks, rates = self.config.evaluate_chunk_frames, {}
        for corpus, batches in self.dev.items():
            own = batches[self.processes.rank :: self.processes.size]
            right = self.config.evaluate_right_frames
            measured = measure(model, own, self.tokens, chunks, MEASURED_LEFT_FRAMES, right=right)
            for chunk, (errors, delays) in measured.items():
                by_transducer, by_ctc, words = self.processes.sum(errors)
                rates[f"wer/{corpus}/{chunk}"] = round(100.0 * by_transducer / words, 2)
                rates[f"ctc_wer/{corpus}/{chunk}"] = round(100.0 * by_ctc / words, 2)
                summary = summarize(list(chain(*self.processes.gather(delays))))
                for name, value in (summary._asdict() if summary else {}).items():
                    rates[f"emission_delay_{name}/{corpus}/{chunk}"] = round(value, 1)
        return rates

    def save(self) -> None:
        """Write the checkpoint, if this is the first process."""
        if self.processes.is_first:
            checkpoints.save(self._checkpoint(), self.path)

    def _keep(self) -> None:
        if self.processes.is_first:
            path = self.path.with_stem(f"checkpoint-{self.position.step:06}")
            checkpoints.save(checkpoints.model_alone(self._checkpoint()), path)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            to_dict(self.config),
            self.tokens_model,
            self.model.state_dict(),
            self.average,
            self.optimizer.state_dict(),
            self.position,
            self.front_end,
        )


def _weight(batch: Batch) -> int:
    """What a batch's losses, which are means a label, weigh in its step: the labels they are over."""
    return max(1, int((batch.label_lengths * labels_fit(batch)).sum()))
