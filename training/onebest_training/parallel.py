"""The processes that train one model together, as torchrun starts them; a single one needs no torchrun.

Each holds the whole model, takes its share of a step's batches, and adds up gradients with the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import distributed, nn

from onebest.errors import ConfigError
from onebest_training.strict import require

T = TypeVar("T")


class Processes:
    """This process among all of a run, with the device it computes on.

    Args:
        name: of the device: cpu, cuda or cuda:N. Of several processes each takes the cuda device of its local
            rank.

    Attributes:
        rank: which of them this is; the first one, 0, logs and saves.
        size: how many there are.
        device: where this one computes.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(self, name: str = "cpu"):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = find_device(name)
        if self.size == 1:
            return
        if self.device.type == "cuda":
            self.device = find_device(f"cuda:{os.environ['LOCAL_RANK']}")
            torch.cuda.set_device(self.device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        """Whether this one logs and saves."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return each value's sum over the processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        sums: list[float] = total.tolist()
        return sums

    def gather(self, value: T) -> list[T]:
        """Return what each process gave, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        distributed.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient its sum over the processes; one that no process has stays away."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        present = torch.tensor([float(p.grad is not None) for p in trained], device=self.device)
        flat = torch.cat([present, *(part.flatten() for part in parts)])
        distributed.all_reduce(flat)
        present, *sums = torch.split(flat, [len(trained), *(p.numel() for p in trained)])
        for parameter, count, gradient in zip(trained, present.tolist(), sums, strict=True):
            parameter.grad = gradient.view_as(parameter) if count else None


def leave() -> None:
    """End this process's part in the group, if it has one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def set_threads(count: int) -> None:
    """Compute with so many CPU threads; 0 leaves it at all cores.

    Raises:
        ConfigError: the count is below 0.
    """
    require(count >= 0, f"threads of 0 or more, not {count}")
    if count:
        torch.set_num_threads(count)


def find_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ConfigError: it is no name of one, or there is none here.
    """
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise ConfigError(f"device {name!r}: expected cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch finds no CUDA device here. Use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device {name!r}: torch finds {count} here, from cuda:0 to cuda:{count - 1}.")
    return device
