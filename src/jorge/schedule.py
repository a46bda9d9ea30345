"""When roots are refreshed: at every step at first, then every `interval`-th, all at once or a part at each step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The refreshes of a param group. Steps count from 1, and live on the host.

    Args:
        interval: steps between the refreshes of a block.
        warmup_refreshes: so many steps refresh every block.
        stagger: after them, every step refreshes one of `interval` parts of the blocks, instead of every `interval`-th
            step all of them.
    """

    interval: int
    warmup_refreshes: int
    stagger: bool = False

    def part(self, step: int) -> tuple[int, int] | None:
        """What the step refreshes: `(0, 1)` for all, `(j, interval)` for the j-th part, `None` for nothing.

        >>> [step for step in range(1, 26) if Schedule(10, 3).part(step)]
        [1, 2, 3, 13, 23]
        >>> [Schedule(3, 1, stagger=True).part(step) for step in range(1, 6)]
        [(0, 1), (0, 3), (1, 3), (2, 3), (0, 3)]
        """
        if step < 1:
            return None
        if step <= self.warmup_refreshes:
            return 0, 1
        later = step - self.warmup_refreshes
        if self.stagger:
            return (later - 1) % self.interval, self.interval
        return (0, 1) if later % self.interval == 0 else None

    def earlier(self, step: int) -> int:
        """How many refreshes a block that is due at `step` has had before.

        >>> [Schedule(10, 3).earlier(step) for step in (1, 3, 13, 23)]
        [0, 2, 3, 4]
        """
        return min(step - 1, self.warmup_refreshes) + max(0, step - 1 - self.warmup_refreshes) // self.interval
