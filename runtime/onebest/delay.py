"""Emission delay: how much later a model brings out its tokens than a reference path has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onebest.results import FRAME_MS


class TimedToken(NamedTuple):
    """A token and the encoder frame that emits it."""

    token: int
    frame: int


class DelaySummary(NamedTuple):
    """Emission delay over many tokens, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p90_ms: float


def matched_delays(reference: Sequence[TimedToken], hypothesis: Sequence[TimedToken]) -> list[int]:
    """Return by how many frames each token of the hypothesis is later than in the reference.

    Tokens are matched by edit distance; what is inserted, deleted or substituted has no delay.
    """
    from kaldialign import align

    none, delays = -1, []
    timed, found = iter(reference), iter(hypothesis)
    for expected, came in align([t.token for t in reference], [t.token for t in hypothesis], none):
        due = next(timed).frame if expected != none else 0
        at = next(found).frame if came != none else 0
        if expected == came:
            delays.append(at - due)
    return delays


def summarize(delays: Sequence[int]) -> DelaySummary | None:
    """Return mean, median and 90th percentile of delays in frames; None if there are none."""
    if not delays:
        return None
    times = FRAME_MS * np.array(delays)
    return DelaySummary(float(times.mean()), float(np.median(times)), float(np.percentile(times, 90)))
