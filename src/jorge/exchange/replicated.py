"""Every process holds all parameters and all of the state, and refreshes a share of the preconditioners.

What was refreshed goes to the others, once an interval; the rest of a step is the same in each process, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.arrange import Stack, WorkSet, refresh_flops
from jorge.exchange import Alone, Span
from jorge.exchange.rates import Rates
from jorge.exchange.transport import Coming, Transport
from jorge.methods import METHODS, Refresh, State
from jorge.options import Options
from jorge.routing import stored_dtype
from jorge.schedule import Piece

#: Where a tensor begins in a buffer of bytes is a multiple of so many.
_ALIGNED = 16


@dataclass(frozen=True)
class _Room:
    """Where some blocks of a tensor lie in what a process gives."""

    state: State
    name: str
    where: slice | Tensor
    first: int
    last: int


class Replicated(Alone):
    """All of the state is in every process.

    Args:
        transport: to the others.
        rates: what the choice between sharing the refreshes and doing all of them in each process hangs on; asked for
            in each step, and the same in all processes. `None` shares them whatever it costs.
    """

    alone = False

    def __init__(self, transport: Transport, rates: Callable[[], Rates] | None = None) -> None:
        self.transport, self._rates, self._load = transport, rates, Load(0, 0, 0, 0)
        self._order: dict[tuple[object, ...], tuple[int, ...]] = {}
        self._coming: dict[int, tuple[Coming, list[list[_Room]]]] = {}

    def settle(self, work_sets: tuple[WorkSet, ...], options: Options) -> tuple[WorkSet, ...]:
        """Decide, for each stack, who takes one block more where they do not divide evenly."""
        self._load = load(work_sets, options, self.transport.size)
        found = orders(work_sets, options, self.transport.size)
        for work in work_sets:
            for stack, order in zip(work.stacks, found[work.number], strict=True):
                self._order[_key(stack)] = order
        return work_sets

    @property
    def shares(self) -> bool:
        """Whether each process refreshes a part, and not all of it."""
        return self._rates is None or self._load.pays(self._rates())

    def share(self, stack: Stack, count: int) -> Span:
        """As many as the others take, or one more or less; all of them where sharing does not pay."""
        if not self.shares:
            return 0, count
        return self._span(stack, count, self.transport.rank)

    def _span(self, stack: Stack, count: int, rank: int) -> Span:
        return _share(self._order[_key(stack)], count, rank)

    def collect(self, work: WorkSet, states: Sequence[State], refreshed: Sequence[Sequence[Piece]]) -> None:
        """One message for all stacks of a work set, in bytes: roots and counters may be of several dtypes."""
        if not self.shares:
            return
        device = next(tensor.device for state in states for tensor in state.values())
        where = [[_where(piece, device) for piece in pieces] for pieces in refreshed]
        found = [self._rooms(work, states, refreshed, where, rank) for rank in range(self.transport.size)]
        rooms = [list(each) for each in found]
        size = max((_end(each) for each in rooms), default=0)
        if not size:
            return
        mine = torch.zeros(size, dtype=torch.uint8, device=device)
        for room, place in zip(rooms[self.transport.rank], _places(rooms[self.transport.rank]), strict=True):
            source = room.state[room.name][room.where][room.first : room.last]
            _cut(mine, place, source).copy_(source)
        self._coming[work.number] = self.transport.gather(mine), rooms

    def arrived(self, work: WorkSet) -> None:
        """Take over what the others have refreshed."""
        if work.number not in self._coming:
            return
        coming, rooms = self._coming.pop(work.number)
        given = coming.wait()
        for rank, each in enumerate(rooms):
            if rank == self.transport.rank:
                continue
            for room, place in zip(each, _places(each), strict=True):
                tensor = room.state[room.name]
                if isinstance(room.where, Tensor):
                    some = room.where[room.first : room.last]
                    tensor.index_copy_(0, some, _cut(given[rank], place, tensor[some]))
                else:
                    target = tensor[room.where][room.first : room.last]
                    target.copy_(_cut(given[rank], place, target))

    def _rooms(
        self,
        work: WorkSet,
        states: Sequence[State],
        refreshed: Sequence[Sequence[Piece]],
        where: Sequence[Sequence[slice | Tensor]],
        rank: int,
    ) -> Iterator[_Room]:
        """What a process gives, in the order in which it does."""
        for stack, state, pieces, places in zip(work.stacks, states, refreshed, where, strict=True):
            for piece, some in zip(pieces, places, strict=True):
                first, last = self._span(stack, piece.stop - piece.start, rank)
                for name in state:
                    if name != "quartics" and first < last:
                        yield _Room(state, name, some, first, last)

    def completed(self, values: list[list[Tensor]]) -> list[list[Tensor]]:
        """All of it: the others' shares are added to the zeros that stand for them here."""
        flat = [value for each in values for value in each]
        if flat and self.shares:
            summed = torch.split(self.transport.sum(torch.cat(flat)), [len(value) for value in flat])
            for value, total in zip(flat, summed, strict=True):
                value.copy_(total)
        return values


