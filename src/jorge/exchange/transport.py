"""The collectives of a process group that a step takes, on torch's own engine; it counts what it sends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


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

    def gather(self, mine: Tensor) -> Tensor:
        """What each process has, one after the other: `[size, *mine]`."""
        self._count(mine.nbytes * (self.size - 1))
        found = mine.new_empty(self.size * mine.numel())
        dist.all_gather_into_tensor(found, mine.reshape(-1), group=self.group)
        return found.view(self.size, *mine.shape)

    def swap(self, sent: Tensor, sizes: Sequence[int], coming: Sequence[int]) -> Tensor:
        """Give each process its part of a flat tensor, and get one from each.

        Args:
            sent: the parts one after the other.
            sizes: of the parts.
            coming: of those that come.
        """
        self._count((sum(sizes) - sizes[self.rank]) * sent.element_size())
        found = torch.empty(sum(coming), dtype=sent.dtype, device=sent.device)
        dist.all_to_all_single(found, sent, list(coming), list(sizes), group=self.group)
        return found

    def _count(self, nbytes: int) -> None:
        self.calls += 1
        self.sent += nbytes


def summed_bytes(nbytes: int, size: int) -> int:
    """What each of `size` processes in a ring sends for the sum of a tensor."""
    return 2 * nbytes * (size - 1) // size
