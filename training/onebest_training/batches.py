"""Batches of a run; their order and content follow from the seed alone, so a run can resume anywhere.

Axis legend: B batch, F feature frames (10 ms), T encoder frames (40 ms), U labels.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from onebest.cuts import Cut
from onebest.errors import ConfigError, DataError
from onebest.frontend import NUM_BINS, SILENCE, FloatArray
from onebest_training.augment import change_voice, disturb, spec_augment
from onebest_training.config import AugmentConfig, DataConfig
from onebest_training.distillation import TargetBatch, collate_paths
from onebest_training.encoder import FRAMES_PER_SECOND
from onebest_training.features import LOG_MEL, FeatureStore, Layout
from onebest_training.targets import TeacherPath
from onebest_training.utterances import Utterance

#: The longest silence between two utterances of one stream, 10 ms frames.
LONGEST_GAP = 100


class TeacherInput(NamedTuple):
    """What a teacher reads of a batch's utterances: features [B, T, width], and frames of each [B]."""

    features: Tensor
    frame_lengths: Tensor


class Batch(NamedTuple):
    """Utterances padded to one length.

    Attributes:
        features: [B, 4T+3, 80], silence behind each utterance; a teacher's are [B, T, width].
        frame_lengths: valid encoder frames, [B].
        labels: [B, U], 0 behind each utterance's labels.
        label_lengths: [B].
        texts: the normalised references.
        targets: a teacher's paths; None where no source of the run has any.
        teacher: what a teacher reads instead of the features; None where the sources have none.
        views: how often it has each utterance: B / views of them, and then the same ones again.
    """

    features: Tensor
    frame_lengths: Tensor
    labels: Tensor
    label_lengths: Tensor
    texts: list[str]
    targets: TargetBatch | None = None
    teacher: TeacherInput | None = None
    views: int = 1

    @property
    def seconds(self) -> float:
        """The audio in it, with the silence behind the utterances."""
        return len(self.features) * int(self.frame_lengths.max()) / FRAMES_PER_SECOND

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        features, frame_lengths, labels, label_lengths = (part.to(device) for part in self[:4])
        targets = None if self.targets is None else self.targets.to(device)
        teacher = self.teacher and TeacherInput(*(part.to(device) for part in self.teacher))
        return Batch(features, frame_lengths, labels, label_lengths, self.texts, targets, teacher, self.views)


def plan_pass(utterances: list[Utterance], batch_seconds: float, seed: int, number: int) -> list[list[int]]:
    """Return the batches of pass ``number``, each a list of indices; similar durations share a batch.

    Raises:
        DataError: the weights take no utterance at all in this pass.
    """
    rng = np.random.default_rng((seed, number))
    weights = np.array([utterance.weight for utterance in utterances])
    copies = np.floor(weights + rng.random(len(weights))).astype(np.int64)
    chosen = np.repeat(np.arange(len(utterances)), copies)
    if not len(chosen):
        raise DataError(f"pass {number} over the data is empty. Raise the weights of the corpora.")
    durations = np.array([utterances[index].cut.duration for index in chosen])
    chosen = chosen[np.argsort(durations * rng.uniform(0.95, 1.05, len(durations)))]
    batches: list[list[int]] = [[]]
    longest = 0.0
    for index in chosen:
        longest = max(longest, utterances[index].cut.duration)
        if batches[-1] and longest * (len(batches[-1]) + 1) > batch_seconds:
            batches.append([])
            longest = utterances[index].cut.duration
        batches[-1].append(int(index))
    return [batches[index] for index in rng.permutation(len(batches))]


