"""How matrices are cut into strips of blocks, and which process works on which: pure.

A strip is a row of blocks, or a column of them where a matrix has a single row: what is sent is then a few rectangles a
matrix, not one a block. Each has one owner, who keeps its preconditioners and computes its directions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jorge.arrange import ParamSpec, ShapeGroup, Stack, StackPart, WorkSet, refresh_flops
from jorge.blocks import BlockGrid, Blocking
from jorge.exchange.segments import Held
from jorge.methods import METHODS, Refresh
from jorge.options import Options
from jorge.shards import Box

#: A strip goes to who holds all of it already, unless that gives them so many times an even share of the work.
_UNEVEN = 1.05


@dataclass(frozen=True)
class Run:
    """Equal strips that lie side by side in each matrix of a shape group.

    Args:
        source: the shape group's number among the sources.
        first: box of the first strip.
        step: from one to the next, along rows and columns.
        strips: in each matrix.
        grids: of each strip: the number that the grid has in the matrix, and its blocks in the strip.
    """

    source: int
    first: Box
    step: tuple[int, int]
    strips: int
    grids: tuple[tuple[int, BlockGrid], ...]

    def box(self, number: int) -> Box:
        """Of a strip in its matrix."""
        (y, x), (down, right) = self.first.offset, self.step
        return Box((y + number * down, x + number * right), self.first.size)

    @property
    def blocks(self) -> int:
        """In each strip."""
        return sum(grid.blocks for _, grid in self.grids)


@dataclass(frozen=True)
class Strip:
    """One strip.

    Args:
        run: it is of, by number in the work set.
        matrix: by number in its shape group.
        number: in its run.
        box: in its matrix.
    """

    run: int
    matrix: int
    number: int
    box: Box


def runs(work: WorkSet) -> list[Run]:
    """The runs of strips of a work set's matrices, in their order."""
    found = []
    for source, group in enumerate(work.sources):
        blocking = group.blocking
        assert blocking is not None
        axis = 0 if blocking.counts[0] > 1 or blocking.counts[1] == 1 else 1
        for start in dict.fromkeys(grid.offset[axis] for grid in blocking.grids):
            mine = [(k, grid) for k, grid in enumerate(blocking.grids) if grid.offset[axis] == start]
            found.append(_run(source, mine, axis, start, blocking.matrix))
    return found


def _run(source: int, grids: list[tuple[int, BlockGrid]], axis: int, start: int, matrix: tuple[int, int]) -> Run:
    _, first = grids[0]
    if axis == 0:
        height = first.shape[0]
        own = [(k, replace(g, rows=1, offset=(0, g.offset[1]))) for k, g in grids]
        return Run(source, Box((start, 0), (height, matrix[1])), (height, 0), first.rows, tuple(own))
    width = first.shape[1]
    own = [(k, replace(g, columns=1, offset=(g.offset[0], 0))) for k, g in grids]
    return Run(source, Box((0, start), (matrix[0], width)), (0, width), first.columns, tuple(own))


def strips(work: WorkSet, found: Sequence[Run]) -> Iterator[Strip]:
    """Run by run, matrix by matrix."""
    for run, each in enumerate(found):
        for matrix in range(work.sources[each.source].count):
            for number in range(each.strips):
                yield Strip(run, matrix, number, each.box(number))


@dataclass(frozen=True)
class _Unit:
    """A strip to be given out: what it costs, where it is, and who holds all of it."""

    flops: int
    elements: int
    work_set: int
    strip: int
    holders: tuple[int, ...]


