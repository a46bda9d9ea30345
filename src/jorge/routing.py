"""Which parameter gets what, and why: a matrix preconditioner, a diagonal side, or the graft optimizer's own step.

Pure functions of shapes, dtypes and options. What they return is what the optimizer allocates, to the byte, and what
:meth:`jorge.Jorge.plan` prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from jorge.blocks import Blocking, Side, blocking, matrix_shape
from jorge.grafting import buffer_names
from jorge.methods import METHODS
from jorge.options import BlockSize, Options

Kind = Literal["matrix", "vector", "empty"]


@dataclass(frozen=True)
class Route:
    """What one parameter gets, and the reason in words.

    Args:
        kind: of the parameter.
        blocking: the blocks of a matrix, of each where there are several.
        why: the reason.
        parts: how many matrices it holds, 1 where it is no matrix.
        part: the shape of each; of what is no matrix its own.
    """

    kind: Kind
    blocking: Blocking | None
    why: str
    parts: int
    part: tuple[int, ...]


def route(
    shape: tuple[int, ...], *, block_size: BlockSize, max_dim: int, batch_dims: int = 0, splits: int = 1
) -> Route:
    """Decide for a parameter of `shape`.

    Raises:
        ValueError: its matrices cannot be cut into `splits` equal parts.

    >>> route((64, 32, 3, 3), block_size=1024, max_dim=8192).why
    'read as 64 × 288, cut into 1 × 2 blocks'
    >>> route((64,), block_size=1024, max_dim=8192).kind
    'vector'
    >>> route((8, 64, 32), block_size="auto", max_dim=8192, batch_dims=1).why
    '8 matrices, each whole'
    """
    if 0 in shape:
        return Route("empty", None, "no elements: nothing to do", 1, shape)
    parts, part = divided(shape, batch_dims, splits)
    blocks = blocking(part, block_size=block_size, max_dim=max_dim)
    if blocks is None:
        return Route("vector", None, "fewer than two dims above 1: the graft optimizer's own step", 1, shape)
    rows, cols = blocks.matrix
    why = f"{parts} matrices, each " if parts > 1 else ""
    why += f"read as {rows} × {cols}, " if tuple(part) != blocks.matrix else ""
    why += "whole" if blocks.blocks == 1 else f"cut into {blocks.counts[0]} × {blocks.counts[1]} blocks"
    for side, kind, d in (("left", blocks.left, rows), ("right", blocks.right, cols)):
        if kind == "diagonal":
            why += f"; {side} side diagonal, as {d} > max_dim {max_dim}"
    return Route("matrix", blocks, why, parts, part)


def route_by(shape: tuple[int, ...], options: Options) -> Route:
    """As :func:`route`, by the options of a param group."""
    return route(
        shape,
        block_size=options.block_size,
        max_dim=options.longest_side,
        batch_dims=options.batch_dims,
        splits=options.splits,
    )


def divided(shape: tuple[int, ...], batch_dims: int, splits: int) -> tuple[int, tuple[int, ...]]:
    """How many matrices a parameter holds, one after the other, and the shape of each.

    Raises:
        ValueError: they are matrices that cannot be cut into `splits` equal parts.

    >>> divided((8, 64, 32), 1, 1), divided((96, 32), 0, 3), divided((96,), 0, 3)
    ((8, (64, 32)), (3, (32, 32)), (3, (32,)))
    """
    count, each = math.prod(shape[:batch_dims]), tuple(shape[batch_dims:])
    if splits > 1 and each:
        if each[0] % splits and matrix_shape(each) is not None:
            raise ValueError(
                f"splits={splits} does not cut {each[0]} rows into equal parts (shape {tuple(shape)}): give a number "
                "that does. Where parts differ, as in grouped-query attention, let it cut each of them too"
            )
        if each[0] % splits == 0:
            count, each = count * splits, (each[0] // splits, *each[1:])
    return count, each


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
        sides: a number for each row, or for each column, of the matrix that the parameter is read as; `[parts, …]`
            where it is read as several.
        scalars: a number or two for the parameter; likewise.
        grids: for each grid of equal blocks, `[blocks, …]`, matrix by matrix; the grid's number is appended: `left.0`.
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
    ['graft_length', 'left.0', 'momentum_buffer', 'refreshes.0', 'right.0']
    """
    decision = route_by(shape, options)
    if decision.kind == "empty":
        return Layout({}, {}, {}, ())
    compute, blocks = COMPUTE_DTYPES[dtype], decision.blocking
    buffers = dict.fromkeys(buffer_names(options.grafting), compute)
    several = (decision.parts,) if decision.parts > 1 else ()
    scalars: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if options.grafting == "adam":
        scalars["adam_step"] = (several, torch.float32)
    if blocks is None:
        return Layout(buffers, {}, scalars, ())
    if options.grafting == "sgd":
        scalars["graft_length"] = ((*several, 2), compute)
    if options.measures_schatten:
        scalars["schatten_scale"] = (several, compute)
    stored, method = stored_dtype(dtype, options), METHODS[options.method]
    grids = []
    for grid in blocks.grids:
        count = decision.parts * grid.blocks
        kept = {name: ((count, *each), stored) for name, each in method.layout(grid.shape, blocks.sides).items()}
        if options.measures_schatten:
            kept["quartics"] = ((count, 2), compute)
        grids.append({**kept, "refreshes": ((count,), torch.float32)})
    sides: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if options.adapts and is_linear_map(decision.part):
        sides = {name: ((*several, d), compute) for name, d in zip(("row_var", "col_var"), blocks.matrix, strict=True)}
    return Layout(buffers, sides, scalars, tuple(grids))
