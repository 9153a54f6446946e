"""What the losses of a batch share: outputs of student and teacher, and the nodes they are wanted at.

Axis legend: B batch, R references (labels of the utterances, or their N-best), T encoder frames, U labels,
S nodes of a frame, D encoder width, J joiner width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from onebest.errors import ConfigError
from onebest_training.band import ctc_viterbi
from onebest_training.batches import Batch
from onebest_training.config import LossConfig
from onebest_training.distillation import TargetBatch
from onebest_training.frozen_teacher import Embeddings, FrozenTeacher, align, stored_input
from onebest_training.references import (
    LatticeNodes,
    References,
    alignable,
    references_of,
    target_emissions,
    with_hypotheses,
)
from onebest_training.transducer import Transducer


def labels_fit(batch: Batch) -> Tensor:
    """Return for which utterances an alignment of the labels exists, [B]; see ``alignable``."""
    return alignable(batch.labels, batch.label_lengths, batch.frame_lengths)


@dataclass(frozen=True)
class Outputs:
    """What the losses of a batch share; each part is computed when a loss first asks for it.

    Attributes:
        model: the student.
        batch: its input.
        config: which losses, and their settings.
        teacher: one that runs beside it, or None.
        chunk: frames a chunk; 0 for full context.
        start: position of the first frame.
        encoded: the encoder's output, [B, T, D].
    """

    model: Transducer
    batch: Batch
    config: LossConfig
    teacher: FrozenTeacher | None
    chunk: int
    start: int
    encoded: Tensor

    @property
    def shift(self) -> int:
        """Frames by which this student is later than a teacher with full context."""
        return self.config.shift if self.chunk else 0

    @cached_property
    def label_count(self) -> Tensor:
        """The labels that losses are divided by."""
        return (self.batch.label_lengths * labels_fit(self.batch)).sum().clamp(min=1)

    @cached_property
    def ctc_log_probs(self) -> Tensor:
        """The CTC head's, [B, T, V]."""
        log_probs: Tensor = self.model.ctc(self.encoded).float().log_softmax(2)
        return log_probs

    @cached_property
    def projected(self) -> Tensor:
        """The encoder's side of the joiner, [B, T, J]."""
        projected: Tensor = self.model.projection(self.encoded)
        return projected

    @cached_property
    def whole(self) -> Tensor:
        """The encoder's output at full context, without gradient, [B, T, D]."""
        with torch.no_grad():
            batch = self.batch
            whole: Tensor = self.model.encoder(batch.features, batch.frame_lengths, 0, 0, self.start)
            return whole

    @cached_property
    def references(self) -> References:
        """What the lattices run through."""
        if self.config.hypotheses == 1:
            return references_of(self.batch)
        return with_hypotheses(self.batch, self.targets("hypotheses").best(self.config.hypotheses))

    @cached_property
    def nodes(self) -> LatticeNodes:
        """The nodes of the references' lattices at which the joiner is evaluated."""
        return self.nodes_of(self.references)

    @cached_property
    def logits(self) -> Tensor:
        """The student's at these nodes, [R, T, S, V]."""
        return self.nodes.logits(self.model, self.projected)

    @cached_property
    def planes(self) -> tuple[Tensor, Tensor]:
        """Its log P(blank) and log P(next label) there, [R, T, S] each."""
        return self.classes[:2] if self.config.collapsed else self.nodes.planes(self.logits)

    @cached_property
    def classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the log-probability of all other labels as one, [R, T, S] each."""
        return self.nodes.class_planes(self.logits)

    @cached_property
    def teacher_logits(self) -> Tensor:
        """A transducer's at these nodes, ``shift`` frames earlier in its time, [R, T, S, V]."""
        if self.teacher is None or self.teacher.transducer is None:
            raise ConfigError("collapsed and lattice need a transducer as loss.teacher, and there is none.")
        with torch.no_grad():
            projected = self.teacher.transducer.projection(self.embeddings.frames)
            later = functional.pad(projected, (0, 0, self.shift, 0))[:, : projected.shape[1]]
            return self.nodes.logits(self.teacher.transducer, later)

    @cached_property
    def embeddings(self) -> Embeddings:
        """The teacher's encoder output, or without a teacher the frames that are stored."""
        if self.teacher is None:
            return align(*stored_input(self.batch), self.batch)
        return self.teacher.encode(self.batch)

    def targets(self, name: str) -> TargetBatch:
        """Return the stored targets, which the setting ``name`` asks for."""
        if self.batch.targets is None:
            raise ConfigError(
                f"loss.{name} needs a teacher's targets, and the data has none. Make them with: onebest "
                "targets, and name their folder as targets of a source in data.train."
            )
        return self.batch.targets

    def nodes_of(self, references: References) -> LatticeNodes:
        """Return the whole lattice of references, or a band around a path that is no wider."""
        width = min(self.config.band, max(2, references.labels.shape[1] + 1))
        frames = self.encoded.shape[1]
        return LatticeNodes(references, width, self._emissions(references) if width else None, frames)

    def _emissions(self, references: References) -> Tensor:
        """Return the frames in which the teacher's path or the CTC head's emits each label, [R, U]."""
        if self.config.band_around == "path":
            frames, known = target_emissions(references, self.targets("band_around"))
            later = torch.minimum(frames + self.shift, references.frame_lengths[:, None] - 1)
            if bool((known | (references.label_lengths == 0)).all()):
                return later
            return torch.where(known[:, None], later, self._ctc_emissions(references))
        return self._ctc_emissions(references)

    def _ctc_emissions(self, references: References) -> Tensor:
        log_probs = self.ctc_log_probs.detach()[references.utterances]
        return ctc_viterbi(log_probs, references.labels, references.frame_lengths, references.label_lengths)
