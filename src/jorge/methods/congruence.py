"""`congruence`: Shampoo's inverse fourth root, tracked symmetric and positive definite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from jorge.methods.exact import Moments
from jorge.methods.method import (
    DAMPING_PERIOD,
    EARLY_REFRESHES,
    Counterpart,
    Method,
    Refresh,
    Shape,
    Sides,
    State,
    each_side,
    each_side_flops,
)
from jorge.methods.products import choose, congruent, multiply, multiply_add, norm, per_block, square_sum
from jorge.options import Options, Precision
from jorge.trace import Trace

#: Minimax of `(1+x)^(-1/8)` on [0, 6] as `1 + p1·x + p2·x²`; the Taylor polynomial on [0, 1] is clearly worse.
CONGRUENCE_POLYNOMIAL, CONGRUENCE_CAP = (-0.077425, 0.007224), 6.0
#: The line of least relative error on [0, 2], 1.6 %.
CONGRUENCE_LINE, CONGRUENCE_LINE_CAP = (-0.0709, 0.0), 2.0


def refresh_root(
    root: Tensor,
    grad: Tensor,
    *,
    beta2: float,
    damping: float,
    substeps: int,
    narrow: bool | None = None,
    damping_refreshes: int = 1,
    degree: int = 2,
    precision: Precision = None,
    record: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    r"""One refresh of the symmetric recursion for the left side; for the right side pass `grad.mT`.

    `X = L²GGᵀL²` is similar to `L⁴GGᵀ`, and `L ← β2^(-1/4) sym(Q L Q)` with `Q = q(wX) ≈ (I + wX)^(-1/8)` stays
    symmetric positive definite. The weight `(1−β2)/β2` is given in steps of at most `cap/λ_max`.

    Args:
        root: `L`, `[count, m, m]`, symmetric positive definite.
        grad: `G`, `[count, m, n]`.
        beta2: memory of the second moment.
        damping: adds `damping·σ²·n·L⁴` to `X`, with σ² the mean square of `G`: white noise, in expectation.
        substeps: the most steps in which the weight is given; what then remains is dropped.
        narrow: the form that multiplies no two m × m matrices, an exact rewrite but for the damping, which is then a
            step of its own; `None` chooses by operation count.
        damping_refreshes: how many refreshes' damping the narrow form applies in this one; 0 leaves it to a later one.
            The wide form always applies its own.
        degree: of the polynomial. With 1, λ_max is bounded by the Frobenius norm: X² is never built.
        precision: of the products (:mod:`jorge.methods.products`).
        record: told of the weight that was given in all, and of what remains, `[count]` each.

    λ_max is bounded by the Schatten-4 norm `‖X²‖_F^(1/2)`, with X first divided by its trace against overflow.
    """
    if narrow is None:
        narrow = takes_narrow(*grad.shape[-2:], substeps=substeps, damping=damping)
    remaining = grad.new_full((grad.shape[0],), (1 - beta2) / beta2)
    noise = damping * square_sum(grad) / grad.shape[-2]
    given = torch.zeros_like(remaining)
    for _ in range(substeps):
        if narrow:
            root, used = _narrow(root, grad, remaining, degree, precision)
        else:
            root, used = _wide(root, grad, remaining, noise.sqrt(), degree, precision)
        remaining, given = remaining - used, given + used
    if record is not None:
        record(given, remaining)
    if narrow and damping and damping_refreshes:
        root = _damp(root, damping_refreshes * given * noise, degree, precision)
    return torch.mul(root, beta2**-0.25)


def _series(degree: int) -> tuple[float, float, float]:
    """The coefficients of x and x², and the largest x."""
    return (*CONGRUENCE_POLYNOMIAL, CONGRUENCE_CAP) if degree == 2 else (*CONGRUENCE_LINE, CONGRUENCE_LINE_CAP)


def _weight(remaining: Tensor, largest: Tensor, size: Tensor, cap: float) -> Tensor:
    """`min(remaining, cap/λ)` for `X = size · U` whose norm is bounded by `largest`."""
    return torch.minimum(remaining, cap / (size * largest))


def _wide(
    root: Tensor, grad: Tensor, remaining: Tensor, noise: Tensor, degree: int, precision: Precision
) -> tuple[Tensor, Tensor]:
    p1, p2, cap = _series(degree)
    root2 = multiply(root, root, precision)
    v = torch.cat([multiply(root2, grad, precision), root2 * per_block(noise)], dim=-1)
    size = square_sum(v)
    v = v * per_block(size.rsqrt())
    x = multiply(v, v.mT, precision)
    if degree == 1:
        weight = _weight(remaining, norm(x), size, cap)
        return congruent(root, x.mul_(p1 * per_block(weight * size)), precision), weight
    x2 = multiply(x, x, precision)
    weight = _weight(remaining, norm(x2).sqrt(), size, cap)
    scale = per_block(weight * size)
    change = x2.mul_(p2 * scale**2).addcmul_(x, p1 * scale)  # Q − I
    return congruent(root, change, precision), weight


def _narrow(root: Tensor, grad: Tensor, remaining: Tensor, degree: int, precision: Precision) -> tuple[Tensor, Tensor]:
    p1, p2, cap = _series(degree)
    v = multiply(root, multiply(root, grad, precision), precision)
    size = square_sum(v)
    v = v * per_block(size.rsqrt())
    s = multiply(v.mT, v, precision)
    largest = norm(s) if degree == 1 else norm(multiply(s, s, precision)).sqrt()
    weight = _weight(remaining, largest, size, cap)  # the same for VVᵀ and VᵀV
    v = v * per_block((weight * size).sqrt())
    k = s * (p2 * per_block(weight * size))
    k.diagonal(dim1=-2, dim2=-1).add_(p1)
    u = multiply(root, v, precision)
    ka = multiply(k, multiply(v.mT, u, precision), precision)
    z = multiply(multiply_add(u, v, ka, precision, alpha=0.5), k, precision)
    half = multiply_add(root, v, z.mT, precision, beta=0.5)
    return half + half.mT, weight


def _damp(root: Tensor, amount: Tensor, degree: int, precision: Precision) -> Tensor:
    """A step of its own with `wX = amount·L⁴`, or as much of it as the polynomial covers."""
    p1, p2, cap = _series(degree)
    size = norm(root)  # L⁸ of long gradients is too small for float32
    unit = root / per_block(size)
    square = multiply(unit, unit, precision)
    fourth = multiply(square, square, precision)
    eighth = multiply(fourth, fourth, precision)
    amount = per_block(torch.minimum(amount * size**4, cap / norm(eighth).sqrt()))
    return congruent(root, eighth.mul_(p2 * amount**2).addcmul_(fourth, p1 * amount), precision)


def start_root(grad: Tensor, eps: float) -> Tensor:
    """`L_0 = (ε‖G‖²/m)^(-1/4) I`, `[count, m, m]`. ε = 1e-2: 1e-6 hurts where gradients are rank-deficient."""
    count, m, _ = grad.shape
    return torch.diag_embed(((eps * square_sum(grad) / m) ** -0.25).unsqueeze(-1).expand(count, m))


@cache
def takes_narrow(m: int, n: int, *, substeps: int, damping: float) -> bool:
    """Whether a side of m with the other of n is cheaper in the narrow form."""
    extra = _damping_flops(m) / DAMPING_PERIOD if damping else 0
    return substeps * _narrow_flops(m, n) + extra < substeps * _wide_flops(m, n)


def root_flops(m: int, n: int, *, substeps: int, damping: float, damped: bool, degree: int = 2) -> int:
    """Operations of a refresh of one side of m with the other of n; `damped` where the narrow form damps."""
    narrow = takes_narrow(m, n, substeps=substeps, damping=damping)
    step = _narrow_flops(m, n) if narrow else _wide_flops(m, n)
    step -= 2 * (n if narrow else m) ** 3 if degree == 1 else 0
    return substeps * step + (_damping_flops(m) if narrow and damping and damped else 0)


def _wide_flops(m: int, n: int) -> int:
    return 10 * m**3 + 4 * m * m * n


def _narrow_flops(m: int, n: int) -> int:
    return 8 * m * m * n + 8 * m * n * n + 4 * n**3


def _damping_flops(m: int) -> int:
    return 10 * m**3


class Congruence(Method):
    """`method="congruence"`: Shampoo's fixed point and memory, by products."""

    name = "congruence"
    eps = 1e-2

    def refresh_at(self, number: int, gap: int) -> Refresh:
        """Four substeps in the first ten refreshes, two later; every seventh of these is damped apart."""
        if number < EARLY_REFRESHES:
            return Refresh(4)
        return Refresh(2, 1.0, DAMPING_PERIOD if number % DAMPING_PERIOD == DAMPING_PERIOD - 1 else 0)

    def refreshed(
        self, state: State, grad: Tensor, largest: Tensor, options: Options, refresh: Refresh, trace: Trace | None
    ) -> State:
        """See :func:`refresh_root`."""
        shares: dict[str, Tensor] = {}
        capped: dict[str, Tensor] = {}

        def full(side: str, root: Tensor, seen: Tensor) -> State:
            def record(given: Tensor, remaining: Tensor) -> None:
                shares[side], capped[side] = given / (1 + given), remaining > 0

            root = choose(state["refreshes"] == 0, start_root(seen, options.root_eps or self.eps), root)
            new = refresh_root(
                root,
                seen,
                beta2=options.preconditioner_beta2,
                damping=options.damping,
                substeps=refresh.substeps,
                damping_refreshes=refresh.damping,
                degree=options.degree,
                precision=options.precisions[0],
                record=record if trace is not None else None,
            )
            return {side: new}

        new = each_side(state, grad, options, full)
        if trace is not None:
            trace.refreshed(shares, capped)
        return new

    def refresh_flops(self, shape: Shape, sides: Sides, options: Options, refresh: Refresh) -> int:
        """See :func:`root_flops`."""

        def full(d: int, k: int) -> int:
            return root_flops(
                d,
                k,
                substeps=refresh.substeps,
                damping=options.damping,
                damped=refresh.damping > 0,
                degree=options.degree,
            )

        return each_side_flops(shape, sides, full)

    def counterpart(self, shape: Shape, options: Options, device: torch.device) -> Counterpart:
        """The root of Shampoo's moment with the method's own start and damping, by `eigh`."""
        eps = options.root_eps or self.eps
        share = 1 - options.preconditioner_beta2
        return Moments(
            shape,
            device,
            start=lambda gram: eps * gram.trace() / len(gram),
            share=lambda given: share,
            damping=options.damping,
        )
