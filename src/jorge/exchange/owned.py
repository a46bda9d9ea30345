"""Each preconditioner is kept by one process alone, whoever holds the parameters, which may be sharded.

Averages of gradients come to the owners of strips of blocks (:mod:`jorge.exchange.strips`), and for a refresh the
gradients; directions go back. What is elementwise is done where the parameter's part lies, and norms are summed over
processes. No process ever has all gradients or all of the state, and the messages of a work set do not grow with the
number of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from jorge.arrange import ShapeGroup, WorkSet
from jorge.exchange import Alone
from jorge.exchange.routes import Piece, Routes, routes
from jorge.exchange.segments import firsts, held, segmented, sharded
from jorge.exchange.strips import assign, cut, runs, strips
from jorge.exchange.transport import Coming, Transport, sent_dtype
from jorge.options import Options
from jorge.shards import Box


@dataclass(frozen=True)
class _OnItsWay:
    """Pieces of others, with where they are to be, and this process's own, likewise, which wait for them."""

    coming: Coming | None
    rest: list[tuple[Tensor, Piece]]
    mine: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Mine:
    """What is held here of each matrix of a shape group, and whether a sum over processes counts it here."""

    group: ShapeGroup
    box: Box
    speaks: bool


class Owned(Alone):
    """Blocks have owners.

    Args:
        transport: to the others.
        device: of the parameters.
        dtype: in which directions are sent back; `None` is that of the arithmetic.
    """

    alone = False
    apart = True

    def __init__(self, transport: Transport, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.transport, self.device, self.dtype = transport, device, dtype
        self.owners: list[list[int]] = []
        self._coming: dict[int, list[_OnItsWay]] = {}
        self._routes: list[Routes] = []
        self._mine: dict[int, _Mine] = {}  # by the identity of the group, which it keeps
        self._places: list[tuple[int, ...]] = []
        self._firsts: list[list[tuple[int, int]]] = []
        self._constants: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}

    def settle(self, work_sets: tuple[WorkSet, ...], options: Options) -> tuple[WorkSet, ...]:
        """Give each strip an owner, and each process the stacks of its own."""
        rank, size = self.transport.rank, self.transport.size
        work_sets = tuple(map(segmented, work_sets))
        everywhere = [held(work, size) for work in work_sets]
        apart = [sharded(work, each) for work, each in zip(work_sets, everywhere, strict=True)]
        for work, each in zip(work_sets, everywhere, strict=True):
            flat = (boxes for several in each.values() for boxes in several)
            for group, boxes in zip(work.matrices, flat, strict=True):
                speaks = group.spec.shards is None or group.spec.shards.speaks
                self._mine[id(group)] = _Mine(group, boxes[rank], speaks)
        self.owners = assign(work_sets, options, apart, size)
        found = []
        for work, owners, boxes_held in zip(work_sets, self.owners, everywhere, strict=True):
            own = runs(work)
            every = list(strips(work, own))
            self._routes.append(routes(every, owners, [run.source for run in own], boxes_held, rank, size))
            mine = [strip for strip, owner in zip(every, owners, strict=True) if owner == rank]
            starts = [0, *accumulate(group.count for group in work.matrices)]
            self._firsts.append(firsts(work))
            numbers = (_number(self._firsts[-1], own[strip.run].source, strip.matrix) for strip in mine)
            self._places.append(tuple(starts[group] + matrix for group, matrix in numbers))
            found.append(cut(work, own, mine))
        return tuple(found)

    def to_owners(self, work: WorkSet, tensors: list[Tensor]) -> list[Tensor]:
        """What this process owns of the matrices, strip by strip."""
        way = self._routes[work.number]
        matrices = [self._as_matrices(tensor, group) for tensor, group in zip(tensors, work.matrices, strict=True)]
        found = [torch.empty(group.count, *group.part, dtype=work.compute, device=self.device) for group in work.cut]
        self._pass(
            way.held_to_owner,
            way.owner_from_holders,
            _of(matrices, self._firsts[work.number]),
            _into(found),
            way.anything[0],
            work,
            work.compute,
        )
        return found

    def to_holders(self, work: WorkSet, found: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        """What came of it for the parts that are held here.

        In a lower precision it is rounded before anybody takes it, the owner included: replicas stay the same.
        """
        dtype = sent_dtype(self.dtype, work.compute)
        if dtype != work.compute and found:
            torch._foreach_copy_(found, [each.to(dtype) for each in found])
        way = self._routes[work.number]
        matrices = [self._as_matrices(tensor, group) for tensor, group in zip(tensors, work.matrices, strict=True)]
        self._pass(
            way.owner_to_holders,
            way.held_from_owner,
            _into(found),
            _of(matrices, self._firsts[work.number]),
            way.anything[1],
            work,
            dtype,
        )
        return tensors

    def _pass(
        self,
        given: Sequence[Sequence[Piece]],
        coming: Sequence[Sequence[Piece]],
        source: Callable[[Piece], Tensor],
        target: Callable[[Piece], Tensor],
        anything: bool,
        work: WorkSet,
        dtype: torch.dtype,
    ) -> None:
        """Bring pieces to where they are to be: those of this process itself, and the others' in one message."""
        rank = self.transport.rank
        mine = [(target(piece), source(piece)) for piece, _ in zip(coming[rank], given[rank], strict=True)]
        if not anything:
            self._coming.setdefault(work.number, []).append(_OnItsWay(None, [], mine))
            return
        there = [[] if other == rank else pieces for other, pieces in enumerate(given)]
        back = [[] if other == rank else pieces for other, pieces in enumerate(coming)]
        sizes, rooms = ([sum(p.elements for p in pieces) for pieces in each] for each in (there, back))
        sent = torch.empty(sum(sizes), dtype=dtype, device=self.device)
        flat = [piece for pieces in there for piece in pieces]
        _copy(_laid_out(sent, flat), [source(piece) for piece in flat])
        flat = [piece for pieces in back for piece in pieces]
        rest = [(target(piece), piece) for piece in flat]
        found = _OnItsWay(self.transport.swap(sent, sizes, rooms), rest, mine)
        self._coming.setdefault(work.number, []).append(found)

    def arrived(self, work: WorkSet) -> None:
        """Put what comes where it is to be."""
        for each in self._coming.pop(work.number, ()):
            _copy([room for room, _ in each.mine], [value for _, value in each.mine])
            if each.coming is not None:
                pieces = [piece for _, piece in each.rest]
                _copy([room for room, _ in each.rest], _laid_out(each.coming.wait(), pieces))

    def norms(self, work: WorkSet, tensors: Sequence[Tensor]) -> Tensor:
        """The root of the sum of squares over processes, added up in float64."""
        if not tensors:
            return torch.empty(0, dtype=work.compute, device=self.device)
        squares = torch.cat(
            [torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float64).square_() for tensor in tensors]
        )
        if not self._sharded(work):
            return squares.sqrt_().to(work.compute)
        return self.transport.sum(squares * self._counted(work)).sqrt_().to(work.compute)

    def whole_sides(
        self, work: WorkSet, numbers: Sequence[int], rows: list[Tensor], columns: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`norms`, of each row and column."""
        if not self._sharded(work):
            return rows, columns
        wholes: list[Tensor] = []
        for i, sides in zip((*numbers, *numbers), (*rows, *columns), strict=True):
            axis = len(wholes) >= len(numbers)
            group = work.matrices[i]
            assert group.blocking is not None
            whole = torch.zeros(group.count, group.blocking.matrix[axis], dtype=torch.float64, device=self.device)
            if self._mine[id(group)].speaks:
                self._held(whole, group, int(axis)).copy_(sides)
            wholes.append(whole.square_())
        summed = self.transport.sum(torch.cat([whole.flatten() for whole in wholes])).sqrt_().to(work.compute)
        found = [
            part.view(whole.shape)
            for part, whole in zip(torch.split(summed, [whole.numel() for whole in wholes]), wholes, strict=True)
        ]
        return found[: len(numbers)], found[len(numbers) :]

    def held_sides(
        self, work: WorkSet, numbers: Sequence[int], rows: list[Tensor], columns: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Those of what is held here."""
        groups = [work.matrices[i] for i in numbers]
        return (
            [self._held(row, group, 0) for row, group in zip(rows, groups, strict=True)],
            [self._held(column, group, 1) for column, group in zip(columns, groups, strict=True)],
        )

    def matrix_sums(self, work: WorkSet, sums: list[Tensor]) -> list[Tensor]:
        """Over all strips, whoever owns them."""
        sizes = [group.count for group in work.matrices]
        total = torch.zeros(sum(sizes), 2, dtype=torch.float64, device=self.device)
        places = self._places[work.number]
        if places:
            total.index_add_(0, self._constant(places, torch.int64), torch.cat(sums).double())
        return list(torch.split(self.transport.sum(total).to(work.compute), sizes))

    def _held(self, whole: Tensor, group: ShapeGroup, axis: int) -> Tensor:
        """Of `[count, side]` what is of the rows, or columns, that are held here."""
        box = self._mine[id(group)].box
        return whole.narrow(1, min(box.offset[axis], whole.shape[1]), box.size[axis])

    def _as_matrices(self, tensor: Tensor, group: ShapeGroup) -> Tensor:
        """`[count, rows, columns]` of what is held of each matrix."""
        return tensor.view(group.count, *self._mine[id(group)].box.size)

    def _sharded(self, work: WorkSet) -> bool:
        return any(group.spec.shards is not None for group in work.matrices)

    def _counted(self, work: WorkSet) -> Tensor:
        """1 for each matrix whose part is counted here, and 0 where another process holds the same, `[total]`."""
        flags = tuple(int(self._mine[id(group)].speaks) for group in work.matrices for _ in range(group.count))
        return self._constant(flags, torch.float64)

    def _constant(self, values: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if (values, dtype) not in self._constants:
            self._constants[values, dtype] = torch.tensor(values, dtype=dtype, device=self.device)
        return self._constants[values, dtype]


def _number(firsts: Sequence[tuple[int, int]], source: int, matrix: int) -> tuple[int, int]:
    """Which of a work set's shape groups a matrix of a source is in, and its number there."""
    first, several = firsts[source]
    return first + matrix % several, matrix // several


def _of(matrices: Sequence[Tensor], firsts: Sequence[tuple[int, int]]) -> Callable[[Piece], Tensor]:
    def found(piece: Piece) -> Tensor:
        group, matrix = _number(firsts, piece.source, piece.matrix)
        return _rectangle(matrices[group][matrix], piece.here)

    return found


def _into(strips: Sequence[Tensor]) -> Callable[[Piece], Tensor]:
    return lambda piece: _rectangle(strips[piece.run][piece.strip], piece.there)


def _rectangle(matrix: Tensor, box: Box) -> Tensor:
    (y, x), (m, n) = box.offset, box.size
    return matrix[y : y + m, x : x + n]


def _laid_out(flat: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    """A flat tensor as the rectangles of pieces."""
    parts = torch.split(flat, [piece.elements for piece in pieces]) if pieces else ()
    return [part.view(piece.there.size) for part, piece in zip(parts, pieces, strict=True)]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
