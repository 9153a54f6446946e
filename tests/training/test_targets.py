"""Targets: what is a path and what is not."""

from dataclasses import replace

import numpy as np
import pytest

from onebest.errors import DataError
from onebest_training.targets import TeacherPath


def make_path(tokens: list[int], kept: int = 3, score: float = -1.0, seed: int = 0) -> TeacherPath:
    """The path that a sequence of blanks and labels makes, with random classes at its nodes."""
    rng = np.random.default_rng(seed)
    emits = np.array(tokens) != 0
    log_probs = np.log(rng.dirichlet(np.ones(kept + 1), len(tokens)))
    top = -np.sort(-log_probs[:, :kept], 1)
    return TeacherPath(
        frames=(np.cumsum(~emits) - ~emits).astype(np.int32),
        labels=(np.cumsum(emits) - emits).astype(np.int32),
        tokens=np.array(tokens, np.int32),
        top_ids=np.array([rng.permutation(10)[:kept] for _ in tokens], np.int32),
        top_log_probs=top.astype(np.float16),
        rest_log_prob=log_probs[:, kept].astype(np.float16),
        score=score,
    )


def test_a_path_tells_its_frames_and_its_reference() -> None:
    path = make_path([0, 4, 5, 0, 0, 7, 0])
    assert path.frames.tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert path.labels.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert path.num_frames == 4
    assert path.reference == (4, 5, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": np.array([0, 0, 0, 1], np.int32)},
        {"labels": np.array([0, 1, 1, 1], np.int32)},
        {"tokens": np.array([0, 0, 4, 0], np.int32)},
        {"tokens": np.array([0, -4, 0, 0], np.int32)},
    ],
)
def test_nodes_that_are_no_path_are_refused(change: dict[str, np.ndarray]) -> None:
    path = make_path([0, 4, 0, 0])
    with pytest.raises(DataError, match="no path"):
        replace(path, **change)


def test_a_path_ends_with_a_blank() -> None:
    with pytest.raises(DataError, match="the end is blank"):
        make_path([0, 4])


def test_shapes_and_types_are_held_to() -> None:
    path = make_path([0, 4, 0])
    with pytest.raises(DataError, match=r"top_log_probs: expected float16 \[3, 3\]"):
        replace(path, top_log_probs=path.top_log_probs.astype(np.float32))
    with pytest.raises(DataError, match=r"frames: expected int32 \[3\]"):
        replace(path, frames=path.frames[:2])
    with pytest.raises(DataError, match="not a number"):
        replace(path, score=float("nan"))
