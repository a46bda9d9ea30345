"""When roots are refreshed: ever more rarely until `interval` is reached, all at once or a part at each step."""

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

    The gap between two refreshes of a block grows from 1 to the interval, as roots change fast at first: with 20
    warm-up refreshes and an interval of 5, each of the first 20 steps refreshes, then every second to step 60, every
    third to 120, every fourth to 200, and every fifth from there on.

    Args:
        interval: steps between the refreshes of a block in the end.
        warmup_refreshes: so many refreshes at each gap that is shorter than that; 0 begins with the interval.
        stagger: each step refreshes one of as many parts of the blocks as the gap has steps, instead of the last step
            of the gap all of them.
    """

    interval: int
    warmup_refreshes: int
    stagger: bool = False

    def gap(self, step: int) -> int:
        """Steps between the refreshes of a block about `step`, from 1.

        >>> [Schedule(4, 2).gap(step) for step in (1, 2, 3, 6, 7, 12, 13, 1000)]
        [1, 1, 2, 2, 3, 3, 4, 4]
        """
        if not self.warmup_refreshes:
            return self.interval
        # the gap g is over after the step r(1 + 2 + … + g)
        grown = (1 + isqrt(1 + 8 * ((step - 1) // self.warmup_refreshes))) // 2
        return min(grown, self.interval)

    def part(self, step: int) -> tuple[int, int] | None:
        """What the step refreshes: `(0, 1)` for all, `(j, gap)` for the j-th part, `None` for nothing.

        >>> [step for step in range(1, 26) if Schedule(10, 3).part(step)]
        [1, 2, 3, 5, 7, 9, 12, 15, 18, 22]
        >>> [Schedule(3, 1, stagger=True).part(step) for step in range(1, 8)]
        [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 3)]
        """
        if step < 1:
            return None
        gap, before = self._since(step)
        if self.stagger:
            return before % gap, gap
        return (0, 1) if before % gap == gap - 1 else None

    def earlier(self, step: int) -> int:
        """How many refreshes a block that is due at `step` has had before.

        >>> [Schedule(10, 3).earlier(step) for step in (1, 3, 5, 22)]
        [0, 2, 3, 9]
        """
        gap, before = self._since(step)
        return self.warmup_refreshes * (gap - 1) + before // gap

    def _since(self, step: int) -> tuple[int, int]:
        """The gap at a step, and the steps before it that had the same."""
        gap = self.gap(step)
        return gap, step - 1 - self.warmup_refreshes * (gap * (gap - 1) // 2)


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


def pieces(
    stack: Stack, groups: Sequence[ShapeGroup], steps: Sequence[int | None], schedule: Schedule, method: Method
) -> list[Piece]:
    """What a step refreshes of a stack: one piece, unless parameters have missed gradients.

    Args:
        stack: the blocks.
        groups: the shape groups whose blocks they are.
        steps: for each parameter that is arranged the number of the step, from 1; `None` where it has no gradient.
        schedule: of the param group.
        method: of the param group.
    """
    mine = [steps[place] for part in stack.parts for place in groups[part.group].places]
    if mine.count(mine[0]) == len(mine):
        step = mine[0]
        part = None if step is None else schedule.part(step)
        if step is None or part is None:
            return []
        start, stop = _share(stack, *part)
        return [Piece(_refresh(stack, step, schedule, method), start, stop)] if start < stop else []
    wanted: list[Refresh | None] = []
    for stack_part in stack.parts:
        for place in groups[stack_part.group].places:
            step = steps[place]
            part = None if step is None else schedule.part(step)
            for _ in range(stack_part.grid.blocks):
                inside = step is not None and part is not None and len(wanted) in range(*_share(stack, *part))
                wanted.append(_refresh(stack, step, schedule, method) if inside and step is not None else None)
    found: list[Piece] = []
    for refresh in dict.fromkeys(each for each in wanted if each is not None):
        chosen = [i for i, each in enumerate(wanted) if each == refresh]
        if chosen[-1] - chosen[0] + 1 == len(chosen):
            found.append(Piece(refresh, chosen[0], chosen[-1] + 1))
        else:
            found.append(Piece(refresh, 0, len(chosen), tuple(chosen)))
    return found


def _refresh(stack: Stack, step: int, schedule: Schedule, method: Method) -> Refresh:
    refresh = method.refresh_at(schedule.earlier(step), schedule.gap(step))
    return refresh if stack.damps_apart else replace(refresh, damping=0)  # so that steps that do the same look the same


def _share(stack: Stack, index: int, parts: int) -> tuple[int, int]:
    """The blocks whose refresh begins in the `index`-th of `parts` equal shares of the work of all stacks."""
    begin, end = stack.span
    width = (end - begin) / stack.count
    edges = (ceil((edge / parts - begin) / width - 1e-6) for edge in (index, index + 1))
    start, stop = (min(stack.count, max(0, edge)) for edge in edges)
    return start, stop
