"""What a teacher says of utterances: for each the nodes of its best paths, with the classes it weighs there.

Axis legend: T teacher frames (40 ms), U labels, N nodes of a path (T + U), K classes kept at a node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onebest.errors import DataError

BLANK = 0
IntArray = npt.NDArray[np.int32]
HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True)
class TeacherPath:
    """One hypothesis of one utterance, as a path through the lattice; its nodes are in order.

    Attributes:
        frames: t of each node, from 0 to T-1, int32 [N].
        labels: u of each node, the labels emitted before it, int32 [N].
        tokens: what the teacher does there, int32 [N]: 0 is blank and leads to t+1, another one is label u+1
            and leads to u+1. The last one is blank.
        top_ids: the most likely classes, most likely first, int32 [N, K].
        top_log_probs: their log-probabilities, float16 [N, K].
        rest_log_prob: log of the mass of all other classes, float16 [N]; -inf where nothing is left.
        score: log-probability of the hypothesis; the N-best's weights are the softmax of their scores.

    Raises:
        DataError: shapes or types do not fit, or the nodes are no path.
    """

    frames: IntArray
    labels: IntArray
    tokens: IntArray
    top_ids: IntArray
    top_log_probs: HalfArray
    rest_log_prob: HalfArray
    score: float

    def __post_init__(self) -> None:
        nodes, kept = self.top_ids.shape if self.top_ids.ndim == 2 else (0, 0)
        expected = {
            "frames": (np.int32, (nodes,)),
            "labels": (np.int32, (nodes,)),
            "tokens": (np.int32, (nodes,)),
            "top_ids": (np.int32, (nodes, kept)),
            "top_log_probs": (np.float16, (nodes, kept)),
            "rest_log_prob": (np.float16, (nodes,)),
        }
        for name, (kind, shape) in expected.items():
            array = getattr(self, name)
            if array.dtype != kind or array.shape != shape or not array.size:
                raise DataError(
                    f"{name}: expected {np.dtype(kind)} {list(shape)} of at least one node and class, "
                    f"got {array.dtype} {list(array.shape)}."
                )
        emits = self.tokens != BLANK
        if (
            emits[-1]
            or self.tokens.min() < 0
            or not np.array_equal(self.labels, np.cumsum(emits) - emits)
            or not np.array_equal(self.frames, np.cumsum(~emits) - ~emits)
        ):
            raise DataError(
                "the nodes are no path: blank must lead to t+1, a label to u+1, the end is blank."
            )
        if np.isnan(self.top_log_probs).any() or np.isnan(self.rest_log_prob).any() or np.isnan(self.score):
            raise DataError("a log-probability is not a number.")

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.frames[-1]) + 1

    @property
    def reference(self) -> tuple[int, ...]:
        """The U labels of the path."""
        return tuple(map(int, self.tokens[self.tokens != BLANK]))
