"""The roots as they lie in memory: all blocks of one shape in one tensor, whichever parameter they come from.

A :class:`RootStack` is persistent, `[count, d, d]` a full side and `[count, d]` a diagonal one, so a refresh is a few
batched products for all layers, not a few a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jorge.blocks import Side, Tile, gather, gather_into, scatter
from jorge.bundles import Bundle, Constants
from jorge.methods import METHODS, Pace, RootOptions, State, direction, initial_state, refresh, refresh_flops
from jorge.roots import DAMPING_PERIOD, Precision, precision_scope
from jorge.schedule import Schedule

Group = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """The blocks of one tile of a bundle's parameters in a stack; `turned` where they lie there transposed."""

    bundle: Bundle
    tile: Tile
    turned: bool

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.bundle.params) * self.tile.blocks


@dataclass(frozen=True)
class Due:
    """Blocks of a stack that are refreshed: from `start` to `stop`, or those in `index` from its `start` to `stop`."""

    pace: Pace
    start: int
    stop: int
    index: Tensor | None = None


class RootStack:
    """The roots of all blocks of one shape that are worked on together.

    Args:
        members: whose blocks they are, in the order in which they lie here.
        shape: m × n of a block, as it lies here.
        sides: kinds of its sides.
        group: options of the param group.
    """

    def __init__(
        self,
        members: Sequence[Member],
        shape: tuple[int, int],
        sides: tuple[Side, Side],
        group: Group,
    ) -> None:
        self.members = list(members)
        self.shape = shape
        self.sizes = [member.count for member in members]
        self.count = sum(self.sizes)
        self.span = (0.0, 1.0)  # where its refresh lies in that of the cohort, for a staggered schedule
        bundle = members[0].bundle
        self.state: State = initial_state(
            group["method"],
            self.count,
            shape,
            sides,
            dtype=group["preconditioner_dtype"] or bundle.compute,
            device=bundle.params[0].device,
        )
        m, n = (d if side == "full" else 0 for d, side in zip(shape, sides, strict=True))
        each = 2 * shape[0] * shape[1] + m * m + n * n + 3 * max(m, n) ** 2
        self.temporary = each * bundle.compute.itemsize * self.count  # bytes that a refresh of all blocks takes, about
        self.chunk = self.count
        each = refresh_flops(group["method"], shape, sides, RootOptions(), substeps=1, number=0)
        self.flops = self.count * max(1, each)
        damped = refresh_flops(group["method"], shape, sides, RootOptions(), substeps=1, number=2 * DAMPING_PERIOD - 1)
        self.damps_apart = damped != each
        self._indices = Constants(bundle.params[0].device)

    def limit(self, temporary: float) -> None:
        """Refresh so many blocks at a time, but one at least, that it takes about `temporary` bytes."""
        self.chunk = int(min(self.count, max(1.0, temporary * self.count / self.temporary)))

    def due(self, schedule: Schedule, group: Group) -> list[Due]:
        """What this step refreshes: one piece, unless parameters have missed gradients."""
        steps = {s for member in self.members for s in member.bundle.steps}
        if len(steps) == 1 and all(all(member.bundle.present) for member in self.members):
            (step,) = steps
            part = schedule.part(step)
            if part is None:
                return []
            start, stop = self._part(*part)
            return [Due(self._pace(step, schedule, group), start, stop)] if start < stop else []
        paces: list[Pace | None] = []
        for member in self.members:
            for step, present in zip(member.bundle.steps, member.bundle.present, strict=True):
                part = schedule.part(step) if present else None
                for _ in range(member.tile.blocks):
                    inside = part is not None and len(paces) in range(*self._part(*part))
                    paces.append(self._pace(step, schedule, group) if inside else None)
        due: list[Due] = []
        for pace in dict.fromkeys(p for p in paces if p is not None):
            chosen = [i for i, p in enumerate(paces) if p == pace]
            if chosen[-1] - chosen[0] + 1 == len(chosen):
                due.append(Due(pace, chosen[0], chosen[-1] + 1))
            else:
                due.append(Due(pace, 0, len(chosen), self._indices.get(tuple(chosen))))
        return due

    def _pace(self, step: int, schedule: Schedule, group: Group) -> Pace:
        pace = METHODS[group["method"]].pace(schedule.earlier(step), schedule.gap(step))
        return pace if self.damps_apart else replace(pace, damped=False)  # so that steps that do the same look the same

    def _part(self, index: int, parts: int) -> tuple[int, int]:
        """The blocks whose refresh begins in the `index`-th of `parts` equal shares of the cohort's work."""
        begin, end = self.span
        width = (end - begin) / self.count
        edges = (math.ceil((edge / parts - begin) / width - 1e-6) for edge in (index, index + 1))
        start, stop = (min(self.count, max(0, edge)) for edge in edges)
        return start, stop

    def precondition(
        self,
        works: dict[Bundle, Tensor],
        due: Sequence[Due],
        method: str,
        options: RootOptions,
        precision: Precision,
    ) -> None:
        """Refresh the roots that are due and replace the gradients in `works` by their directions."""
        grad = self._gradients(works)
        with precision_scope(grad.device, options.precision):
            for piece in due:
                for start in range(piece.start, piece.stop, self.chunk):
                    stop = min(piece.stop, start + self.chunk)
                    if piece.index is None:
                        state = {name: tensor[start:stop] for name, tensor in self.state.items()}
                        refresh(method, state, grad[start:stop], options, piece.pace)
                    else:
                        index = piece.index[start:stop]
                        state = {name: tensor[index] for name, tensor in self.state.items()}
                        refresh(method, state, grad[index], options, piece.pace)
                        for name, tensor in self.state.items():
                            tensor.index_copy_(0, index, state[name])
        with precision_scope(grad.device, precision):
            directions = direction(self.state, grad, precision)
        del grad
        for member, part in zip(self.members, torch.split(directions, self.sizes), strict=True):
            bundle, blocks = member.bundle, part.mT if member.turned else part
            if bundle.blocking is not None and bundle.blocking.blocks == 1 and not member.turned:
                works[bundle] = blocks.view_as(works[bundle])
            else:
                scatter(blocks, bundle.matrices(works[bundle]), member.tile)

    def _gradients(self, works: dict[Bundle, Tensor]) -> Tensor:
        """The blocks of all members, `[count, m, n]`."""
        if len(self.members) == 1:
            (m,) = self.members
            return gather(m.bundle.matrices(works[m.bundle]), m.tile, turned=m.turned)
        first = works[self.members[0].bundle]
        blocks = first.new_empty(self.count, *self.shape)
        for m, part in zip(self.members, torch.split(blocks, self.sizes), strict=True):
            gather_into(part, m.bundle.matrices(works[m.bundle]), m.tile, turned=m.turned)
        return blocks

    def views(self) -> Iterator[tuple[Tensor, str, Tensor]]:
        """Parameter, name and view of all that is kept here, as if no block lay transposed."""
        offset = 0
        for member in self.members:
            bundle, tile = member.bundle, member.tile
            assert bundle.blocking is not None
            for p in bundle.params:
                for i in range(tile.blocks):
                    row, column = divmod(i, tile.grid[1])
                    block = (tile.first[0] + row) * bundle.blocking.grid[1] + tile.first[1] + column
                    for name, tensor in self.state.items():
                        yield p, f"{_turned(name) if member.turned else name}.{block}", tensor[offset]
                    offset += 1


def _turned(name: str) -> str:
    side, _, rest = name.partition("_")
    other = {"left": "right", "right": "left"}.get(side, side)
    return f"{other}_{rest}" if rest else other
