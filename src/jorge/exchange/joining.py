"""Uneven inputs under DDP: `Join([model, optimizer])`, in which some processes stop before others.

A process that has joined has no gradients any more. From then on each of the others refreshes all preconditioners by
itself, and sends nothing; when all have joined, those that stopped early take the state of the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from jorge.exchange.domains import Distribution, is_sharded
from jorge.exchange.transport import Transport

if TYPE_CHECKING:
    from torch.distributed.algorithms.join import Joinable, JoinHook
else:
    Joinable = JoinHook = object  # they are imported where somebody joins, if torch has them


class Joins(Joinable):
    """What `torch.distributed.algorithms.join.Join` asks of an optimizer."""

    distribution: Distribution
    param_groups: list[dict[str, Any]]
    _join_config: Any = None  # torch's context sets it

    def join_hook(self, **kwargs: Any) -> Hook:
        """What a process does after its last step.

        Raises:
            RuntimeError: the others cannot do without it, as state or parameters lie in parts.
        """
        if self.distribution.mode == "shard" or any(is_sharded(p) for g in self.param_groups for p in g["params"]):
            raise RuntimeError(
                "a process that joins keeps state that the others need: give distributed='replicate' or None, and "
                "parameters that are not sharded"
            )
        return Hook(self)

    @property
    def join_device(self) -> torch.device:
        """Of the first parameter."""
        device: torch.device = self.param_groups[0]["params"][0].device
        return device

    @property
    def join_process_group(self) -> Any:
        """That of the processes that hold the same parameters."""
        return self.distribution.group if self.distribution.group is not None else dist.group.WORLD

    def tell_that_it_goes_on(self) -> None:
        """Within such a context, hear whether all processes still take steps; it waits for them."""
        config = self._join_config
        asks = config is not None and config.enable and self.distribution.mode is not None
        if asks and not bool(_least(self, 1)):
            self.distribution.work_alone(True)


class Hook(JoinHook):
    """A process that has joined, and goes along.

    Args:
        optimizer: of this process.
    """

    def __init__(self, optimizer: Joins) -> None:
        self._optimizer, self._stopped = optimizer, False

    def main_hook(self) -> None:
        """In place of a step: tell those who take it that they are fewer."""
        self._stopped = True
        if self._optimizer.distribution.mode is not None:
            _least(self._optimizer, 0)

    def post_hook(self, is_last_joiner: bool) -> None:
        """When all have joined: those that stopped early take the state of a last one."""
        optimizer: Any = self._optimizer
        transport = Transport(optimizer.join_process_group)
        mine = torch.tensor(
            [transport.rank if is_last_joiner else -1, int(self._stopped)], device=optimizer.join_device
        )
        last, stopped = transport.gather(mine).wait().amax(0).tolist()
        if stopped:
            source = dist.get_global_rank(transport.group, last)
            given = [optimizer.state_dict() if transport.rank == last else None]
            dist.broadcast_object_list(given, source, group=transport.group, device=optimizer.join_device)
            if self._stopped:
                optimizer.load_state_dict(given[0])
            optimizer.distribution.work_alone(False)
        optimizer._join_config = None


def _least(optimizer: Joins, value: int) -> Tensor:
    return Transport(optimizer.join_process_group).least(torch.tensor(value, device=optimizer.join_device))
