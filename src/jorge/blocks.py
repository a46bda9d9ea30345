"""How a tensor becomes matrices: merge small dims, split large ones, stack equal shapes.

Pure functions of shapes, plus the copies (:func:`gather`, :func:`scatter`) that move data between a
parameter's layout and a batch of equal blocks. Nothing here holds state or knows an optimizer.

A parameter is first read as one matrix (:func:`matrix_shape`), whose two sides are then cut into parts that
are as equal as possible (:func:`split`). Parts of one side differ by at most one row, so a matrix has at most
four different block shapes; the equal blocks of each are a :class:`BlockGrid`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from jorge.options import BlockSize

Side = Literal["full", "diagonal"]

#: A side up to here is cut only where a number says so: blocks of it cost little beside the model's own work.
_CHEAP = 256
#: What `"auto"` cuts a longer side to. Against blocks of up to 1024 it takes about an eighth more steps on the deep
#: autoencoder, and hardly more on the other tasks, for a sixth to a half of the operations (`docs/guide/speed.md`).
_PART = 128

#: A conv kernel is `[out, in·h·w]` in all of the literature; another merge has to be this much nearer to square.
_CLEARLY_SQUARER = 4.0


@dataclass(frozen=True)
class BlockGrid:
    """`rows × columns` equal blocks of `shape` that lie side by side; the first element of the first is at `offset`."""

    shape: tuple[int, int]
    rows: int
    columns: int
    offset: tuple[int, int]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Blocking:
    """How one parameter is cut: its matrix, the kind of each side, and its blocks, equal ones together."""

    matrix: tuple[int, int]
    left: Side
    right: Side
    grids: tuple[BlockGrid, ...]

    @property
    def sides(self) -> tuple[Side, Side]:
        """The kinds of both sides."""
        return self.left, self.right

    @property
    def blocks(self) -> int:
        """Number of blocks of the parameter."""
        return sum(grid.blocks for grid in self.grids)

    @property
    def rank(self) -> int:
        """The ranks of all blocks, added up."""
        return sum(grid.blocks * min(grid.shape) for grid in self.grids)

    @property
    def counts(self) -> tuple[int, int]:
        """Number of blocks along each side."""
        top = [grid for grid in self.grids if grid.offset[0] == 0]
        left = [grid for grid in self.grids if grid.offset[1] == 0]
        return sum(grid.rows for grid in left), sum(grid.columns for grid in top)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Read a tensor's shape as a matrix, or `None` where it has fewer than two dims above 1.

    Dims of 1 are dropped, the rest is cut once: `[out | in·h·w]` for a kernel, and elsewhere when another cut is
    clearly nearer to square (`[8, 64, 512]` of eight attention heads is `512 × 512`, not `8 × 32768`).

    >>> matrix_shape((64, 32, 3, 3)), matrix_shape((1, 64, 64)), matrix_shape((8, 64, 512))
    ((64, 288), (64, 64), (512, 512))
    >>> matrix_shape((1, 64)) is None
    True
    """
    dims = [d for d in shape if d != 1]
    if len(dims) < 2 or 0 in dims:
        return None
    rows = row_dims(shape)
    return math.prod(shape[:rows]), math.prod(shape[rows:])


def row_dims(shape: tuple[int, ...]) -> int:
    """How many of a tensor's first dims are the rows of the matrix that it is read as, where it is one."""
    places = [i for i, d in enumerate(shape) if d != 1]
    cuts = {places[j]: (math.prod(shape[: places[j]]), math.prod(shape[places[j] :])) for j in range(1, len(places))}

    def elongation(cut: int) -> float:
        return max(cuts[cut]) / min(cuts[cut])

    first, squarest = min(cuts), min(cuts, key=elongation)
    return squarest if elongation(first) >= _CLEARLY_SQUARER * elongation(squarest) else first


