"""Whether bfloat16 is the faster type on a CPU: some multiply it at full rate, others slower than float32."""

from __future__ import annotations

import logging
import time
from statistics import median

import torch

log = logging.getLogger(__name__)

#: Rows, inputs and outputs of the product that is timed: a feed-forward layer over 40 s of audio.
_SIZES = (1000, 384, 1536)
_REPEATS = 5
#: Below this the time that bfloat16 takes is not made up for by the memory that it spares.
_LEAST_GAIN = 0.9


def measure_gain() -> float:
    """Return the time of a product in float32 over that in bfloat16, medians on the CPU."""
    rows, inputs, outputs = _SIZES
    taken = {}
    for element in (torch.float32, torch.bfloat16):
        data, weight = torch.ones(rows, inputs, dtype=element), torch.ones(outputs, inputs, dtype=element)
        torch.nn.functional.linear(data, weight)
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            torch.nn.functional.linear(data, weight)
            times.append(time.perf_counter() - start)
        taken[element] = median(times)
    return taken[torch.float32] / taken[torch.bfloat16]


def advise(bf16: bool, device: torch.device) -> None:
    """Log a warning if a run would be faster without its bfloat16."""
    if not bf16 or device.type != "cpu":
        return
    gain = measure_gain()
    if gain < _LEAST_GAIN:
        log.warning(
            "a product in bfloat16 takes %.1f times as long as in float32 on this processor. "
            "With bf16 = false in the configuration this run would be faster.",
            1 / gain,
        )
