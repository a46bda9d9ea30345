"""Variance adaptation: what whitening leaves of large rows and columns is levelled, with a row and a column of memory.

Whitening levels the singular values of the gradients, not the size of their rows and columns. Adafactor's factored
second moment (Shazeer and Stern, arXiv 1804.04235, section 3), here of the directions, says what those are; the
direction is divided by the fourth root of both, half of what would make them alike: by the square roots an entry that
is alone in its row and column, and small, would become the largest (`docs/notebook/hypotheses.md`).

Pure functions on lists of tensors, one for each shape group of linear maps: directions are `[count, M, N]`, `row_var`
is `[count, M]` and `col_var` is `[count, N]`, of one dtype and device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jorge.grafting import lerp

#: A running mean remembers so many steps at most.
_REMEMBERED = 20
#: The least share of a row or column: what has less, such as a dead row, is rounding and stays small.
_LEAST = 1e-10


def side_norms(directions: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The norms of the rows of each direction, `[count, M]`, and of its columns, `[count, N]`."""
    matrices = [_matrices(direction) for direction in directions]
    rows, columns = ([torch.linalg.vector_norm(each, dim=dim) for each in matrices] for dim in (2, 1))
    return rows, columns


def observe(
    row_vars: list[Tensor],
    col_vars: list[Tensor],
    row_norms: Sequence[Tensor],
    col_norms: Sequence[Tensor],
    steps: Tensor,
    moves: Tensor,
) -> None:
    """`v ← v + w(d − v)` in place, d the share of each row, or column, in the squared norm of a direction.

    Args:
        row_vars, col_vars: v. Their scale is free: they shrink at a direction without a norm, of zeros, too large or so
            small that its squares underflow.
        row_norms, col_norms: of what is observed (:func:`side_norms`).
        steps: t of each matrix, `[total]`; `w = max(1/20, 1/t)`.
        moves: 1 where a parameter moves and 0 elsewhere, `[total]` or 0-dim.
    """
    sides = [*row_norms, *col_norms]
    whole = torch.cat([torch.linalg.vector_norm(row, dim=1) for row in row_norms])
    info, sizes = torch.finfo(whole.dtype), [len(each) for each in row_norms]
    torch._foreach_clamp_max_(sides, info.max)  # so that infinity over infinity is zero
    torch._foreach_div_(sides, 2 * _columns(whole.clamp(min=info.tiny**0.5), sizes))
    torch._foreach_mul_(sides, sides)
    weights = moves / steps.to(whole.dtype).clamp(min=1, max=_REMEMBERED)
    lerp([*row_vars, *col_vars], sides, 2 * _columns(weights, sizes))


def adapt(directions: Sequence[Tensor], row_vars: Sequence[Tensor], col_vars: Sequence[Tensor]) -> None:
    """Divide each direction, in place, by the fourth roots of the variances of its rows and columns.

    Its length becomes another.
    """
    scales = torch._foreach_clamp_min([*row_vars, *col_vars], _LEAST)
    torch._foreach_pow_(scales, -0.25)
    matrices = [_matrices(direction) for direction in directions]
    torch._foreach_mul_(matrices, [scale.unsqueeze(-1) for scale in scales[: len(row_vars)]])
    torch._foreach_mul_(matrices, [scale.unsqueeze(-2) for scale in scales[len(row_vars) :]])


def _matrices(tensor: Tensor) -> Tensor:
    """`[count, M, N]` of `[count, M, N, 1, …]`."""
    return tensor.flatten(2) if tensor.dim() > 3 else tensor


def _columns(values: Tensor, sizes: list[int]) -> list[Tensor]:
    """`[total]` as `[count, 1]` of each shape group."""
    return [part.unsqueeze(-1) for part in torch.split(values, sizes)]
