"""A trained teacher, ready to say what it makes of samples: a checkpoint and the front end that it reads.

Axis legend: B utterances, T frames (40 ms), J joiner width, U labels, N nodes of a path, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from onebest.errors import ConfigError, DataError
from onebest.frontend import FloatArray
from onebest_training.batches import pad_frames
from onebest_training.beam import SearchOptions, beam_search
from onebest_training.checkpoint import load_model
from onebest_training.features import SAMPLES, find_front_end
from onebest_training.language_model import LanguageModel, fuse, load_language_model
from onebest_training.lattice import transducer_loss_from_planes, viterbi
from onebest_training.parallel import find_device
from onebest_training.strict import require
from onebest_training.targets import TeacherPath, make_path
from onebest_training.transducer import BLANK


@dataclass(frozen=True)
class TargetOptions:
    """What is wanted of a teacher.

    Attributes:
        kept: classes that are kept at a node; the others' mass is kept as one.
        hypotheses: paths of an utterance whose labels are searched for, at most.
        search: beam and weight of the language model.
    """

    kept: int = 16
    hypotheses: int = 1
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        require(self.kept > 0, "kept above 0")
        require(0 < self.hypotheses <= self.search.beam, "hypotheses from 1 to the beam")


class Teacher:
    """A checkpoint at full context, with a language model or without.

    Args:
        path: the checkpoint, of a model on log-mel features or on a pre-trained encoder.
        options: what is wanted.
        language_model: path of a language model of the same tokens, or None.
        device: to run on.

    Attributes:
        tokens: the vocabulary.
        front_end: makes of samples what ``encode`` takes.
        encoder: sizes of the encoder, by which a store is told to hold just that.
        digest: hash of all that the targets depend on but the options: checkpoint, front end, language model.

    Raises:
        ConfigError: the language model has another vocabulary, or a weight and no model, the front end does
            not fit or is not the one it was trained on, or there is no such device.
        ModelError: a file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        options: TargetOptions,
        language_model: Path | None = None,
        device: str = "cpu",
    ):
        fuses = options.search.language_model_weight > 0
        require(fuses == (language_model is not None), "a language model and its weight, or neither")
        self._model, self.tokens, checkpoint = load_model(path)
        self._device, self._options = find_device(device), options
        self._model.to(self._device)
        self.encoder = self._model.config.encoder
        trains_along = self.encoder.pretrained and not self.encoder.frozen
        self.front_end = find_front_end(SAMPLES if trains_along else self.encoder.pretrained)
        if checkpoint.front_end and self.front_end.digest != checkpoint.front_end:
            raise ConfigError(
                f"{path} was trained on another {self.encoder.pretrained} ({checkpoint.front_end[:12]}) than "
                f"is there now ({self.front_end.digest[:12]}). Put that one back."
            )
        self._language_model: LanguageModel | None = None
        parts = [hashlib.sha256(path.read_bytes()).hexdigest(), str(self.front_end.description)]
        if language_model is not None:
            self._language_model = load_language_model(language_model, self.tokens).to(self._device)
            parts.append(self._language_model.digest)
        self.digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @torch.inference_mode()
    def encode(self, features: list[FloatArray]) -> tuple[Tensor, Tensor]:
        """Return projected encoder frames [B, T, J] of utterances, and their counts [B].

        Args:
            features: of each, [F, width], made by the front end.
        """
        padded, lengths = pad_frames(features, [0] * len(features), self.front_end.layout)
        lengths = lengths.to(self._device)
        encoded = self._model.encoder(padded.to(self._device), lengths, 0, 0)
        return self._model.projection(encoded.float()), lengths

    def search(self, projected: Tensor, lengths: Tensor) -> list[list[tuple[int, ...]]]:
        """Return the labels of the best hypotheses of each utterance of ``encode``, the best first."""
        found = beam_search(self._model, projected, lengths, self._options.search, self._language_model)
        return [[h.labels for h in hypotheses[: self._options.hypotheses]] for hypotheses in found]

    @torch.inference_mode()
    def path(self, projected: Tensor, labels: tuple[int, ...]) -> TeacherPath:
        """Return the best path of labels through the lattice of one utterance, and what is likely on it.

        With a language model the labels' probabilities at nodes that emit one are
        P(v) P_LM(v | labels before)^w, scaled to the mass that they had together; blank nodes are left as
        they are. The score is that of all paths, with the language model's share.

        Args:
            projected: of ``encode``, without the frames behind the utterance's end, [T, J].
            labels: U of them.

        Raises:
            DataError: the labels are none of the vocabulary's.
        """
        if labels and not 0 < min(labels) <= max(labels) < len(self.tokens):
            raise DataError(
                f"labels {min(labels)} to {max(labels)} are not all from 1 to {len(self.tokens) - 1}."
            )
        wanted = torch.tensor([labels], dtype=torch.int64, device=self._device)
        predicted = self._model.predictor(self._model.predictor.contexts(wanted))[0]
        log_probs = self._model.joiner(projected[:, None], predicted[None]).float().log_softmax(2)
        blank = log_probs[None, :, :, BLANK]
        label = log_probs[:, :-1].gather(2, wanted[0, None, :, None].expand(len(projected), -1, 1))[
            None, ..., 0
        ]
        sizes = torch.tensor([len(projected)]), torch.tensor([len(labels)])
        score = -float(transducer_loss_from_planes(blank, label, *sizes))
        tokens = path_tokens(viterbi(blank, label, *sizes)[0].tolist(), labels, len(projected))
        emits = torch.tensor(tokens, device=self._device) != BLANK
        on_path = log_probs[(~emits).cumsum(0) - (~emits).long(), emits.cumsum(0) - emits.long()]
        if self._language_model is not None and labels:
            weight = self._options.search.language_model_weight
            score += weight * self._language_model.score(labels)
            on_path[emits] = fuse(on_path[emits], weight * self._language_model.log_probs(labels))
        return _keep(on_path, tokens, min(self._options.kept, len(self.tokens)), score)


def path_tokens(frames: list[int], labels: tuple[int, ...], num_frames: int) -> list[int]:
    """Return what happens at each node of the path that emits the labels at these frames, blank or label."""
    tokens: list[int] = []
    for frame in range(num_frames):
        tokens += [label for label, at in zip(labels, frames, strict=True) if at == frame]
        tokens.append(BLANK)
    return tokens


def _keep(log_probs: Tensor, tokens: list[int], kept: int, score: float) -> TeacherPath:
    """Make a path of the ``kept`` likeliest classes of log_probs [N, V]."""
    ordered, ids = log_probs.double().sort(stable=True, dim=1, descending=True)
    return make_path(
        torch.tensor(tokens).numpy().astype("int32"),
        ids[:, :kept].cpu().numpy().astype("int32"),
        ordered[:, :kept].cpu().numpy().astype("float16"),
        ordered[:, kept:].logsumexp(1).cpu().numpy().astype("float16"),
        score,
    )
