"""Which examples a process works on, and in which order.

No state of a random number generator is kept anywhere. The order of an epoch follows from the seed and the epoch; what
is drawn for an example from the seed, the epoch and the example; what is drawn in a step from the seed, the step and
the process. So a training that is resumed at any step goes on as if it had never stopped, with any number of workers.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

Batch = Any
Collate = Callable[[list[Any]], Batch]


def number(*of: int) -> int:
    """A seed that follows from whole numbers, alike on every machine."""
    return random.Random(" ".join(map(str, of))).getrandbits(63)


@dataclass(frozen=True)
class Job:
    """Who this process is: its rank, how many there are, its device."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """Over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


def moved(batch: Batch, args: argparse.Namespace, device: torch.device) -> Batch:
    """A batch on the device; batches of pictures in channels_last if asked for."""
    if isinstance(batch, Tensor):
        batch = batch.to(device, non_blocking=True)
        pictures = args.channels_last and batch.ndim == 4 and batch.is_floating_point()
        return batch.contiguous(memory_format=torch.channels_last) if pictures else batch
    if isinstance(batch, dict):
        return {name: moved(part, args, device) for name, part in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved(part, args, device) for part in batch)
    return batch


@dataclass(frozen=True)
class Order:
    """The order in which examples come, epoch after epoch without an end; what does not fill a step is left out.

    Args:
        length: of the data set.
        size: examples that a process takes at once.
        at_once: how many times that makes a step: processes × parts.
        seed: of the shuffling.
        alike: a class for each example; only those of one class are taken together.
    """

    length: int
    size: int
    at_once: int
    seed: int
    alike: Sequence[int] | None = None

    @cached_property
    def steps(self) -> int:
        """In an epoch."""
        alike = self.alike or [0] * self.length
        found = sum(alike.count(each) // self.size for each in set(alike)) // self.at_once
        if not found:
            raise SystemExit(f"{self.length} examples do not make a batch of {self.size * self.at_once}")
        return found

    def epoch(self, epoch: int) -> list[list[int]]:
        """What is taken at once, one after the other."""
        generator = torch.Generator().manual_seed(number(self.seed, epoch))
        waiting: dict[int, list[int]] = {}
        found = []
        for example in torch.randperm(self.length, generator=generator).tolist():
            kind = self.alike[example] if self.alike else 0
            waiting.setdefault(kind, []).append(example)
            if len(waiting[kind]) == self.size:
                found.append(waiting.pop(kind))
        return found

    def of(self, job: Job, first: int) -> Iterator[list[tuple[int, int]]]:
        """What a process takes at once from a step on: the epoch and the number of each example."""
        epoch, at = divmod(first, self.steps)
        while True:
            taken = self.epoch(epoch)
            for step in range(at, self.steps):
                for part in range(job.rank, self.at_once, job.size):
                    yield [(epoch, example) for example in taken[step * self.at_once + part]]
            epoch, at = epoch + 1, 0


@dataclass
class Drawn(Dataset[Any]):
    """A data set that is asked for epoch and number; what is random in an example follows from both and the seed."""

    data: Any
    seed: int

    def __getitem__(self, where: tuple[int, int]) -> Any:
        epoch, example = where
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(self.seed, epoch, example))
            return self.data[example]


def shares(
    data: Any, job: Job, args: argparse.Namespace, size: int, collate: Collate | None = None
) -> Iterator[tuple[Batch, int]]:
    """This process's part of a data set in batches, each with how many of its examples count.

    All processes get equally many batches, as the passes of a sharded model need all of them: the rest is filling.
    """
    mine = list(range(job.rank, len(data), job.size))
    filled = mine + [0] * (math.ceil(len(data) / job.size) - len(mine))
    loader = DataLoader(Subset(data, filled), size, collate_fn=collate, num_workers=args.workers)
    for k, batch in enumerate(loader):
        yield moved(batch, args, job.device), max(0, min(size, len(mine) - k * size))
