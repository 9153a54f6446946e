"""Teacher's paths for tests: random ones, and those that name given probabilities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onebest_training.targets import TeacherPath


def path_nodes(emission_frames: list[int], num_frames: int) -> list[tuple[int, int]]:
    """The nodes (t, u) in order of the path that emits labels at these frames."""
    nodes, u = [], 0
    for t in range(num_frames):
        while u < len(emission_frames) and emission_frames[u] == t:
            nodes.append((t, u))
            u += 1
        nodes.append((t, u))
    return nodes


def make_path(
    reference: list[int],
    emission_frames: list[int],
    num_frames: int,
    log_probs: Tensor,
    kept: int,
    score: float = 0.0,
) -> TeacherPath:
    """A path with the ``kept`` likeliest classes of log_probs [T, U+1, V] at its nodes."""
    nodes = path_nodes(emission_frames, num_frames)
    frames, labels = (np.array(column, np.int32) for column in zip(*nodes, strict=True))
    following = np.append(labels[1:], labels[-1]) > labels
    tokens = np.where(following, np.array([*reference, 0])[labels], 0).astype(np.int32)
    here = log_probs[torch.from_numpy(frames).long(), torch.from_numpy(labels).long()]
    top, ids = here.sort(1, descending=True)
    rest = top[:, kept:].logsumexp(1).numpy().astype(np.float16)
    return TeacherPath(
        frames,
        labels,
        tokens,
        ids[:, :kept].numpy().astype(np.int32),
        top[:, :kept].numpy().astype(np.float16),
        rest,
        score,
    )


def random_log_probs(num_frames: int, num_labels: int, vocabulary: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_frames, num_labels + 1, vocabulary, generator=generator, dtype=torch.float64)
    return (2 * logits).log_softmax(2)


def random_path(
    reference: list[int], num_frames: int, vocabulary: int, kept: int = 3, seed: int = 0, score: float = 0.0
) -> TeacherPath:
    rng = np.random.default_rng(seed)
    emission_frames = sorted(rng.integers(num_frames, size=len(reference)).tolist())
    log_probs = random_log_probs(num_frames, len(reference), vocabulary, seed)
    return make_path(reference, emission_frames, num_frames, log_probs, kept, score)
