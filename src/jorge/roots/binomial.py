"""`binomial`: the paper's recursion for the inverse fourth root (arXiv 2310.12298), as it stands and guarded."""

from __future__ import annotations

import torch
from torch import Tensor

from jorge.roots.products import Precision, choose, multiply, norm, per_block, square_sum


def binomial(
    root: Tensor, grad: Tensor, *, narrow: bool | None = None, degree: int = 2, precision: Precision = None
) -> Tensor:
    r"""One refresh of the paper's recursion for the left side; for the right side pass `grad.mT`.

    With `X = L⁴ G Gᵀ`, `ν = ‖X‖_F` and `β2 = ν/(1+ν)`:
    `L ← β2^(-1/4) · L (I − X/(4ν) + 5X²/(32ν²))`. Right-multiplied and not symmetrised, as in the paper.
    Where ν is not finite or not above 1e-30, `L` is kept.

    Args:
        root: `L`, `[count, m, m]`.
        grad: `G`, `[count, m, n]`.
        narrow: the form that never builds `L⁴` or `GGᵀ`, an exact rewrite; `None` chooses by operation count.
        degree: of the series; 1 leaves out `X²`.
        precision: of the products (:mod:`jorge.roots.products`).

    Source: arXiv 2310.12298, algorithm 1 as reconstructed (see :mod:`jorge.roots`).
    """
    form = _narrow if (binomial_takes_narrow(*grad.shape[-2:]) if narrow is None else narrow) else _wide
    return form(root, grad, degree, precision)


def _wide(root: Tensor, grad: Tensor, degree: int, precision: Precision) -> Tensor:
    root2 = multiply(root, root, precision)
    x = multiply(multiply(multiply(root2, root2, precision), grad, precision), grad.mT, precision)
    nu = norm(x)
    x = x / per_block(nu)
    step = multiply(root, x, precision)
    series = root - step / 4
    if degree == 2:
        series = series + multiply(step, x, precision) * (5 / 32)
    return _scaled(series, root, nu)


def _narrow(root: Tensor, grad: Tensor, degree: int, precision: Precision) -> Tensor:
    u = grad
    for _ in range(4):
        u = multiply(root, u, precision)
    u_norm, g_norm = norm(u), norm(grad)  # apart: ν² may underflow
    u, g = u / per_block(u_norm), grad / per_block(g_norm)
    grams = multiply(u.mT, u, precision) * multiply(g.mT, g, precision)
    unit = grams.flatten(1).sum(-1).clamp(min=0).sqrt()
    u = u / per_block(unit)
    step = multiply(root, u, precision)
    if degree == 1:
        step = step / 4
    else:
        inner = multiply(g.mT, u, precision) * (-5 / 32)
        inner.diagonal(dim1=-2, dim2=-1).add_(1 / 4)
        step = multiply(step, inner, precision)
    return _scaled(root - multiply(step, g.mT, precision), root, unit * u_norm * g_norm)


def _scaled(series: Tensor, root: Tensor, nu: Tensor) -> Tensor:
    beta2 = nu / (1 + nu)
    return choose(torch.isfinite(nu) & (nu > 1e-30), series * per_block(beta2**-0.25), root)


def binomial_start(grad: Tensor, eps: float | None) -> Tensor:
    """`L_0`, `[count, m, m]`: `ε^(-1/4) I` for a given ε (the paper), `(tr(GGᵀ)/m)^(-1/4) I` for `None`."""
    count, m, _ = grad.shape
    scale = grad.new_full((count,), eps) if eps is not None else square_sum(grad) / m
    return torch.diag_embed((scale**-0.25).unsqueeze(-1).expand(count, m))


def binomial_takes_narrow(m: int, n: int) -> bool:
    """Whether a side of m with the other of n is cheaper in the narrow form."""
    return _narrow_flops(m, n) < _wide_flops(m, n)


def binomial_flops(m: int, n: int, degree: int = 2) -> int:
    """Operations of a refresh of one side of m with the other of n."""
    if binomial_takes_narrow(m, n):
        return _narrow_flops(m, n) - (4 * m * n * n if degree == 1 else 0)
    return _wide_flops(m, n) - (2 * m**3 if degree == 1 else 0)


def _wide_flops(m: int, n: int) -> int:
    return 8 * m**3 + 4 * m * m * n


def _narrow_flops(m: int, n: int) -> int:
    return 12 * m * m * n + 8 * m * n * n
