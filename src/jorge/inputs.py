"""What a step works on in a work set: who takes part, and what is refreshed, from counters on the host alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import cast

from torch import Tensor

from jorge.arrange import Stack
from jorge.compiling import CompiledSteps
from jorge.exchange import Exchange
from jorge.methods import METHODS, Refresh
from jorge.options import Options
from jorge.schedule import Piece, Schedule, pieces
from jorge.store import GroupState
from jorge.trace import Trace


@dataclass(frozen=True)
class Batch:
    """Refreshes of one kind that are done together, as the memory allows; with a trace those of one stack.

    Args:
        refresh: how much is done.
        pieces: the number of a stack, and which of its blocks: a slice, or their numbers on the device. Those of a
            stack follow each other.
        owners: whose the blocks are, as :class:`jorge.trace.Refreshed` has it; where there is a trace.
    """

    refresh: Refresh
    pieces: list[tuple[int, slice | Tensor]]
    owners: list[tuple[Tensor, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class StepInputs:
    """What a step works on in a work set.

    Args:
        params: of each shape group, those that have a gradient.
        grads: of each shape group, their gradients.
        present: of each shape group, who has one; `None` where all have.
        masks: the same on the device, `[count, 1, …]`.
        scheduled: of each stack, what is refreshed, here or in another process.
        refreshes: what of it is done here.
        measured: of each stack, the blocks kept here whose `quartics` are renewed.
        measures: whether any are, here or in another process.
        all_matrices: whose the matrices are, whoever has a gradient; where there is a trace.
    """

    params: list[list[Tensor]] = field(default_factory=list)
    grads: list[list[Tensor]] = field(default_factory=list)
    present: list[list[bool] | None] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    scheduled: list[list[Piece]] = field(default_factory=list)
    refreshes: list[Batch] = field(default_factory=list)
    measured: list[list[slice | Tensor]] = field(default_factory=list)
    measures: bool = False
    all_matrices: list[Tensor] = field(default_factory=list)


def inputs_of(
    state: GroupState,
    number: int,
    schedule: Schedule,
    options: Options,
    trace: Trace | None,
    compiled: CompiledSteps | None,
    exchange: Exchange | None = None,
) -> StepInputs:
    """Who takes part in a work set, and what is refreshed: decided on the host, from counters alone.

    `exchange` stands for the state's own where it is given.
    """
    work, inputs = state.work_sets[number], StepInputs()
    for group, params, grads in zip(work.groups, state.grouped[number], state.grads[number], strict=True):
        present = None if state.everyone else [grad is not None for grad in grads]
        if present is None or all(present):
            present, mask = None, None
        else:
            mask = state.mask(group, present)
            params = [p for p, has in zip(params, present, strict=True) if has]
        inputs.params.append(params)
        inputs.grads.append(
            [grad for grad in grads if grad is not None] if present else cast(list[Tensor], list(grads))
        )
        inputs.present.append(present)
        inputs.masks.append(mask)
    same = state.steps[0] if state.steps.count(state.steps[0]) == len(state.steps) else None
    measures, todo = False, list[_Todo]()
    for stack_number, stack in enumerate(work.stacks):
        whole = stack.of or stack
        found = pieces(whole, work.sources, state.steps, schedule, METHODS[options.method], same)
        inputs.scheduled.append(found)
        measures = measures or any(first < last for p in found for first, last in starmap(p.within, whole.measured))
        kept = found if stack.of is None else [p.kept(stack.numbers, whole.count) for p in found]
        inputs.measured.append(list(_measured(state, stack, kept)))
        mine = [_Todo(p, stack_number, stack, *_share(stack, p, exchange or state.exchange)) for p in kept]
        if trace is not None:
            owners = []
            for part in whole.parts:
                group = work.sources[part.source]
                numbers = range(group.parts * part.grid.blocks)
                owners += [(state.params[place], part.number, i) for place in group.places for i in numbers]
            owners = [owners[number] for number in stack.numbers] if stack.of is not None else owners
            mine = [replace(each, owners=owners) for each in mine]
        todo += mine
    inputs.refreshes.extend(_batches(state, todo, compiled, together=trace is None))
    inputs = replace(inputs, measures=measures)
    if trace is not None:
        inputs.all_matrices.extend(
            state.params[place] for group in work.matrices for place in group.places for _ in range(group.parts)
        )
    return inputs


def _where(state: GroupState, piece: Piece, first: int, last: int) -> slice | Tensor:
    """Some blocks of a piece, in their stack."""
    return slice(first, last) if piece.places is None else state.constants.get(piece.places)[first:last]


def _measured(state: GroupState, stack: Stack, scheduled: Sequence[Piece]) -> Iterator[slice | Tensor]:
    """Whose `quartics` are renewed, so many blocks at a time as are refreshed."""
    for piece in scheduled:
        for span in stack.measured:
            first, last = piece.within(*span)
            for start in range(first, last, stack.chunk):
                yield _where(state, piece, start, min(last, start + stack.chunk))


def _share(stack: Stack, piece: Piece, exchange: Exchange) -> tuple[int, int]:
    """What of a piece is refreshed here: from a number to before another."""
    first, last = exchange.share(stack, piece.stop - piece.start)
    return piece.start + first, piece.start + last


@dataclass(frozen=True)
class _Todo:
    """Blocks of a stack that are refreshed here, of a piece from `first` to before `last`.

    Args:
        piece: of the schedule.
        number: of the stack.
        stack: whose they are.
        owners: of all blocks of the stack, as :class:`Batch` has it; where there is a trace.
    """

    piece: Piece
    number: int
    stack: Stack
    first: int
    last: int
    owners: Sequence[tuple[Tensor, int, int]] = ()

    def owners_of(self, first: int, last: int) -> list[tuple[Tensor, int, int]]:
        if not self.owners:
            return []
        blocks = range(first, last) if self.piece.places is None else self.piece.places[first:last]
        return [self.owners[block] for block in blocks]


def _batches(
    state: GroupState, todo: Sequence[_Todo], compiled: CompiledSteps | None, *, together: bool
) -> Iterator[Batch]:
    """Refreshes that follow each other and are of one kind, as many blocks at a time as fill the memory."""
    batch: Batch | None = None
    kind, left = None, 0.0  # left of the memory
    for each in todo:
        start, refresh, stack = each.first, each.piece.refresh, each.stack
        while start < each.last:
            fitting = int(min(stack.chunk, left * stack.room))
            if batch is None or refresh != kind or fitting < 1 or not together:
                if batch is not None:
                    yield batch
                kind, left, fitting = refresh, 1.0, stack.chunk
                chosen = refresh if compiled is None else compiled.refresh(refresh)
                batch = Batch(chosen, [], each.owners_of(start, min(each.last, start + fitting)))
            stop = min(each.last, start + fitting)
            batch.pieces.append((each.number, _where(state, each.piece, start, stop)))
            left -= (stop - start) / stack.room
            start = stop
    if batch is not None:
        yield batch
