"""Emission delay: how much later a model brings out its tokens than a reference path has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onebest.results import FRAME_MS, Token

#: Heads the columns of ``format_delay``.
DELAY_HEADING = f"  {'delay':>6}  {'p50':>5}  {'p90':>5}"


class TimedToken(NamedTuple):
    """A token and the encoder frame that emits it."""

    token: int
    frame: int


class DelaySummary(NamedTuple):
    """Emission delay over many tokens, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p90_ms: float

    def to_dict(self) -> dict[str, float]:
        """Return it by the names that results have."""
        return {"mean": self.mean_ms, "p50": self.p50_ms, "p90": self.p90_ms}


def timed_tokens(tokens: Iterable[Token], ids: Mapping[str, int]) -> list[TimedToken]:
    """Return tokens of a result with the encoder frames that emit them; ``ids`` are by spelling."""
    return [TimedToken(ids[token.token], round(1000 * token.start / FRAME_MS)) for token in tokens]


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


def format_delay(delay: Mapping[str, float] | None) -> str:
    """Return mean, median and 90th percentile as columns under ``DELAY_HEADING``."""
    if delay is None:
        return f"  {'-':>6}  {'-':>5}  {'-':>5}"
    return f"  {delay['mean']:6.0f}  {delay['p50']:5.0f}  {delay['p90']:5.0f}"