def pad_frames(features: list[FloatArray], tails: list[int], layout: Layout) -> tuple[Tensor, Tensor]:
    """Pad what an encoder reads of utterances to one length.

    Args:
        features: [F, width] of each.
        tails: 10 ms frames of silence behind each, beyond what fills its last encoder frame; none where the
            layout knows no silence.
        layout: of the features.

    Returns:
        [B, subsampling * T + pad, width], and the encoder frames of each, [B].
    """
    rows = [tail * layout.rate // LOG_MEL.rate if layout.has_silence else 0 for tail in tails]
    lengths = [
        max(1, -(-(len(f) + tail - layout.pad) // layout.subsampling))
        for f, tail in zip(features, rows, strict=True)
    ]
    size = (len(features), layout.subsampling * max(lengths) + layout.pad, layout.width)
    padded = np.full(size, layout.fill, np.float32)
    for row, frames in enumerate(features):
        padded[row, : len(frames)] = frames
    return torch.from_numpy(padded), torch.tensor(lengths)


def pad_batch(
    features: list[FloatArray], tails: list[int], utterances: list[Utterance], with_targets: bool = False
) -> Batch:
    """Put utterances together.

    Args:
        features: [F, 80] of each.
        tails: 10 ms frames of silence behind each, beyond what fills its last encoder frame.
        utterances: their labels and texts.
        with_targets: whether the batch has targets although none of its utterances may have one.
    """
    with_targets = with_targets or any(u.targets is not None for u in utterances)
    padded, lengths = pad_frames(features, tails, utterances[0].store.layout)
    labels = torch.zeros(len(features), max(len(u.labels) for u in utterances), dtype=torch.int64)
    for row, utterance in enumerate(utterances):
        labels[row, : len(utterance.labels)] = torch.tensor(utterance.labels)
    return Batch(
        padded,
        lengths,
        labels,
        torch.tensor([len(u.labels) for u in utterances]),
        [u.text for u in utterances],
        collate_paths([_paths(u) for u in utterances]) if with_targets else None,
        _teacher_input([u.teacher for u in utterances if u.teacher is not None]),
    )


def _teacher_input(teachers: list[tuple[FeatureStore, Cut]]) -> TeacherInput | None:
    if not teachers:
        return None
    features = [store.read(cut) for store, cut in teachers]
    return TeacherInput(*pad_frames(features, [0] * len(features), teachers[0][0].layout))


def _paths(utterance: Utterance) -> list[TeacherPath]:
    if utterance.targets is None or utterance.cut.id not in utterance.targets:
        return []
    return utterance.targets.paths(utterance.cut.id)


class PassDataset(Dataset[Batch]):
    """The batches of one pass, by index; the run's seed and the pass's number decide everything.

    Args:
        utterances: to choose from.
        noise: background sounds, or None.
        config: sizes of batches.
        augmentation: what happens to each view of an utterance; its voice is the same in all.
        seed_and_number: the run's seed, and which pass it is.
        views: how often a batch has each utterance.

    Raises:
        ConfigError: the augmentation changes speed or joins although there are targets or a teacher, or does
            more than mask time although a store does not hold log-mel features.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        noise: FeatureStore | None,
        config: DataConfig,
        augmentation: AugmentConfig,
        seed_and_number: tuple[int, int],
        views: int = 1,
    ):
        self._views = views
        self._utterances, self._noise, self._augmentation = utterances, noise, augmentation
        self._tail_frames, self._seed = config.tail_frames, seed_and_number
        self._with_targets = any(source.targets for source in config.train)
        if self._with_targets and augmentation.speed:
            raise ConfigError(
                "a change of speed moves words away from where targets have them. Set speed to 0."
            )
        if augmentation.join_probability and (self._with_targets or any(u.teacher for u in utterances)):
            raise ConfigError(
                "targets and a teacher's frames are of single utterances. Set join_probability to 0."
            )
        if not augmentation.only_masks_time and any(u.store.layout != LOG_MEL for u in utterances):
            raise ConfigError(
                "of all augmentation only masks over time work on other frames than log-mel features. Leave "
                "the rest out for a teacher."
            )
        self.plan = plan_pass(utterances, config.batch_seconds / views, *seed_and_number)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        """Return batch ``index``; its augmentation depends on the seed, the pass and the index alone."""
        rng = np.random.default_rng((*self._seed, index))
        streams = self._join([self._utterances[number] for number in self.plan[index]], rng)
        views = list(zip(*(self._read(stream, rng) for stream in streams), strict=True))
        tails = [int(tail) for tail in rng.integers(self._tail_frames + 1, size=len(streams))]
        utterances = [_merge(stream) for stream in streams] * self._views
        batch = pad_batch(list(chain(*views)), tails * self._views, utterances, self._with_targets)
        return batch._replace(views=self._views)

    def _join(self, utterances: list[Utterance], rng: np.random.Generator) -> list[list[Utterance]]:
        """Return what each stream of the batch holds: an utterance, or where the draw says so two."""
        probability = self._augmentation.join_probability
        if not probability or rng.random() >= probability:
            return [[utterance] for utterance in utterances]
        order = [utterances[number] for number in rng.permutation(len(utterances))]
        return [order[first : first + 2] for first in range(0, len(order), 2)]

    def _read(self, stream: list[Utterance], rng: np.random.Generator) -> list[FloatArray]:
        """Return the views of a stream."""
        if (layout := stream[0].store.layout) != LOG_MEL:
            features, masks = stream[0].store.read(stream[0].cut), self._augmentation
            return [spec_augment(features, masks, rng, layout.rate) for _ in range(self._views)]
        parts: list[FloatArray] = []
        for utterance in stream:
            if parts:
                gap = int(rng.integers(LONGEST_GAP + 1))
                parts.append(np.full((gap, NUM_BINS), SILENCE, np.float32))
            parts.append(change_voice(utterance.store.read(utterance.cut), self._augmentation, rng))
        features = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return [disturb(features, self._augmentation, self._draw_noise(rng), rng) for _ in range(self._views)]

    def _draw_noise(self, rng: np.random.Generator) -> FloatArray | None:
        if self._noise is None or not self._augmentation.noise_probability:
            return None
        return self._noise.read(self._noise.cuts[int(rng.integers(len(self._noise.cuts)))])


def _merge(stream: list[Utterance]) -> Utterance:
    """Return the first utterance with the text and the labels of all."""
    text = " ".join(utterance.text for utterance in stream if utterance.text)
    return replace(stream[0], text=text, labels=tuple(chain(*(utterance.labels for utterance in stream))))