def split(size: int, limit: int) -> list[int]:
    """Cut `size` into the fewest parts of at most `limit`, as equal as possible, larger ones first.

    >>> split(4608, 1024), split(64, 1024)
    ([922, 922, 922, 921, 921], [64])
    """
    count = -(-size // limit)
    small, larger = divmod(size, count)
    return [small + 1] * larger + [small] * (count - larger)


def blocking(shape: tuple[int, ...], *, block_size: BlockSize, max_dim: int) -> Blocking | None:
    """Cut a tensor of `shape` into blocks; `None` where it is not a matrix (see :func:`matrix_shape`).

    Args:
        shape: the tensor's shape.
        block_size: the largest side of a block (:func:`near_square`), `"auto"` (:func:`automatic`), or `None` for
            whole matrices.
        max_dim: a side longer than this is not cut but diagonal: one number a row instead of a matrix.

    >>> b = blocking((512, 512, 3, 3), block_size=1024, max_dim=8192)
    >>> b.matrix, b.counts, [(grid.shape, grid.blocks) for grid in b.grids]
    ((512, 4608), (1, 9), [((512, 512), 9)])
    >>> blocking((50257, 768), block_size=1024, max_dim=8192).left
    'diagonal'
    """
    matrix = matrix_shape(shape)
    if matrix is None:
        return None
    kinds: list[Side] = ["diagonal" if d > max_dim else "full" for d in matrix]
    if block_size is None:
        limits = matrix
    else:
        limits = automatic(matrix) if block_size == "auto" else near_square(matrix, block_size)
    parts = [
        [d] if kind == "diagonal" else split(d, limit) for d, kind, limit in zip(matrix, kinds, limits, strict=True)
    ]
    grids = tuple(
        BlockGrid(shape=(m, n), rows=rows, columns=columns, offset=(y, x))
        for y, m, rows in _runs(parts[0])
        for x, n, columns in _runs(parts[1])
    )
    return Blocking(matrix, kinds[0], kinds[1], grids)


def automatic(matrix: tuple[int, int]) -> tuple[int, int]:
    """Block sides where the user names none: a side of up to 256 whole, a longer one cut to about 128.

    >>> automatic((256, 192)), automatic((512, 4608)), automatic((10, 320))
    ((256, 192), (128, 128), (10, 107))
    """
    rows, columns = (side if side <= _CHEAP else _even_limit(side, _PART) for side in matrix)
    return rows, columns


def near_square(matrix: tuple[int, int], largest: int) -> tuple[int, int]:
    """Largest block sides of at most `largest` that make blocks near-square: the work of a block is least there.

    A side is cut to at most the length of the shorter one, or to at most 256 where that is longer: below, there is
    little to save. It is cut into the fewest parts that this allows, or up to a quarter more where these are equal:
    equal blocks are worked on together. So the parts themselves may be shorter than 256.

    >>> near_square((128, 1152), 1024), near_square((10, 576), 128), near_square((4096, 1024), 1024)
    ((128, 192), (10, 96), (1024, 1024))
    """
    limit = min(largest, max(_CHEAP, min(matrix)))
    return _even_limit(matrix[0], limit), _even_limit(matrix[1], limit)


def _even_limit(size: int, limit: int) -> int:
    """The limit that cuts `size` into equal parts, if a quarter more than the fewest suffice, else the fewest's."""
    fewest = -(-size // limit)
    even = [count for count in range(fewest, fewest + fewest // 4 + 1) if size % count == 0]
    return -(-size // (even[0] if even else fewest))


def _runs(parts: list[int]) -> list[tuple[int, int, int]]:
    """`(offset, size, count)` of each run of equal parts; `split` makes at most two."""
    runs, offset = [], 0
    for size in dict.fromkeys(parts):
        count = parts.count(size)
        runs.append((offset, size, count))
        offset += count * size
    return runs


def gather(matrices: Tensor, grid: BlockGrid, *, transposed: bool = False) -> Tensor:
    """The grid's blocks of `[count, M, N]` matrices as `[count · blocks, m, n]`; a view where the layout allows.

    `transposed` transposes each block: `[count · blocks, n, m]`.
    """
    window = _window(matrices, grid)
    window = window.mT if transposed else window
    return window.reshape(-1, *window.shape[-2:])


def gather_into(blocks: Tensor, matrices: Tensor, grid: BlockGrid, *, transposed: bool = False) -> None:
    """As :func:`gather`, to where there is room for it: `[count · blocks, m, n]`."""
    window = _window(matrices, grid)
    window = window.mT if transposed else window
    blocks.view(window.shape).copy_(window)


def scatter(blocks: Tensor, matrices: Tensor, grid: BlockGrid) -> None:
    """Write the grid's blocks, `[count · blocks, m, n]`, to their place in `[count, M, N]`."""
    _window(matrices, grid).copy_(blocks.view(matrices.shape[0], grid.rows, grid.columns, *grid.shape))


def _window(matrices: Tensor, grid: BlockGrid) -> Tensor:
    """The grid as `[count, rows, columns, m, n]`, a view."""
    (m, n), (y, x) = grid.shape, grid.offset
    return matrices[:, y : y + grid.rows * m, x : x + grid.columns * n].unfold(1, m, m).unfold(2, n, n)
