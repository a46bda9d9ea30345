"""What a refresh and a step saw, for who asks: the seam that diagnostics stand on.

A :class:`Trace` is told while a step runs. Where there is none, which is the default, nothing is computed for it: no
operator, no allocation. What it is told stays on its device; who reads it waits for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Refreshed:
    """One refresh of some blocks that lie in one stack, a value a block.

    Args:
        blocks: whose they are: the parameter, the number of its grid of blocks, and the block's number in that grid.
        refresh: how much was done, a :class:`jorge.methods.Refresh`.
        shares: for each side that is a matrix the share that the newest gradient got in the second moment, `[count]`.
        capped: for each such side whether the cap on the step kept it below what was asked for, boolean, `[count]`;
            not there for methods without a cap.
    """

    blocks: tuple[tuple[Tensor, int, int], ...]
    refresh: Any
    shares: Mapping[str, Tensor]
    capped: Mapping[str, Tensor]

    def row(self, param: Tensor, grid: int, block: int) -> int | None:
        """The place of a block in the values, or `None` where it is not among them."""
        for row, (p, *place) in enumerate(self.blocks):
            if p is param and place == [grid, block]:
                return row
        return None


@dataclass(frozen=True)
class Stepped:
    """One step of the matrices of a work set, a value each.

    Args:
        params: whose they are; a parameter that holds several is there for each.
        finite: 0-dim boolean: whether the step was taken; where not, nothing moved.
        lengths: of the step, before lr, `[total]`.
        limited: whether the limit on lengths shortened it, boolean, `[total]`.
        ratios: what the direction was multiplied by to have that length, `[total]`; 0 where there was no gradient.
    """

    params: tuple[Tensor, ...]
    finite: Tensor
    lengths: Tensor
    limited: Tensor
    ratios: Tensor


@dataclass
class Trace:
    """What the steps saw that were taken while this was the optimizer's `trace`."""

    refreshes: list[Refreshed] = field(default_factory=list)
    steps: list[Stepped] = field(default_factory=list)
    _blocks: tuple[tuple[Tensor, int, int], ...] = ()
    _refresh: Any = None

    def begin_refresh(self, blocks: Sequence[tuple[Tensor, int, int]], refresh: Any) -> None:
        """What is told next is of these blocks, and of this refresh."""
        self._blocks, self._refresh = tuple(blocks), refresh

    def refreshed(self, shares: Mapping[str, Tensor], capped: Mapping[str, Tensor] | None = None) -> None:
        """Take in a refresh."""
        self.refreshes.append(Refreshed(self._blocks, self._refresh, dict(shares), dict(capped or {})))

    def moving(self, updates: Sequence[Tensor]) -> None:
        """Look at the updates of a work set, before lr, for each shape group `[count, *part]`; they are not kept."""

    def stepped(self, **seen: Any) -> None:
        """Take in a step; the arguments are those of :class:`Stepped`."""
        self.steps.append(Stepped(**seen))
