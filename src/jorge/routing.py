"""Which parameter gets what, and why: a matrix preconditioner, a diagonal side, or the graft optimizer's own step.

Pure functions of shapes, dtypes and options. What they return is what the optimizer allocates, to the byte, and what
:meth:`jorge.Jorge.plan` prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from jorge.blocks import Blocking, Side, blocking
from jorge.grafting import buffer_dtypes
from jorge.methods import METHODS
from jorge.options import BlockSize, Options

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
    why += "whole" if blocks.blocks == 1 else f"cut into {blocks.counts[0]} × {blocks.counts[1]} blocks"
    for side, kind, d in (("left", blocks.left, rows), ("right", blocks.right, cols)):
        if kind == "diagonal":
            why += f"; {side} side diagonal, as {d} > max_dim {max_dim}"
    return Route("matrix", blocks, why)


def is_linear_map(shape: tuple[int, ...]) -> bool:
    """Whether a matrix is one of a linear map; a kernel of more than one tap is not.

    >>> [is_linear_map(shape) for shape in [(8, 4), (8, 4, 1, 1), (8, 4, 3, 3)]]
    [True, True, False]
    """
    return math.prod(shape[2:]) == 1


def has_schatten_length(shape: tuple[int, ...], sides: tuple[Side, Side], options: Options) -> bool:
    """Whether the length of a matrix's step is Adam's in the Schatten norm: of a linear map that has a full side."""
    return options.measures_schatten and "full" in sides and is_linear_map(shape)


#: The dtype of the step's arithmetic and buffers, by that of the parameter.
COMPUTE_DTYPES = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def stored_dtype(dtype: torch.dtype, options: Options) -> torch.dtype:
    """The dtype in which the preconditioners of a parameter are stored."""
    return options.preconditioner_dtype or COMPUTE_DTYPES[dtype]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of a parameter's state; `step`, a number of the host's, is not among them.

    Args:
        buffers: like the parameter, `[*shape]`.
        sides: a number for each row, or for each column, of the matrix that the parameter is read as.
        scalars: a number or two for the parameter.
        grids: for each grid of equal blocks, `[blocks, …]`; the grid's number is appended: `left.0`.
    """

    buffers: dict[str, torch.dtype]
    sides: dict[str, tuple[tuple[int, ...], torch.dtype]]
    scalars: dict[str, tuple[tuple[int, ...], torch.dtype]]
    grids: tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], ...]

    def tensors(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every tensor, by its key in the state."""
        found = {name: (tuple(shape), dtype) for name, dtype in self.buffers.items()}
        found |= self.sides | self.scalars
        for i, grid in enumerate(self.grids):
            found |= {f"{name}.{i}": each for name, each in grid.items()}
        return found


def layout(shape: tuple[int, ...], dtype: torch.dtype, options: Options) -> Layout:
    """The state of a parameter of `shape`.

    >>> sorted(layout((4, 6), torch.float32, Options(lr=0.1, grafting="sgd")).tensors((4, 6)))
    ['graft_length', 'graft_momentum_buffer', 'left.0', 'momentum_buffer', 'refreshes.0', 'right.0']
    """
    decision = route(shape, block_size=options.block_size, max_dim=options.max_dim)
    if decision.kind == "empty":
        return Layout({}, {}, {}, ())
    compute, blocks = COMPUTE_DTYPES[dtype], decision.blocking
    buffers = buffer_dtypes(options.grafting, compute, options.preconditioner_dtype if blocks else None)
    scalars: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if options.grafting == "adam":
        scalars["adam_step"] = ((), torch.float32)
    if blocks is None:
        return Layout(buffers, {}, scalars, ())
    if options.grafting == "sgd":
        scalars["graft_length"] = ((2,), compute)
    stored, method = stored_dtype(dtype, options), METHODS[options.method]
    grids = []
    for grid in blocks.grids:
        kept = {name: ((grid.blocks, *each), stored) for name, each in method.layout(grid.shape, blocks.sides).items()}
        if options.measures_schatten:
            kept["quartics"] = ((grid.blocks, 2), compute)
        grids.append({**kept, "refreshes": ((grid.blocks,), torch.float32)})
    sides: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if options.adapts and is_linear_map(shape):
        sides = {name: ((d,), compute) for name, d in zip(("row_var", "col_var"), blocks.matrix, strict=True)}
    return Layout({**buffers, "momentum_buffer": compute}, sides, scalars, tuple(grids))
