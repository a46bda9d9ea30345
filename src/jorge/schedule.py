"""When preconditioners are refreshed: ever more rarely until `interval` is reached, all at once or in parts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isqrt

from jorge.arrange import ShapeGroup, Stack
from jorge.methods import Method, Refresh


@dataclass(frozen=True)
class Schedule:
    """The refreshes of a param group. Steps count from 1, and live on the host.

    The gap between two refreshes of a block grows from 1 to the interval, as preconditioners change fast at
    first: with 20 warm-up refreshes and an interval of 5, each of the first 20 steps refreshes, then every second to
    step 60, every third to 120, every fourth to 200, and every fifth from there on.

    Args:
        interval: steps between the refreshes of a block in the end.
        warmup_refreshes: so many refreshes at each gap that is shorter than that; 0 begins with the interval.
        stagger: each step refreshes one of as many parts of the blocks as the gap has steps, instead of the last step
            of the gap all of them.
    """

    interval: int
    warmup_refreshes: int
    stagger: bool = False

    def at(self, step: int) -> Scheduled | None:
        """What a step refreshes, and `None` where that is nothing.

        >>> [step for step in range(1, 26) if Schedule(10, 3).at(step)]
        [1, 2, 3, 5, 7, 9, 12, 15, 18, 22]
        >>> [(s.part, s.parts) for s in map(Schedule(3, 1, stagger=True).at, range(1, 8)) if s]
        [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 3)]
        """
        if step < 1:
            return None
        warmup, gap, before = self.warmup_refreshes, self.interval, step - 1
        if warmup:
            # The gap g is over after the step r(1 + 2 + … + g).
            gap = min((1 + isqrt(1 + 8 * ((step - 1) // warmup))) // 2, self.interval)
            before -= warmup * (gap * (gap - 1) // 2)
        number = warmup * (gap - 1) + before // gap
        if self.stagger:
            return Scheduled(number, gap, before % gap, gap)
        return Scheduled(number, gap) if before % gap == gap - 1 else None

    def is_settled(self, step: int) -> bool:
        """Whether the gap has reached the interval.

        >>> [step for step in range(1, 100) if Schedule(3, 2).is_settled(step)][0], Schedule(3, 0).is_settled(1)
        (7, True)
        """
        return step > self.warmup_refreshes * (self.interval * (self.interval - 1) // 2)


@dataclass(frozen=True)
class Scheduled:
    """A refresh of some blocks at a step.

    Args:
        number: how many refreshes these blocks have had before.
        gap: steps between its refreshes now.
        part, parts: the blocks are the `part`-th of so many equal parts; all of them by default.
    """

    number: int
    gap: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Piece:
    """Blocks of a stack that are refreshed alike in a step: `start` to `stop`, or those of `places`, if given."""

    refresh: Refresh
    start: int
    stop: int
    places: tuple[int, ...] | None = None

    def within(self, first: int, last: int) -> tuple[int, int]:
        """`start` and `stop` of those that lie between two numbers of blocks."""
        if self.places is None:
            return max(self.start, first), min(self.stop, last)
        return bisect_left(self.places, first), bisect_left(self.places, last)

    def kept(self, numbers: tuple[int, ...], count: int) -> Piece:
        """The same of a stack that has some of the blocks alone, in their order.

        Args:
            numbers: of those.
            count: of all.
        """
        if self.places is None:
            if (self.start, self.stop) == (0, count):
                return replace(self, stop=len(numbers))
            first, last = (bisect_left(numbers, edge) for edge in (self.start, self.stop))
            return replace(self, start=first, stop=last)
        wanted = set(self.places)
        mine = tuple(i for i, number in enumerate(numbers) if number in wanted)
        return replace(self, start=0, stop=len(mine), places=mine)


def pieces(
    stack: Stack,
    groups: Sequence[ShapeGroup],
    steps: Sequence[int | None],
    schedule: Schedule,
    method: Method,
    same: int | None = None,
) -> list[Piece]:
    """What a step refreshes of a stack: one piece, unless parameters have missed gradients.

    Args:
        stack: the blocks.
        groups: the shape groups whose blocks they are.
        steps: for each parameter that is arranged the number of the step, from 1; `None` where it has no gradient.
        schedule: of the param group.
        method: of the param group.
        same: the number of the step where it is that of all parameters.
    """
    mine: list[int | None]
    mine = [steps[place] for part in stack.parts for place in groups[part.group].places] if same is None else [same]
    if mine.count(mine[0]) == len(mine):
        scheduled = None if mine[0] is None else schedule.at(mine[0])
        if scheduled is None:
            return []
        if scheduled.parts == 1:
            return [Piece(_refresh(stack, scheduled, method), 0, stack.count)]
        found = _piece(_refresh(stack, scheduled, method), _part(stack, scheduled))
        return [] if found is None else [found]
    wanted: list[Refresh | None] = []
    for stack_part in stack.parts:
        for place in groups[stack_part.group].places:
            step = steps[place]
            scheduled = None if step is None else schedule.at(step)
            count = stack_part.grid.blocks * groups[stack_part.group].parts
            blocks = range(len(wanted), len(wanted) + count)
            shared = _part(stack, scheduled) if scheduled is not None else ()
            wanted += [
                _refresh(stack, scheduled, method) if scheduled is not None and i in shared else None for i in blocks
            ]
    kinds = dict.fromkeys(each for each in wanted if each is not None)
    chosen = [(kind, [i for i, each in enumerate(wanted) if each == kind]) for kind in kinds]
    return [piece for piece in (_piece(kind, mine) for kind, mine in chosen) if piece is not None]


def _piece(refresh: Refresh, blocks: Sequence[int]) -> Piece | None:
    """Of the blocks of these numbers, which rise; `None` where there are none."""
    if not blocks:
        return None
    if blocks[-1] - blocks[0] + 1 == len(blocks):
        return Piece(refresh, blocks[0], blocks[-1] + 1)
    return Piece(refresh, 0, len(blocks), tuple(blocks))


def _refresh(stack: Stack, scheduled: Scheduled, method: Method) -> Refresh:
    refresh = method.refresh_at(scheduled.number, scheduled.gap)
    return refresh if stack.damps_apart else replace(refresh, damping=0)  # so that steps that do the same look the same


def _part(stack: Stack, scheduled: Scheduled) -> Sequence[int]:
    """The blocks whose refresh begins in the scheduled part of the work of all stacks."""
    if scheduled.parts == 1:
        return range(stack.count)
    if stack.places is not None:
        first, last = (edge / scheduled.parts for edge in (scheduled.part, scheduled.part + 1))
        return [i for i, place in enumerate(stack.places) if first <= place < last]
    begin, end = stack.span
    width = (end - begin) / stack.count
    edges = (ceil((edge / scheduled.parts - begin) / width - 1e-6) for edge in (scheduled.part, scheduled.part + 1))
    start, stop = (min(stack.count, max(0, edge)) for edge in edges)
    return range(start, stop)
