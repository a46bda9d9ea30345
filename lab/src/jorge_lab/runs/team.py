"""Processes that train one run together, each on its share of every batch: those that `torchrun` has started.

The first does all that one process does: it reads, decides, writes and prints. It tells the others of each run, and
they train along (:mod:`jorge_lab.runs.following`). Gradients and losses are averaged, so that each process takes the
step that one would take. As under DistributedDataParallel, batch norms see the share of their process, and the running
means that count are those of the first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jorge_lab.contenders.contender import Options, Setting
from jorge_lab.errors import UsageError
from jorge_lab.tasks.task import Batch

T = TypeVar("T")


class ElsewhereError(Exception):
    """Another process of the team has failed, or was stopped; what failed is said there."""


@dataclass(frozen=True)
class Told:
    """A run, in plain values: the arguments of :func:`jorge_lab.runs.run.train` that are the same in all processes."""

    task: str
    contender: str
    options: Options
    seed: int
    steps: int
    setting: Setting
    repetition: int
    capture: bool


@dataclass(frozen=True)
class Team:
    """The processes, seen from one of them; all methods but the first two do nothing where there is one alone.

    Args:
        rank: of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Team:
        """The team of torch's default process group; one process where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def tell(self, told: Told | None) -> None:
        """Let the others train along; None: let them end. The first process alone calls it, and they :meth:`hear`."""
        if self.first:
            self.shared(told)

    def hear(self) -> Told | None:
        """What the first process tells."""
        return self.shared(None)

    def shared(self, value: T) -> T:
        """The first process's value."""
        if self.size == 1:
            return value
        values = [value if self.first else None]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        (found,) = values
        return found  # type: ignore[return-value]

    def share(self, batch: Batch, seed: int, step: int) -> Batch:
        """This process's part of a batch; what it draws from here on is not what the others draw.

        Raises:
            UsageError: the batch does not divide.
        """
        if self.size == 1:
            return batch
        check_divides(len(batch[0]), self.size)
        if self.rank:  # the first draws what one process would draw
            torch.manual_seed(_seed(seed, step, self.rank))
        return tuple(part.chunk(self.size)[self.rank] for part in batch)

    def average(self, model: nn.Module, loss: Tensor) -> Tensor:
        """Average the gradients of the model in place, and the loss, over the processes, in one message.

        A parameter without a gradient here has one of zeros where another process has one.
        """
        if self.size == 1:
            return loss
        params = [p for p in model.parameters() if p.requires_grad]
        given = torch.tensor([p.grad is not None for p in params], dtype=loss.dtype, device=loss.device)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
        flat = torch.cat([*(g.flatten() for g in grads), given, loss.detach().view(1)])
        dist.all_reduce(flat)
        flat /= self.size
        *averages, some, mean = torch.split(flat, [*(g.numel() for g in grads), len(given), 1])
        for p, grad, average, anywhere in zip(params, grads, averages, some.tolist(), strict=True):
            if anywhere:
                p.grad = grad.copy_(average.view_as(grad))
        return mean.view(())

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where one process raises within, the others raise at its end, so that none waits for one that has left.

        Raises:
            ElsewhereError: another process has raised.
        """
        if self.size == 1:
            yield
            return
        failed = torch.ones(1)
        try:
            yield
            failed.zero_()
        finally:
            dist.all_reduce(failed, dist.ReduceOp.MAX)
        if failed.item():
            raise ElsewhereError("another process has failed")

    @contextmanager
    def same_draws(self, seed: int, step: int, device: torch.device) -> Iterator[None]:
        """What is drawn within is the same in all processes, as what an optimizer draws must be."""
        if self.size == 1:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_seed(seed, step, self.size))
            yield

    def check_alike(self, model: nn.Module, name: str) -> None:
        """See that all processes have the same weights, to the bit.

        Raises:
            RuntimeError: they have not, with the name of the optimizer.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for p in model.parameters():
            digest.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, digest.hexdigest())
        if len(set(found)) > 1:
            raise RuntimeError(f"{name} has taken other steps in other processes: compare it without torchrun")


def check_divides(size: int, processes: int, name: str = "the task") -> None:
    """See that a batch divides evenly among processes.

    Raises:
        UsageError: it does not.
    """
    if size % processes:
        fits = max(n for n in range(1, processes) if size % n == 0)
        raise UsageError(
            f"{name} takes batches of {size}, which {processes} processes cannot share evenly: give torchrun "
            f"--nproc-per-node {fits} or another divisor of {size}"
        )


@contextmanager
def assembled(device: torch.device) -> Iterator[Team]:
    """The processes that `torchrun` has started, as a team; at the end the first lets the others end."""
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE") == "1":
        yield Team()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    team = Team.here()
    try:
        yield team
    finally:
        with suppress(RuntimeError):  # one that is gone is not told
            team.tell(None)
        dist.destroy_process_group()


def _seed(*numbers: int) -> int:
    """A seed of its own for each such list."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
