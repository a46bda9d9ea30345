"""What is worked on together: pure, from the shapes of parameters and their options, without a tensor.

- A *shape group* holds parameters of one shape: what is elementwise is done on all of them at once.
- A *stack* holds the equal blocks of all layers, whichever parameter they come from: a refresh is a few batched
  products a stack, and their number does not grow with the depth of the network.
- A *work set* holds the shape groups and stacks whose gradients, directions and updates are in memory at the same
  time; their number bounds the temporary memory of a step.

An arrangement follows from the parameters and options alone, not from what happened before, so a training that is
resumed goes on as it would have.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from jorge.blocks import BlockGrid, Blocking, Side
from jorge.methods import DAMPING_PERIOD, METHODS, Refresh
from jorge.options import Options
from jorge.routing import COMPUTE_DTYPES, has_schatten_length, route_by
from jorge.shards import Segment, Shards

#: Of the temporary memory that a step may take: the gradients of a work set, which are there about five times
#: (averaged, cut into blocks, preconditioned on one side and on both; Adam's directions), and what a refresh takes.
_WORK_SET_SHARE, _REFRESH_SHARE = 1 / 5, 1 / 2
#: A refresh is cut into about so many pieces at most, so that launches do not grow with the blocks' size.
_PIECES, _PIECES_CUDA = 16, 4
#: Temporary memory that is never worth more launches, in bytes. A launch on CUDA is dearer by far than what it does to
#: a megabyte, on a CPU cheaper: there glibc hands freed memory back to the system where it is more than 64 MiB, and a
#: page that has to be found again costs more than what is done to it. A refresh may take the lesser of both by itself.
SMALLEST_WORKSPACE, SMALLEST_WORKSPACE_CUDA = 2**26, 2**31


@dataclass(frozen=True)
class ParamSpec:
    """What is looked at of a parameter.

    Args:
        shape: of the whole parameter.
        dtype: of it.
        shards: which part of it each process holds; `None` where it is whole here.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    shards: Shards | None = None

    @cached_property
    def local(self) -> tuple[int, ...]:
        """The shape of what is held here."""
        return self.shape if self.shards is None else self.shards.local


