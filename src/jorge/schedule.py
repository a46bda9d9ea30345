"""When roots are refreshed: ever more rarely until `interval` is reached, all at once or a part at each step."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt


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
