"""The collectives of a process group that a step takes, on torch's own engine; it counts what it sends."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Torch 2.13 has given it another name, and warns of the old one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass
class Coming:
    """A tensor that is on its way.

    Args:
        tensor: where it comes.
        handle: torch's, to wait for; `None` where it is there.
        sent: what has to be kept until then.
    """

    tensor: Tensor
    handle: dist.Work | None = None
    sent: Tensor | None = None

    def wait(self) -> Tensor:
        """The tensor, once it is there; on a GPU its stream waits, and not the host."""
        if self.handle is not None:
            self.handle.wait()
        self.handle = self.sent = None
        return self.tensor


class Transport:
    """A process group.

    Args:
        group: of torch.

    Attributes:
        rank, size: of this process in the group, and how many there are.
        calls: collectives so far.
        sent: bytes that this process has given to others so far, to each of them what it gets; of a sum what a ring
            sends, `2(size − 1)/size` of the tensor.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.calls = self.sent = 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place; the same bits in each."""
        self._count(summed_bytes(tensor.nbytes, self.size))
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def least(self, tensor: Tensor) -> Tensor:
        """The least over processes, in place."""
        self._count(summed_bytes(tensor.nbytes, self.size))
        dist.all_reduce(tensor, dist.ReduceOp.MIN, group=self.group)
        return tensor

    def gather(self, mine: Tensor) -> Coming:
        """What each process has, one after the other: `[size, *mine]`."""
        self._count(mine.nbytes * (self.size - 1))
        found, given = mine.new_empty(self.size * mine.numel()), mine.reshape(-1)
        handle = _all_gather(found, given, group=self.group, async_op=True)
        return Coming(found.view(self.size, *mine.shape), handle, given)

    def swap(self, sent: Tensor, sizes: Sequence[int], coming: Sequence[int]) -> Coming:
        """Give each process its part of a flat tensor, and get one from each.

        Args:
            sent: the parts one after the other.
            sizes: of the parts.
            coming: of those that come.
        """
        self._count((sum(sizes) - sizes[self.rank]) * sent.element_size())
        found = torch.empty(sum(coming), dtype=sent.dtype, device=sent.device)
        handle = dist.all_to_all_single(found, sent, list(coming), list(sizes), group=self.group, async_op=True)
        return Coming(found, handle, sent)

    def objects(self, mine: Any) -> list[Any]:
        """What each process has, of any kind that can be pickled, in the order of ranks; the host waits."""
        self._count(len(pickle.dumps(mine)) * (self.size - 1))
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self.group)
        return found

    def _count(self, nbytes: int) -> None:
        self.calls += 1
        self.sent += nbytes


def sent_dtype(asked: torch.dtype | None, compute: torch.dtype) -> torch.dtype:
    """In which directions are sent: what was asked for where that is of fewer bytes than the arithmetic's."""
    return compute if asked is None or asked.itemsize >= compute.itemsize else asked


def summed_bytes(nbytes: int, size: int) -> int:
    """What each of `size` processes in a ring sends for the sum of a tensor."""
    return 2 * nbytes * (size - 1) // size
