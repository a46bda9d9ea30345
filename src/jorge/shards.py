"""Which part of a parameter each process holds: pure, from the shapes of the tensor and of the mesh and its placements.

A placement of `torch.distributed.tensor` cuts a tensor along one of its dims into as many chunks as the mesh has
processes along one of its own, as `torch.chunk` does: `ceil(size / processes)` each, the last ones shorter or empty.
What a process holds after all of them is a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from jorge.blocks import row_dims


@dataclass(frozen=True)
class Box:
    """A part of a tensor: where it begins, and how long it is, along each dim."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether it has no elements."""
        return 0 in self.size

    def meeting(self, other: Box) -> Box:
        """What it has in common with another box of the same tensor."""
        begin = tuple(map(max, self.offset, other.offset))
        ends = zip(self.offset, self.size, other.offset, other.size, strict=True)
        return Box(begin, tuple(max(0, min(a + m, b + n) - o) for (a, m, b, n), o in zip(ends, begin, strict=True)))

    def within(self, other: Box) -> Box:
        """The same, as seen from the beginning of a box that it lies in."""
        return Box(tuple(a - b for a, b in zip(self.offset, other.offset, strict=True)), self.size)


@dataclass(frozen=True)
class Segment:
    """What is held here of one of the matrices that a sharded parameter holds.

    Args:
        number: of the matrix in the parameter.
        where: for each dim of what is held of the parameter, where it begins and how long it is.
        shape: of it, as a part of the matrix' own tensor.
    """

    number: int
    where: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """The view of what is held of parameters, `[*count, *local]`, that has its elements, `[*count, *shape]`."""
        several = tensor.dim() - len(self.where)
        for dim, (begin, length) in enumerate(self.where, several):
            tensor = tensor.narrow(dim, begin, length)
        return tensor.reshape(*tensor.shape[:several], *self.shape)


@dataclass(frozen=True)
class Shards:
    """What of a parameter each process of a group holds.

    Args:
        boxes: of each process, in the order of their ranks in the group.
        rank: of this process in the group.
    """

    boxes: tuple[Box, ...]
    rank: int

    @property
    def local(self) -> tuple[int, ...]:
        """The shape of what is held here."""
        return self.boxes[self.rank].size

    @property
    def speaks(self) -> bool:
        """Whether this process is the first of those that hold what it holds: a sum over processes counts it once."""
        return self.boxes.index(self.boxes[self.rank]) == self.rank

    def matrices(self, shape: tuple[int, ...]) -> tuple[Box, ...]:
        """The boxes in the matrix that a parameter of `shape` is read as (:func:`jorge.blocks.matrix_shape`).

        Raises:
            ValueError: a box of the tensor is none of the matrix: what is cut is no first dim of its rows or columns.
        """
        return tuple(_in_matrix(box, shape) for box in self.boxes)

    def segment(self, number: int, shape: tuple[int, ...], part: tuple[int, ...]) -> tuple[Shards, Segment]:
        """What each process holds of one of the matrices of a parameter, and what is held of it here.

        Args:
            number: of the matrix.
            shape: of the parameter.
            part: of each of its matrices (:func:`jorge.routing.divided`).
        """
        batch = len(shape) - len(part)
        index, split = divmod(number, shape[batch] // part[0])
        place = []
        for size in reversed(shape[:batch]):
            index, at = divmod(index, size)
            place.append(at)
        whole = Box((*reversed(place), split * part[0], *(0,) * (len(part) - 1)), (*(1,) * batch, *part))
        common = [box.meeting(whole) for box in self.boxes]
        boxes = []
        for each in common:
            inside = each.within(whole)
            held = inside.size[batch:] if all(inside.size[:batch]) else (0, *inside.size[batch + 1 :])
            boxes.append(Box(inside.offset[batch:], held))
        mine, here = self.boxes[self.rank], common[self.rank]
        begins = (min(b, n) for b, n in zip(here.within(mine).offset, mine.size, strict=True))
        where = tuple(zip(begins, here.size, strict=True))
        return Shards(tuple(boxes), self.rank), Segment(number, where, boxes[self.rank].size)


def _in_matrix(box: Box, shape: tuple[int, ...]) -> Box:
    rows = row_dims(shape)
    sides = []
    for dims in (range(rows), range(rows, len(shape))):
        long = [d for d in dims if shape[d] != 1]
        cut = [d for d in long if box.size[d] != shape[d]]
        if cut and cut != long[:1]:
            raise ValueError(f"it is cut along dim {cut[-1]}")
        inner = math.prod(shape[d] for d in long[1:])
        first = long[0] if long else None
        gone = any(box.size[d] == 0 for d in dims)
        length = 0 if gone else (box.size[first] if first is not None else 1) * inner
        sides.append(((box.offset[first] if first is not None else 0) * inner, length))
    return Box((sides[0][0], sides[1][0]), (sides[0][1], sides[1][1]))


def boxes(shape: Sequence[int], mesh: Sequence[int], placements: Sequence[Any]) -> list[Box]:
    """The box of each process of a mesh, in the order of its flattened ranks.

    Args:
        shape: of the whole tensor.
        mesh: the shape of the mesh.
        placements: of `torch.distributed.tensor`, one for each dim of the mesh.

    Raises:
        ValueError: a placement that is neither replicated nor a plain shard, or a strided one other than what
            `fully_shard` makes of a parameter that tensor parallelism has cut along the same dim.

    >>> from torch.distributed.tensor import Replicate, Shard
    >>> [box.offset for box in boxes((5, 4), (2,), [Shard(0)])], boxes((5, 4), (2,), [Shard(0)])[1].size
    ([(0, 0), (3, 0)], (2, 4))
    >>> len(set(boxes((5, 4), (2, 2), [Replicate(), Shard(1)])))
    2
    """
    order = _order(tuple(mesh), placements)
    found = []
    for place in product(*map(range, mesh)):
        offset, size = [0] * len(shape), list(shape)
        for axis in order:
            dim = placements[axis].dim % len(shape) if shape else 0
            chunk = -(-size[dim] // mesh[axis])
            begin = min(size[dim], chunk * place[axis])
            offset[dim] += begin
            size[dim] = min(size[dim], begin + chunk) - begin
        found.append(Box(tuple(offset), tuple(size)))
    return found


def _order(mesh: tuple[int, ...], placements: Sequence[Any]) -> list[int]:
    """The mesh's dims that cut, in the order in which they do.

    A strided shard is cut after the later dims of the mesh: the whole of what they leave here is cut once more.
    """
    plain: list[int] = []
    strided: list[int] = []
    for axis, placement in enumerate(placements):
        name = type(placement).__name__
        if name == "Shard":
            plain.append(axis)
        elif name == "_StridedShard":
            later = [a for a in range(axis + 1, len(mesh)) if getattr(placements[a], "dim", None) == placement.dim]
            if placement.split_factor != math.prod(mesh[a] for a in later):
                raise ValueError(f"{placement} is strided otherwise than fully_shard does after tensor parallelism")
            strided.append(axis)
        elif name != "Replicate":
            raise ValueError(f"{placement} is not supported")
    return plain + strided[::-1]
