"""Which parameter gets what, and why: a matrix preconditioner, a diagonal side, or the graft optimizer's own step.

Pure functions of shapes, dtypes and options. What they return is what the optimizer allocates, to the byte, and what
:meth:`jorge.Jorge.plan` prints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from jorge.blocks import Blocking, BlockSize, Side, blocking
from jorge.grafting import buffer_dtypes
from jorge.methods import METHODS

Kind = Literal["matrix", "vector", "empty"]


@dataclass(frozen=True)
class Route:
    """What one parameter gets: its kind, its blocks (for a matrix), and the reason in words."""

    kind: Kind
    blocking: Blocking | None
    why: str


def route(shape: tuple[int, ...], *, block_size: BlockSize, max_dim: int) -> Route:
    """Decide for a parameter of `shape`.

    >>> route((64, 32, 3, 3), block_size=1024, max_dim=8192).why
    'read as 64 × 288, cut into 1 × 2 blocks'
    >>> route((64,), block_size=1024, max_dim=8192).kind
    'vector'
    """
    if 0 in shape:
        return Route("empty", None, "no elements: nothing to do")
    blocks = blocking(shape, block_size=block_size, max_dim=max_dim)
    if blocks is None:
        return Route("vector", None, "fewer than two dims above 1: the graft optimizer's own step")
    rows, cols = blocks.matrix
    why = f"read as {rows} × {cols}, " if tuple(shape) != blocks.matrix else ""
    why += "whole" if blocks.blocks == 1 else f"cut into {blocks.grid[0]} × {blocks.grid[1]} blocks"
    for side, kind, d in (("left", blocks.left, rows), ("right", blocks.right, cols)):
        if kind == "diagonal":
            why += f"; {side} side diagonal, as {d} > max_dim {max_dim}"
    return Route("matrix", blocks, why)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the step's arithmetic and buffers: float64 for float64 parameters, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def root_bytes(blocks: Blocking, *, method: str, itemsize: int) -> int:
    """Bytes of the roots, factors, moments and counters of one parameter."""
    total = 0
    for tile in blocks.tiles:
        elements = 0
        for d, kind in zip(tile.shape, (blocks.left, blocks.right), strict=True):
            if kind == "full":
                elements += d * d * (2 if METHODS[method].keeps_factor else 1)
            else:
                elements += 2 * d
        total += tile.blocks * (elements * itemsize + 4)
    return total


@dataclass(frozen=True)
class PlanRow:
    """What one parameter gets. `state_bytes` are those allocated at its first step, to the byte."""

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


@dataclass(frozen=True)
class Plan:
    """The plan of every parameter, in the order of the param groups; `str()` is an aligned table."""

    rows: tuple[PlanRow, ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state in all."""
        return sum(row.state_bytes for row in self.rows)

    def __str__(self) -> str:
        header = ("parameter", "shape", "blocks", "sides", "method", "graft", "state", "why")
        table = [header, *(_cells(row) for row in self.rows)]
        total = ("total", f"{len(self.rows)} parameters", "", "", "", "", f"{self.state_bytes:,} B", "")
        table.append(total)
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = []
        for line in table:
            cells = [c.rjust(w) if i == 6 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "─" * max(len(line) for line in lines))
        return "\n".join(lines)


def _cells(row: PlanRow) -> tuple[str, ...]:
    blocks = " + ".join(f"{count} of {m}×{n}" for count, m, n in row.blocks) or "–"
    sides = f"{row.left}/{row.right}" if row.left else "–"
    shape = "×".join(map(str, row.shape)) or "scalar"
    method = row.method if row.kind == "matrix" else "–"
    return row.name, shape, blocks, sides, method, row.grafting, f"{row.state_bytes:,} B", row.why


def plan_row(name: str, shape: Sequence[int], dtype: torch.dtype, group: dict[str, Any]) -> PlanRow:
    """The plan of one parameter under the options of its param group."""
    shape = tuple(shape)
    decision = route(shape, block_size=group["block_size"], max_dim=group["max_dim"])
    compute = compute_dtype(dtype)
    is_matrix = decision.kind == "matrix"
    dtypes = buffer_dtypes(group["grafting"], compute, group["preconditioner_dtype"] if is_matrix else None)
    state = math.prod(shape) * (sum(dtype.itemsize for dtype in dtypes.values()) + is_matrix * compute.itemsize)
    if group["grafting"] == "adam" and decision.kind != "empty":
        state += 4  # the step counter of the bias correction
    if group["grafting"] == "sgd" and is_matrix:
        state += 2 * compute.itemsize  # the running average of step lengths
    blocks: tuple[tuple[int, int, int], ...] = ()
    left: Side | None = None
    right: Side | None = None
    if decision.blocking is not None:
        stored = group["preconditioner_dtype"] or compute
        state += root_bytes(decision.blocking, method=group["method"], itemsize=stored.itemsize)
        blocks = tuple((tile.blocks, *tile.shape) for tile in decision.blocking.tiles)
        left, right = decision.blocking.left, decision.blocking.right
    return PlanRow(
        name, shape, decision.kind, blocks, left, right, group["method"], group["grafting"], state, decision.why
    )
