"""Time and memory of the transducer loss, forward and backward, beside torchaudio's on the same machine.

    python benchmarks/loss.py [--quick]

Times are medians over pairs of runs, ours and theirs in turn, with one thread each, since
torchaudio's kernel uses no more; further columns are ours with every thread, and on a band (one thread).
Memory is how far each, alone in a fresh process, raises the peak resident size above what it was with
the logits in place; the gradient of the logits counts. The last line is JSON; its two ratios are those
of the largest size.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchaudio
from machine import describe_machine, describe_versions
from torch import Tensor

from onebest_training.band import band_starts, banded_transducer_loss
from onebest_training.lattice import transducer_loss

BAND_WIDTH = 5


@dataclass(frozen=True)
class Size:
    """One problem: utterances, frames, labels, vocabulary; ragged has lengths from half to all of it."""

    batch: int
    frames: int
    labels: int
    vocabulary: int
    ragged: bool = False

    def __str__(self) -> str:
        ragged = " ragged" if self.ragged else ""
        return f"({self.batch}, {self.frames}, {self.labels}, {self.vocabulary}){ragged}"


QUICK = [Size(2, 50, 10, 100), Size(4, 100, 20, 200)]
SIZES = [
    Size(4, 100, 20, 100),
    Size(8, 200, 40, 500),
    Size(8, 400, 60, 500, ragged=True),
    Size(8, 400, 60, 500),
]

Problem = tuple[Tensor, Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes only")
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each side (default: %(default)s)")
    parser.add_argument("--memory-of", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # torchaudio announces on every call that rnnt_loss will move
    if options.memory_of:
        print(peak_memory_mb(LOSSES[options.memory_of], Size(**options.size)))
        return
    print(
        f"{'B, T, U, V':28}{'ours ms':>9}{'theirs ms':>11}{'ours MB':>9}{'theirs MB':>11}"
        f"{'threads ms':>12}{'band ms':>9}"
    )
    rows = [measure(size, options.pairs) for size in (QUICK if options.quick else SIZES)]
    print(json.dumps(summary(rows)))


def measure(size: Size, pairs: int) -> dict[str, object]:
    """One row of the table, printed as it comes."""
    ours_mb, theirs_mb = (memory_in_fresh_process(name, size) for name in LOSSES)
    problem = make_problem(size)
    difference = (transducer_loss(*problem) - torchaudio_loss(*problem)).abs().max().item()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(seconds(transducer_loss, problem))
        theirs.append(seconds(torchaudio_loss, problem))
    band_ms = 1000 * statistics.median(band_seconds(problem) for _ in range(pairs))
    torch.set_num_threads(threads)
    threaded_ms = 1000 * statistics.median(seconds(transducer_loss, problem) for _ in range(pairs))
    ours_ms, theirs_ms = 1000 * statistics.median(ours), 1000 * statistics.median(theirs)
    columns = (
        f"{ours_ms:9.1f}{theirs_ms:11.1f}{ours_mb:9.1f}{theirs_mb:11.1f}{threaded_ms:12.1f}{band_ms:9.1f}"
    )
    print(f"{size!s:28}{columns}", flush=True)
    return {
        "size": asdict(size),
        "ours_ms": round(ours_ms, 2),
        "torchaudio_ms": round(theirs_ms, 2),
        "ours_mb": round(ours_mb, 1),
        "torchaudio_mb": round(theirs_mb, 1),
        "ours_all_threads_ms": round(threaded_ms, 2),
        "band_ms": round(band_ms, 2),
        "band_width": BAND_WIDTH,
        "max_loss_difference": difference,
        "speedup": round(theirs_ms / ours_ms, 2),
        "memory_ratio": round(ours_mb / theirs_mb, 3),
    }


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """The JSON line; its headline numbers are those of the last row, the largest size."""
    return {
        "benchmark": "loss",
        "speedup_vs_torchaudio": rows[-1]["speedup"],
        "memory_vs_torchaudio": rows[-1]["memory_ratio"],
        "rows": rows,
        "machine": {**describe_machine(), "threads": torch.get_num_threads()},
        "versions": describe_versions("torch", "torchaudio"),
    }


def make_problem(size: Size) -> Problem:
    """Logits ``[B, T, U+1, V]``, labels ``[B, U]`` and both lengths ``[B]``, the same every time."""
    torch.manual_seed(0)
    logits = torch.empty(size.batch, size.frames, size.labels + 1, size.vocabulary).normal_().requires_grad_()
    labels = torch.randint(1, size.vocabulary, (size.batch, size.labels), dtype=torch.int32)
    share = torch.linspace(1.0, 0.5 if size.ragged else 1.0, size.batch)
    return logits, labels, (size.frames * share).int(), (size.labels * share).int()


def torchaudio_loss(logits: Tensor, labels: Tensor, frame_lengths: Tensor, label_lengths: Tensor) -> Tensor:
    loss: Tensor = torchaudio.functional.rnnt_loss(
        logits, labels, frame_lengths, label_lengths, blank=0, reduction="none"
    )
    return loss


LOSSES: dict[str, Loss] = {"ours": transducer_loss, "torchaudio": torchaudio_loss}


def seconds(loss: Loss, problem: Problem) -> float:
    start = time.perf_counter()
    torch.autograd.grad(loss(*problem).sum(), problem[0])
    return time.perf_counter() - start


def band_seconds(problem: Problem) -> float:
    """Time of the same problem on a band around evenly spread labels."""
    logits, labels, frame_lengths, label_lengths = problem
    label = torch.arange(labels.shape[1])
    path = ((2 * label + 1) * frame_lengths[:, None]) // (2 * label_lengths[:, None])
    starts = band_starts(path, frame_lengths, label_lengths, BAND_WIDTH)
    band = torch.randn(*starts.shape, BAND_WIDTH, logits.shape[3], requires_grad=True)
    start = time.perf_counter()
    loss = banded_transducer_loss(band, labels, starts, frame_lengths, label_lengths)
    torch.autograd.grad(loss.sum(), band)
    return time.perf_counter() - start


def memory_in_fresh_process(name: str, size: Size) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--size", json.dumps(asdict(size))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_memory_mb(loss: Loss, size: Size) -> float:
    """Growth of this process's peak resident size while the loss and the gradient are computed."""
    seconds(loss, make_problem(Size(1, 4, 2, 8)))  # thread pools and lazily loaded code are not the loss's
    problem = make_problem(size)
    before = peak_resident_mb()
    seconds(loss, problem)
    return peak_resident_mb() - before


def peak_resident_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak on Linux can be one inherited from the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