@dataclass(frozen=True)
class Load:
    """What a refresh of all preconditioners takes.

    Args:
        flops: in one process that does all of it.
        share: in the one that has most, where it is shared.
        nbytes, messages: that each process then sends.
    """

    flops: int
    share: int
    nbytes: int
    messages: int

    def pays(self, rates: Rates) -> bool:
        """Whether it takes less time shared."""
        return rates.seconds(self.share, self.nbytes, self.messages) < rates.seconds(self.flops, 0, 0)


def load(work_sets: Sequence[WorkSet], options: Options, size: int) -> Load:
    """Of the preconditioners of a param group with so many processes."""
    flops, shares = 0, [0] * size
    nbytes = messages = 0
    for work, mine in zip(work_sets, spans(work_sets, options, size), strict=True):
        counts = [[last - first for first, last in each] for each in mine]
        for stack, blocks in zip(work.stacks, counts, strict=True):
            each = refresh_flops(stack.shape, stack.sides, options, Refresh())
            flops += each * stack.count
            shares = [total + each * count for total, count in zip(shares, blocks, strict=True)]
        if work.stacks:
            nbytes += gathered_bytes(work, counts, options) * (size - 1)
            messages += 3 if any(stack.measured for stack in work.stacks) else 1
    return Load(flops, max(shares), nbytes, messages)


def orders(work_sets: Sequence[WorkSet], options: Options, size: int) -> list[list[tuple[int, ...]]]:
    """For each stack of each work set the processes, those first that take one block more: who has the least work."""
    load = [0] * size
    stacks = [(work.number, i, stack) for work in work_sets for i, stack in enumerate(work.stacks)]
    flops = [max(1, refresh_flops(stack.shape, stack.sides, options, Refresh())) for _, _, stack in stacks]
    found: list[list[tuple[int, ...]]] = [[()] * len(work.stacks) for work in work_sets]
    for (number, i, stack), each in sorted(zip(stacks, flops, strict=True), key=lambda pair: -pair[1]):
        order = tuple(sorted(range(size), key=lambda rank: (load[rank], rank)))
        found[number][i] = order
        for rank in range(size):
            first, last = _share(order, stack.count, rank)
            load[rank] += (last - first) * each
    return found


def spans(work_sets: Sequence[WorkSet], options: Options, size: int) -> list[list[list[Span]]]:
    """For each stack of each work set the blocks that each process refreshes, where all are refreshed at once."""
    return [
        [
            [_share(order, stack.count, rank) for rank in range(size)]
            for stack, order in zip(work.stacks, mine, strict=True)
        ]
        for work, mine in zip(work_sets, orders(work_sets, options, size), strict=True)
    ]


def gathered_bytes(work: WorkSet, counts: Sequence[Sequence[int]], options: Options) -> int:
    """Bytes that each process gives where all blocks of a work set are refreshed: as many as the one that has most.

    Args:
        work: the work set.
        counts: of each stack the blocks that each process refreshes.
        options: of the param group.
    """
    sizes = [0] * len(counts[0])
    for stack, mine in zip(work.stacks, counts, strict=True):
        dtype = stored_dtype(work.sources[stack.parts[0].source].spec.dtype, options)
        kept = METHODS[options.method].layout(stack.shape, stack.sides)
        each = [math.prod(shape) * dtype.itemsize for shape in kept.values()] + [4]  # and how often it was refreshed
        for rank, blocks in enumerate(mine):
            sizes[rank] += sum(_aligned(blocks * nbytes) for nbytes in each)
    return max(sizes)


def _share(order: Sequence[int], count: int, rank: int) -> Span:
    each, more = divmod(count, len(order))
    takes = order[:more]
    first = rank * each + sum(other < rank for other in takes)
    return first, first + each + (rank in takes)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def _where(piece: Piece, device: torch.device) -> slice | Tensor:
    """The blocks of a piece in their stack."""
    return slice(piece.start, piece.stop) if piece.places is None else torch.tensor(piece.places, device=device)


def _key(stack: Stack) -> tuple[object, ...]:
    return stack.shape, stack.sides, stack.span


def _bytes(room: _Room) -> int:
    tensor = room.state[room.name]
    return (room.last - room.first) * tensor[:1].nbytes


def _places(rooms: Sequence[_Room]) -> Iterator[tuple[int, int]]:
    """Where each begins and ends."""
    start = 0
    for room in rooms:
        yield start, start + _bytes(room)
        start += _aligned(_bytes(room))


def _end(rooms: Sequence[_Room]) -> int:
    return sum(_aligned(_bytes(room)) for room in rooms)


def _cut(buffer: Tensor, place: tuple[int, int], like: Tensor) -> Tensor:
    """A part of a buffer of bytes as a tensor of another's shape and dtype."""
    return buffer[place[0] : place[1]].view(like.dtype).view(like.shape)
