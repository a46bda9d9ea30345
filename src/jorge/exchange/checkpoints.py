"""The state of parameters with owners in the form of a checkpoint, which is the same whatever the processes are.

What is like the parameter is sharded as it is. Preconditioners, `[blocks, …]`, are sharded along their blocks in even
chunks, whoever owns them, so that `torch.distributed.checkpoint` can read them into any other number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jorge.arrange import ParamSpec, WorkSet
from jorge.exchange.owned import Owned
from jorge.shards import boxes


def whole(value: Tensor) -> Tensor:
    """A tensor, of a DTensor all of it; all processes have to ask."""
    if not hasattr(value, "full_tensor"):
        return value
    given: Any = value
    found: Tensor = given.to(given.device_mesh.device_type).full_tensor()  # a copy on a CPU has no processes to ask
    return found


class Saver:
    """Between the state of one parameter here and its form in a checkpoint.

    Args:
        exchange: of its group.
        work_sets: of its group.
        place: of the parameter.
        p: the parameter.
        spec: of it.
    """

    def __init__(self, exchange: Owned, work_sets: Sequence[WorkSet], place: int, p: Tensor, spec: ParamSpec) -> None:
        self.exchange, self.p, self.spec = exchange, p, spec
        self._blocks: dict[int, list[int]] = {}
        for work in work_sets:
            for stack in work.stacks:
                start = before = 0
                for part, of in zip(stack.parts, (stack.of or stack).parts, strict=True):
                    group = work.sources[part.source]
                    if place in group.places:
                        blocks = of.grid.blocks * group.parts
                        first = before + group.places.index(place) * blocks
                        mine = stack.numbers[start : start + part.count]
                        self._blocks[part.number] = [n - first for n in mine if first <= n < first + blocks]
                    start += part.count
                    before += of.count

    def saved(self, name: str, value: Tensor, shape: tuple[int, ...], *, in_chunks: bool) -> Tensor:
        """A tensor of the state in the form of a checkpoint.

        Args:
            name: its key.
            value: what is here of it.
            shape: of the whole.
            in_chunks: whether preconditioners are sharded, or whole in each process.
        """
        if (blocks := self._of_grid(name)) is not None:
            full = torch.zeros(shape, dtype=value.dtype, device=value.device)
            if blocks:
                full[torch.tensor(blocks, device=value.device)] = value
            full = self.exchange.transport.sum(full)
            return self._chunk(full) if in_chunks else full
        if self.spec.shards is not None and tuple(shape) == self.spec.shape and _is_buffer(name):
            return _dtensor(value.clone(), self.p.device_mesh, self.p.placements, shape)  # type: ignore[attr-defined]
        return value.clone()

    def mine(self, name: str, value: Tensor) -> Tensor:
        """What is to be here of a tensor, from a whole one or one of a checkpoint; all processes have to ask."""
        if (blocks := self._of_grid(name)) is not None:
            full = whole(value)
            return full[torch.tensor(blocks, dtype=torch.int64, device=full.device)]
        if self.spec.shards is None or not _is_buffer(name):
            return whole(value)
        p: Any = self.p
        given: Any = value
        if hasattr(value, "full_tensor") and given.device_mesh == p.device_mesh and given.placements == p.placements:
            found: Tensor = given.to_local()
            return found
        box, full = self.spec.shards.boxes[self.spec.shards.rank], whole(value)
        for dim, (offset, size) in enumerate(zip(box.offset, box.size, strict=True)):
            full = full.narrow(dim, min(offset, full.shape[dim]), size)
        return full

    def _of_grid(self, name: str) -> list[int] | None:
        """The blocks that are here of a tensor of blocks."""
        number = name.rpartition(".")[2]
        return self._blocks.get(int(number), []) if "." in name and number.isdecimal() else None

    def _chunk(self, full: Tensor) -> Tensor:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import Shard

        mesh = getattr(self.p, "device_mesh", None)
        if mesh is None:
            mesh = DeviceMesh.from_group(self.exchange.transport.group, full.device.type)
        placements = [Shard(0)] * mesh.ndim
        shape = tuple(full.shape)
        box = boxes(shape, tuple(mesh.shape), placements)[_place(mesh)]
        mine = full.narrow(0, min(box.offset[0], shape[0]), box.size[0]).clone()
        return _dtensor(mine, mesh, placements, shape)


class SaverOfParts:
    """As :class:`Saver`, of a parameter of which each process holds some of the matrices, as many as the others.

    Args:
        p: the parameter.
        held: the shape of what is here of it.
    """

    def __init__(self, p: Tensor, held: tuple[int, ...]) -> None:
        self.p: Any = p
        self._times = p.shape[0] // held[0]

    def saved(self, name: str, value: Tensor, shape: tuple[int, ...], *, in_chunks: bool) -> Tensor:
        """A tensor of the state, sharded along its first dim, as the parameter is."""
        mine = value.clone().view(shape[0] // self._times, *shape[1:])
        return _dtensor(mine, self.p.device_mesh, self.p.placements, shape)

    def mine(self, name: str, value: Tensor) -> Tensor:
        """What is to be here of a tensor, from a whole one or one of a checkpoint."""
        given: Any = value
        if hasattr(value, "full_tensor"):
            if given.device_mesh == self.p.device_mesh and given.placements == self.p.placements:
                found: Tensor = given.to_local()
                return found
            value = whole(value)
        box = boxes(tuple(value.shape), tuple(self.p.device_mesh.shape), self.p.placements)[_place(self.p.device_mesh)]
        return value.narrow(0, box.offset[0], box.size[0])


def _place(mesh: Any) -> int:
    """Of this process among the flattened ranks of a mesh."""
    found: int = mesh.mesh.flatten().tolist().index(torch.distributed.get_rank())
    return found


def _is_buffer(name: str) -> bool:
    """Whether a tensor of the state is like the parameter."""
    return name in ("momentum_buffer", "exp_avg", "exp_avg_sq")


def _dtensor(local: Tensor, mesh: Any, placements: Any, shape: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)