@dataclass(frozen=True)
class ShapeGroup:
    """Parameters of one shape and dtype; what a step works on is `[count, *part]`.

    A part is the parameter, or one of the matrices that it holds, which are stepped like parameters of their own.

    Args:
        places: of its parameters among those that are arranged.
        spec: of each.
        blocking: how each is cut; `None` for vectors and scalars.
        parts: the matrices in each parameter.
        part: the shape of each.
        count: of parts, over all parameters.
        local: the shape of what is held here of each part.
        segment: which matrix it is, where it is one of several in a sharded parameter; `spec` is then of that matrix.
    """

    places: tuple[int, ...]
    spec: ParamSpec
    blocking: Blocking | None
    parts: int
    part: tuple[int, ...]
    count: int
    local: tuple[int, ...]
    segment: Segment | None = None

    @property
    def is_segmented(self) -> bool:
        """Whether each of its matrices is worked on as a shape group of its own (:mod:`jorge.exchange.segments`)."""
        return self.spec.shards is not None and self.parts > 1

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor that a step works on."""
        return len(self.places) * _nbytes(self.spec)


@dataclass(frozen=True)
class StackPart:
    """The blocks of one grid of a shape group's parameters in a stack, parameter by parameter.

    Args:
        group: the shape group's number in the work set's `cut`.
        source: that of the parameters' shape group in its `sources`.
        number: the grid's number in the blocking.
        grid: of the blocks.
        transposed: whether they lie in the stack transposed.
        whole: whether they are the whole matrices, as they are.
        count: of blocks, over all parameters and their matrices.
    """

    group: int
    source: int
    number: int
    grid: BlockGrid
    transposed: bool
    whole: bool
    count: int


@dataclass(frozen=True)
class Stack:
    """Equal blocks that lie in one tensor `[count, …]` for each part of their state.

    Args:
        shape: m × n of a block, as it lies here.
        sides: kinds of its sides.
        parts: whose blocks they are, in the order in which they lie here.
        count: number of blocks.
        room: so many blocks fill the memory that a refresh may take.
        chunk: so many of its blocks are refreshed at a time at most.
        measured: the blocks whose matrices have Adam's Schatten norm, each from a number to before another.
        span: where its refresh lies in that of all stacks, for a staggered schedule.
        places: the same of each block, where they do not follow each other (:mod:`jorge.exchange.staggering`).
        damps_apart: whether the damping takes a product of its own in the form that the refresh has here.
        of: where blocks lie in several processes (:mod:`jorge.exchange`) the stack of all of them; this one has those
            that are kept here, of the numbers `numbers` there.
    """

    shape: tuple[int, int]
    sides: tuple[Side, Side]
    parts: tuple[StackPart, ...]
    count: int
    room: float
    chunk: int
    measured: tuple[tuple[int, int], ...]
    span: tuple[float, float]
    damps_apart: bool
    of: Stack | None = None
    numbers: tuple[int, ...] = ()
    places: tuple[float, ...] | None = None


@dataclass(frozen=True)
class WorkSet:
    """Shape groups whose tensors are in memory at the same time.

    Args:
        groups: those of vectors and scalars first, then those of matrices.
        matrices: the latter alone.
        sources: whose matrices the blocks are; other than `matrices` where sharded parameters hold several matrices,
            each of which is then a shape group there (:mod:`jorge.exchange.segments`).
        cut: what the blocks are cut from: the matrices, or the parts of them that this process works on.
        stacks: of their blocks.
        compute: the dtype of the arithmetic.
        number: of the work set.
    """

    groups: tuple[ShapeGroup, ...]
    matrices: tuple[ShapeGroup, ...]
    sources: tuple[ShapeGroup, ...]
    cut: tuple[ShapeGroup, ...]
    stacks: tuple[Stack, ...]
    compute: torch.dtype
    number: int = 0


def _nbytes(spec: ParamSpec) -> int:
    """Bytes of a parameter in the dtype of the arithmetic."""
    return math.prod(spec.shape) * COMPUTE_DTYPES[spec.dtype].itemsize


def arrange(specs: Sequence[ParamSpec], options: Options, *, on_cuda: bool = False) -> tuple[WorkSet, ...]:
    """The work sets of parameters that share a param group and a device, a CUDA device or another.

    >>> spec = ParamSpec((4, 6), torch.float32)
    >>> (work,) = arrange([spec, spec, ParamSpec((4,), torch.float32)], Options(lr=0.1))
    >>> [group.places for group in work.groups], [(stack.shape, stack.count) for stack in work.stacks]
    ([(2,), (0, 1)], [((4, 6), 2)])
    """
    total = sum(map(_nbytes, specs))
    smallest, pieces = (SMALLEST_WORKSPACE_CUDA, _PIECES_CUDA) if on_cuda else (SMALLEST_WORKSPACE, _PIECES)
    budget = max(smallest, options.workspace * total) if options.workspace else math.inf
    if options.compile_step:
        budget = math.inf  # one graph a group and dtype; the compiler plans the memory
    most = budget * _WORK_SET_SHARE
    found = [_work_set(groups, options) for groups in _filled(_shape_groups(specs, options, most), most)]
    stacks = [stack for work in found for stack in work.stacks]
    needed = sum(_temporary(stack, each) for each in found for stack in each.stacks)
    temporary = max(budget * _REFRESH_SHARE, SMALLEST_WORKSPACE, needed / pieces)
    work = sum(_flops(stack, options) for stack in stacks)
    done = 0
    placed: list[WorkSet] = []
    for each in found:
        mine = []
        for stack in each.stacks:
            flops = _flops(stack, options)
            room = temporary * stack.count / _temporary(stack, each)
            mine.append(
                replace(
                    stack,
                    room=room,
                    chunk=max(1, int(min(stack.count, room))),
                    span=(done / work, (done + flops) / work),
                )
            )
            done += flops
        placed.append(replace(each, stacks=tuple(mine), number=len(placed)))
    return tuple(placed)


def _shape_groups(specs: Sequence[ParamSpec], options: Options, most: float) -> Iterator[ShapeGroup]:
    """Shape groups of at most `most` bytes, or of one parameter; those whose blocks are alike follow each other."""
    alike: defaultdict[ParamSpec, list[int]] = defaultdict(list)
    for place, spec in enumerate(specs):
        alike[spec].append(place)
    routed = [(route_by(spec.shape, options), spec, places) for spec, places in alike.items()]
    routed.sort(key=lambda each: _order(each[0].blocking, each[1]))
    for found, spec, places in routed:
        count = max(1, int(min(len(places), most // _nbytes(spec))))
        for start in range(0, len(places), count):
            some = tuple(places[start : start + count])
            local = spec.local if spec.shards is not None else found.part
            yield ShapeGroup(some, spec, found.blocking, found.parts, found.part, len(some) * found.parts, local)


def _order(blocking: Blocking | None, spec: ParamSpec) -> tuple[int, list[int]]:
    """Sorts what may share a work set next to each other: one arithmetic dtype, and blocks that are alike."""
    return COMPUTE_DTYPES[spec.dtype].itemsize, sorted(blocking.grids[0].shape) if blocking else []


def _filled(groups: Iterator[ShapeGroup], most: float) -> Iterator[list[ShapeGroup]]:
    """Consecutive shape groups of one arithmetic dtype in lists of at most `most` bytes, or of one group."""
    filled: list[ShapeGroup] = []
    for group in groups:
        full = sum(each.nbytes for each in filled) + group.nbytes > most
        if filled and (full or COMPUTE_DTYPES[group.spec.dtype] != COMPUTE_DTYPES[filled[0].spec.dtype]):
            yield filled
            filled = []
        filled.append(group)
    if filled:
        yield filled


def _work_set(groups: Sequence[ShapeGroup], options: Options) -> WorkSet:
    vectors = tuple(group for group in groups if group.blocking is None)
    matrices = tuple(group for group in groups if group.blocking is not None)
    found: defaultdict[tuple[tuple[int, int], tuple[Side, Side]], list[StackPart]] = defaultdict(list)
    for index, group in enumerate(matrices):
        assert group.blocking is not None
        for number, grid in enumerate(group.blocking.grids):
            count = group.count * grid.blocks
            part = StackPart(
                index, index, number, grid, transposed=False, whole=group.blocking.blocks == 1, count=count
            )
            found[grid.shape, group.blocking.sides].append(part)
    for (shape, sides), parts in list(found.items()):
        twin = (shape[::-1], sides[::-1])
        # Left and right change places in the transposed twin, which takes these in.
        if shape[0] > shape[1] and twin in found and METHODS[options.method].transposable:
            found[twin] += [replace(part, transposed=True, whole=False) for part in parts]
            del found[shape, sides]
    stacks = tuple(_stack(*key, parts, matrices, options) for key, parts in found.items())
    return WorkSet(vectors + matrices, matrices, matrices, matrices, stacks, COMPUTE_DTYPES[groups[0].spec.dtype])


def _stack(
    shape: tuple[int, int],
    sides: tuple[Side, Side],
    parts: Sequence[StackPart],
    groups: Sequence[ShapeGroup],
    options: Options,
) -> Stack:
    damped = METHODS[options.method].refresh_at(2 * DAMPING_PERIOD - 1, 1)  # in the form that the method's own take
    undamped = replace(damped, damping=0)
    apart = refresh_flops(shape, sides, options, damped) != refresh_flops(shape, sides, options, undamped)
    measured: list[tuple[int, int]] = []
    count = 0
    for part in parts:
        if has_schatten_length(groups[part.group].part, sides, options):
            follows = measured and measured[-1][1] == count
            measured.append((measured.pop()[0] if follows else count, count + part.count))
        count += part.count
    return Stack(shape, sides, tuple(parts), count, math.inf, count, tuple(measured), (0.0, 1.0), apart)


def refresh_flops(shape: tuple[int, int], sides: tuple[Side, Side], options: Options, refresh: Refresh) -> int:
    """Operations of a refresh of a block under the method's default options."""
    usual = Options(method=options.method)
    return METHODS[options.method].refresh_flops(shape, sides, usual, refresh)


def _flops(stack: Stack, options: Options) -> int:
    """Operations of a plain refresh of a stack, 1 a block at least."""
    return stack.count * max(1, refresh_flops(stack.shape, stack.sides, options, Refresh()))


def _temporary(stack: Stack, work: WorkSet) -> int:
    """Bytes that a refresh of all its blocks takes, about."""
    m, n = (d if side == "full" else 0 for d, side in zip(stack.shape, stack.sides, strict=True))
    each = 2 * stack.shape[0] * stack.shape[1] + m * m + n * n + 3 * max(m, n) ** 2
    return each * work.compute.itemsize * stack.count
