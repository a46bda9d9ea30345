"""What :meth:`jorge.Jorge.plan` returns: the plan of each parameter, as data and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jorge.blocks import Side
from jorge.options import Options
from jorge.routing import Kind, layout, route_by

#: Columns of numbers.
_NUMBERS = ("group", "lr", "decay", "state")


@dataclass(frozen=True)
class PlanRow:
    """What one parameter gets. `state_bytes` are those allocated at its first step, to the byte.

    `group` is the number of its param group, of which `lr` and `weight_decay` are what they are now.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    blocks: tuple[tuple[int, int, int], ...]
    left: Side | None
    right: Side | None
    method: str
    grafting: str
    state_bytes: int
    why: str
    group: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Plan:
    """The plan of every parameter, in the order of the param groups; `str()` is an aligned table."""

    rows: tuple[PlanRow, ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state in all."""
        return sum(row.state_bytes for row in self.rows)

    def __str__(self) -> str:
        header = ("parameter", "shape", "group", "lr", "decay", "blocks", "sides", "method", "graft", "state", "why")
        table = [header, *(_cells(row) for row in self.rows)]
        total = ("total", f"{len(self.rows)} parameters", *[""] * 7, f"{self.state_bytes:,} B", "")
        table.append(total)
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = []
        sides = [str.rjust if name in _NUMBERS else str.ljust for name in header]
        for line in table:
            cells = [side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "─" * max(len(line) for line in lines))
        return "\n".join(lines)


def _cells(row: PlanRow) -> tuple[str, ...]:
    blocks = " + ".join(f"{count} of {m}×{n}" for count, m, n in row.blocks) or "–"
    sides = f"{row.left}/{row.right}" if row.left else "–"
    shape = "×".join(map(str, row.shape)) or "scalar"
    method = row.method if row.kind == "matrix" else "–"
    numbers = (str(row.group), f"{row.lr:.4g}", f"{row.weight_decay:.4g}")
    return row.name, shape, *numbers, blocks, sides, method, row.grafting, f"{row.state_bytes:,} B", row.why


def plan_row(name: str, shape: Sequence[int], dtype: torch.dtype, options: Options, group: int = 0) -> PlanRow:
    """The plan of one parameter under the options of its param group, of this number."""
    shape = tuple(shape)
    decision = route_by(shape, options)
    tensors = layout(shape, dtype, options).tensors(shape).values()
    blocks: tuple[tuple[int, int, int], ...] = ()
    left: Side | None = None
    right: Side | None = None
    if decision.blocking is not None:
        blocks = tuple((decision.parts * grid.blocks, *grid.shape) for grid in decision.blocking.grids)
        left, right = decision.blocking.sides
    return PlanRow(
        name,
        shape,
        decision.kind,
        blocks,
        left,
        right,
        options.method,
        options.grafting,
        sum(math.prod(size) * kind.itemsize for size, kind in tensors),
        decision.why,
        group,
        float(options.lr),
        float(options.weight_decay),
    )
