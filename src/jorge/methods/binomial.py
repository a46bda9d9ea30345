"""`binomial`: the paper's recursion for the inverse fourth root (arXiv 2310.12298), as it stands and guarded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jorge.methods.exact import Moments
from jorge.methods.method import Counterpart, Method, Refresh, Shape, Sides, State, each_side, each_side_flops
from jorge.methods.products import choose, multiply, norm, per_block, square_sum
from jorge.options import Options, Precision
from jorge.trace import Trace


def refresh_root(
    root: Tensor,
    grad: Tensor,
    *,
    narrow: bool | None = None,
    degree: int = 2,
    precision: Precision = None,
    record: Callable[[Tensor], None] | None = None,
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
        precision: of the products (:mod:`jorge.methods.products`).
        record: told of ν, `[count]`.

    Source: arXiv 2310.12298, algorithm 1. Its full text was not at hand when this was written: the recursion is
    reconstructed from its abstract, its public reviews and a third party's comments on the algorithm.
    """
    form = _narrow if (takes_narrow(*grad.shape[-2:]) if narrow is None else narrow) else _wide
    series, nu = form(root, grad, degree, precision)
    if record is not None:
        record(nu)
    beta2 = nu / (1 + nu)
    return choose(torch.isfinite(nu) & (nu > 1e-30), series * per_block(beta2**-0.25), root)


def _wide(root: Tensor, grad: Tensor, degree: int, precision: Precision) -> tuple[Tensor, Tensor]:
    """`L (I − X/(4ν) + 5X²/(32ν²))` and ν."""
    root2 = multiply(root, root, precision)
    x = multiply(multiply(multiply(root2, root2, precision), grad, precision), grad.mT, precision)
    nu = norm(x)
    x = x / per_block(nu)
    step = multiply(root, x, precision)
    series = root - step / 4
    if degree == 2:
        series = series + multiply(step, x, precision) * (5 / 32)
    return series, nu


def _narrow(root: Tensor, grad: Tensor, degree: int, precision: Precision) -> tuple[Tensor, Tensor]:
    """The same from `U = L⁴G`: `L − (L U)(I/(4ν) − 5/(32ν²)·GᵀU) Gᵀ`, and `ν² = ⟨UᵀU, GᵀG⟩`."""
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
    return root - multiply(step, g.mT, precision), unit * u_norm * g_norm


def start_root(grad: Tensor, eps: float | None) -> Tensor:
    """`L_0`, `[count, m, m]`: `ε^(-1/4) I` for a given ε (the paper), `(tr(GGᵀ)/m)^(-1/4) I` for `None`."""
    count, m, _ = grad.shape
    scale = grad.new_full((count,), eps) if eps is not None else square_sum(grad) / m
    return torch.diag_embed((scale**-0.25).unsqueeze(-1).expand(count, m))


def takes_narrow(m: int, n: int) -> bool:
    """Whether a side of m with the other of n is cheaper in the narrow form."""
    return _narrow_flops(m, n) < _wide_flops(m, n)


def root_flops(m: int, n: int, degree: int = 2) -> int:
    """Operations of a refresh of one side of m with the other of n."""
    if takes_narrow(m, n):
        return _narrow_flops(m, n) - (4 * m * n * n if degree == 1 else 0)
    return _wide_flops(m, n) - (2 * m**3 if degree == 1 else 0)


def _wide_flops(m: int, n: int) -> int:
    return 8 * m**3 + 4 * m * m * n


def _narrow_flops(m: int, n: int) -> int:
    return 12 * m * m * n + 8 * m * n * n


class Binomial(Method):
    """`method="binomial"`: the paper's."""

    name = "binomial"
    symmetric = False
    eps = 1e-6

    #: Neither side is symmetric, so that a transposed block's would be the transposes of these.
    transposable = False

    def refresh_at(self, number: int, gap: int) -> Refresh:
        """Every refresh is one step of the series."""
        return Refresh()

    def refreshed(
        self, state: State, grad: Tensor, largest: Tensor, options: Options, refresh: Refresh, trace: Trace | None
    ) -> State:
        """See :func:`refresh_root`."""
        eps = None if options.init == "auto" else (options.root_eps or self.eps)
        shares: dict[str, Tensor] = {}

        def full(side: str, root: Tensor, seen: Tensor) -> State:
            def record(nu: Tensor) -> None:
                shares[side] = 1 / (1 + nu)

            root = choose(state["refreshes"] == 0, start_root(seen, eps), root)
            told = record if trace is not None else None
            return {side: refresh_root(root, seen, degree=options.degree, precision=options.precisions[0], record=told)}

        new = each_side(state, grad, options, full)
        if trace is not None:
            trace.refreshed(shares)
        return new

    def refresh_flops(self, shape: Shape, sides: Sides, options: Options, refresh: Refresh) -> int:
        """See :func:`root_flops`."""
        return each_side_flops(shape, sides, lambda d, k: root_flops(d, k, options.degree))

    def counterpart(self, shape: Shape, options: Options, device: torch.device) -> Counterpart:
        """The root of the second moment with the memory that the method's own β2 implies at each refresh, by `eigh`."""
        eps = options.root_eps or self.eps
        paper = options.init == "paper"
        return Moments(
            shape,
            device,
            start=lambda gram: eps if paper else gram.trace() / len(gram),
            share=lambda given: given,
        )
