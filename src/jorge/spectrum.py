"""How far a stack of symmetric matrices stretches, and how white another is: by products alone, as refreshes are."""

from __future__ import annotations

import torch
from torch import Tensor

#: A matrix is raised to the power `2**_SQUARINGS`.
_SQUARINGS = 14


def extreme_eigenvalues(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest eigenvalue of symmetric positive matrices, `[count, d, d]`, each `[count]`.

    `tr(A · Aᵖ)/tr(Aᵖ)` tends to the largest one, λ, as p grows, and the same of `λI − A` to λ less the smallest. Both
    are right to about λ/5,000 in float32: a smallest one below that is not told apart from 0.

    >>> smallest, largest = extreme_eigenvalues(torch.diag(torch.tensor([0.5, 1.0, 4.0])).unsqueeze(0))
    >>> round(smallest.item(), 3), round(largest.item(), 3)
    (0.5, 4.0)
    """
    largest = _largest(matrices)
    bound = largest * 1.001  # so that the difference is positive
    shifted = -matrices
    shifted.diagonal(dim1=-2, dim2=-1).add_(bound.unsqueeze(-1))
    return bound - _largest(shifted), largest


def _largest(matrices: Tensor) -> Tensor:
    power = _unit(matrices)
    for _ in range(_SQUARINGS):
        power = _unit(power @ power)
    along, whole = matrices * power, power.diagonal(dim1=-2, dim2=-1)
    return torch.div(along.sum((-2, -1)), whole.sum(-1))


def _unit(matrices: Tensor) -> Tensor:
    return torch.div(matrices, torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True))


def residual(blocks: Tensor) -> Tensor:
    """How far matrices `[count, m, n]` are from white: `‖X/x̄ − I‖_F/√m`, X = VVᵀ of the shorter side, x̄ the mean of
    its diagonal, `[count]`.

    0 where all singular values are equal, and `√(m − 1)` where there is but one; NaN for a matrix of zeros. One of
    independent normal entries has about `√(m/n)`.

    >>> residual(torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 0, 0]))])).tolist()
    [0.0, 1.4142135381698608]
    """
    wide = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT
    m = wide.shape[1]
    unit = wide / torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)  # first, so that no fourth power overflows
    quartic: Tensor = torch.linalg.vector_norm(unit @ unit.mT, dim=(1, 2)).square()
    return (m * quartic - 1).clamp(min=0).sqrt()