def assign(work_sets: Sequence[WorkSet], options: Options, held: Sequence[Held], size: int) -> list[list[int]]:
    """The owner of each strip of each work set: even in operations and bytes, and where it lies already if it can be.

    The most expensive strips are given out first, each to the process that has least (Graham 1969).

    Args:
        work_sets: what is worked on.
        options: of the param group.
        held: of each work set, for sources that are sharded.
        size: the number of processes.
    """
    units: list[_Unit] = []
    for number, work in enumerate(work_sets):
        found = runs(work)
        costs = [_cost(run, work, options) for run in found]
        for i, strip in enumerate(strips(work, found)):
            several = held[number].get(found[strip.run].source)
            boxes = several[strip.matrix % len(several)] if several else ()
            holders = tuple(rank for rank, box in enumerate(boxes) if box.meeting(strip.box) == strip.box)
            units.append(_Unit(*costs[strip.run], number, i, holders))
    units.sort(key=lambda unit: (-unit.flops, unit.work_set, unit.strip))
    all_flops, all_bytes = max(1, sum(unit.flops for unit in units)), max(1, sum(unit.elements for unit in units))
    loads = [[0, 0] for _ in range(size)]

    def filled(rank: int) -> float:
        return max(loads[rank][0] / all_flops, loads[rank][1] / all_bytes)

    owners = [[0] * sum(1 for _ in strips(work, runs(work))) for work in work_sets]
    heap = [(0.0, rank) for rank in range(size)]
    for unit in units:
        chosen = min(unit.holders, key=lambda rank: (filled(rank), rank), default=None)
        if chosen is not None and (loads[chosen][0] + unit.flops) * size > _UNEVEN * all_flops:
            chosen = None
        while chosen is None:  # what the heap says of a rank may be of before it was given something
            share, rank = heapq.heappop(heap)
            if share == filled(rank):
                chosen = rank
        loads[chosen][0] += unit.flops
        loads[chosen][1] += unit.elements
        heapq.heappush(heap, (filled(chosen), chosen))
        owners[unit.work_set][unit.strip] = chosen
    return owners


def _cost(run: Run, work: WorkSet, options: Options) -> tuple[int, int]:
    """Operations of a refresh of a strip, and elements of its preconditioners."""
    blocking = work.sources[run.source].blocking
    assert blocking is not None
    flops = sum(grid.blocks * refresh_flops(grid.shape, blocking.sides, options, Refresh()) for _, grid in run.grids)
    elements = 0
    for _, grid in run.grids:
        kept = METHODS[options.method].layout(grid.shape, blocking.sides)
        elements += grid.blocks * sum(_product(shape) for shape in kept.values())
    return flops, elements


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def cut(work: WorkSet, found: Sequence[Run], mine: Sequence[Strip]) -> WorkSet:
    """A work set with the strips that are worked on here as what its blocks are cut from, and the stacks of these."""
    groups = []
    for i, run in enumerate(found):
        of = work.sources[run.source]
        assert of.blocking is not None
        places = tuple(of.places[strip.matrix // of.parts] for strip in mine if strip.run == i)
        shape = (run.first.size[0], run.first.size[1])
        blocking = Blocking(shape, *of.blocking.sides, tuple(grid for _, grid in run.grids))
        spec = ParamSpec(shape, of.spec.dtype)
        groups.append(ShapeGroup(places, spec, blocking, 1, shape, len(places), shape))
    stacks = tuple(_of_strips(stack, work, found, groups, mine) for stack in work.stacks)
    return replace(work, cut=tuple(groups), stacks=stacks)


def _of_strips(
    stack: Stack, work: WorkSet, found: Sequence[Run], groups: Sequence[ShapeGroup], mine: Sequence[Strip]
) -> Stack:
    """The blocks of a stack that are worked on here."""
    parts: list[StackPart] = []
    numbers: list[int] = []
    measured: list[tuple[int, int]] = []
    start = 0
    for part in stack.parts:
        (index,) = (i for i, r in enumerate(found) if r.source == part.group and part.number in dict(r.grids))
        run, begin = found[index], len(numbers)
        grid = dict(run.grids)[part.number]
        for strip in mine:
            if strip.run == index:
                first = start + strip.matrix * part.grid.blocks + strip.number * grid.blocks
                numbers += range(first, first + grid.blocks)
        whole = run.blocks == 1 and not part.transposed
        count = len(numbers) - begin
        parts.append(StackPart(index, part.source, part.number, grid, part.transposed, whole, count))
        if any(first <= start and start + part.count <= last for first, last in stack.measured) and count:
            follows = measured and measured[-1][1] == begin
            measured.append((measured.pop()[0] if follows else begin, len(numbers)))
        start += part.count
    return replace(
        stack,
        parts=tuple(parts),
        count=len(numbers),
        chunk=max(1, min(stack.chunk, len(numbers))),
        measured=tuple(measured),
        of=stack,
        numbers=tuple(numbers),
    )
