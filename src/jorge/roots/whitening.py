"""`whitening`: two-sided and scale-free, beyond Shampoo. The default.

Both sides whiten the gradient that both have preconditioned. The family is that of PSGD-Kron (arXiv 1512.04202) and
KL-Shampoo (arXiv 2509.03378).
"""

from __future__ import annotations

import torch
from torch import Tensor

from jorge.roots.products import (
    DAMPING_PERIOD,
    Precision,
    apply_left,
    apply_right,
    congruent,
    largest_entry,
    mean_diagonal,
    multiply,
    multiply_add,
    norm,
    per_block,
    square_sum,
    trace,
)

#: Minimax of `(1+x)^(-1/4)` on [0, 3] as `1 + p1·x + p2·x²`, monotone there, error 1.3 %.
WHITENING_POLYNOMIAL, WHITENING_CAP = (-0.185204, 0.030181), 3.0
#: The line of least relative error on [0, 1], 1.4 %.
WHITENING_LINE, WHITENING_LINE_CAP = (-0.17055, 0.0), 1.0


def whitening(
    left: Tensor,
    grad: Tensor,
    right: Tensor,
    refreshes: Tensor,
    *,
    beta2: float,
    damping: float,
    substeps: int,
    weight: float | Tensor = 1.0,
    moments: tuple[Tensor | None, Tensor | None] = (None, None),
    narrow: tuple[bool | None, bool | None] = (None, None),
    damped: float = 1.0,
    degree: int = 2,
    precision: Precision = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    r"""One refresh of both sides: each whitens the gradient that both have preconditioned.

    With `V = L G R` and, for the left side, `X = VVᵀ + damping·σ²·tr(RRᵀ)·LLᵀ`:
    `L ← sym(Q L Q)`, `Q = q(wX) ≈ (I + wX)^(-1/4)`, then `L` is scaled to a mean diagonal of 1. The weight w is
    `min(c/τ, cap/λ)` with `τ = tr(X)/m`, `c = w_t/(1−w_t)`, `w_t = max(1−β2, 1/(k+1))`, `λ = ‖X²‖_F^(1/2)`.

    Args:
        left, right: `L` and `R`, `[count, d, d]`; a diagonal side is `[count, d]` and needs its `moments`.
        grad: `G`, `[count, m, n]`, finite and not zero.
        refreshes: k, `[count]`: refreshes so far.
        beta2: memory of the second moments.
        damping: white noise added in expectation, relative to the mean square of `G`.
        substeps: how often the step is repeated.
        weight: how many refreshes with this gradient the step stands for: `1−w_t` is raised to it.
        moments: running second moments of the diagonal sides, `[count, d]` each.
        narrow: for each side, whether to take the form that multiplies no two d × d matrices, an exact rewrite but for
            the damping, which is then a step of its own; `None` chooses by operation count.
        damped: how many refreshes' damping a full side applies in this one, as it takes a product of its own; 0 leaves
            it to a later one. A diagonal side always applies its own.
        degree: of the polynomial. With 1, λ is the Frobenius norm of X: X² is never built.
        precision: of the products (:mod:`jorge.roots.products`).
        scale: the largest absolute entry of each gradient, `[count]`, where it is known.

    Returns:
        the new left, right and moments.
    """
    m, n = grad.shape[-2:]
    narrow_left = left.dim() == 3 and (takes_narrow(m, n) if narrow[0] is None else narrow[0])
    narrow_right = right.dim() == 3 and (takes_narrow(n, m) if narrow[1] is None else narrow[1])
    wide_left, wide_right = left.dim() == 3 and not narrow_left, right.dim() == 3 and not narrow_right
    grad = grad / per_block(largest_entry(grad) if scale is None else scale)
    noise = square_sum(grad) * (damping / (m * n))
    blend = (1 / (refreshes + 1)).clamp(min=1 - beta2)
    if isinstance(weight, Tensor) or weight != 1:
        blend = 1 - (1 - blend) ** weight
    memory = blend / (1 - blend)
    for substep in range(substeps):
        share = damped * substeps if damping and substep == 0 else 0.0
        size = square_sum(left)
        for_left, for_right = noise * square_sum(right), noise * size  # the factors of L Lᵀ and R Rᵀ
        damping_trace = for_left * size  # of either
        half = apply_left(left, grad, precision)
        v = apply_right(half, right, precision)
        if right.dim() == 3:
            del half
        # VVᵀ is the start of X for the left side and what the narrow form of the right side needs; VᵀV alike.
        rows = multiply(v, v.mT, precision) if narrow_right else None
        columns = multiply(v.mT, v, precision) if narrow_left else None
        new_left, left_moment = left, moments[0]
        if wide_left:
            gram = multiply(v, v.mT, precision) if rows is None else rows.clone()
            new_left = _wide(left, gram, for_left, damping_trace, memory, share, degree, precision)
            del gram
        elif columns is not None:
            new_left = _narrow(left, v, columns, for_left, damping_trace, memory, share, degree, precision)
        else:
            seen = apply_right(grad, right, precision)
            new_left, left_moment = diagonal(moments[0], seen, for_left, blend)
            del seen
        right_moment = moments[1]
        if wide_right:
            gram = multiply(v.mT, v, precision) if columns is None else columns
            right = _wide(right, gram, for_right, damping_trace, memory, share, degree, precision)
            del gram
        elif rows is not None:
            right = _narrow(right, v.mT, rows, for_right, damping_trace, memory, share, degree, precision)
        else:
            right, right_moment = diagonal(moments[1], half.mT, for_right, blend)
        left, moments = new_left, (left_moment, right_moment)
    return left, right, moments


def _wide(
    root: Tensor,
    gram: Tensor,
    noise: Tensor,
    damping_trace: Tensor,
    memory: Tensor,
    share: float,
    degree: int,
    precision: Precision,
) -> Tensor:
    """`root` after one step towards whitening V.

    `gram` is `VVᵀ`, whose memory is used; `noise`, `[count]`, is the factor of `H Hᵀ` in X, which is added for `share`
    steps at once. The weight goes by the trace with that of one, `damping_trace`: by that of all, what is to be damped
    most would weaken its own damping, and grow without bound.
    """
    p1, p2, cap = _series(degree)
    mean = torch.add(mean_diagonal(gram), damping_trace, alpha=1 / root.shape[-1])
    x = multiply_add(gram, root * per_block(share * noise), root, precision, into=gram) if share else gram
    if degree == 1:
        change = x.mul_(p1 * _weight(mean, cap / norm(x), memory))
    else:
        x2 = multiply(x, x, precision)
        weight = _weight(mean, norm(x2).rsqrt() * cap, memory)
        change = x2.mul_(p2 * weight**2).addcmul_(x, p1 * weight)  # E = Q − I
    return _unit_diagonal(congruent(root, change, precision))


def _narrow(
    root: Tensor,
    v: Tensor,
    gram: Tensor,
    noise: Tensor,
    damping_trace: Tensor,
    memory: Tensor,
    share: float,
    degree: int,
    precision: Precision,
) -> Tensor:
    """As :func:`_wide` from V, `[count, d, k]`, and `S = VᵀV`, without a d × d product of d × d matrices.

    With `K = p1·w·I + p2·w²·S`, `U = H V`, `A = VᵀU` and `Z = (U + V K A/2) K`, `Q H Q = H + V Zᵀ + Z Vᵀ`. The damping
    does cost such products, so that of `share` steps is applied at once, as a step of its own with
    `wX = share·w·noise·H²`, or as much of it as the polynomial covers. `damping_trace` is that of `noise·H Hᵀ`.
    """
    p1, p2, cap = _series(degree)
    mean = (trace(gram) + damping_trace) / root.shape[-1]
    limit = cap / norm(gram) if degree == 1 else norm(multiply(gram, gram, precision)).rsqrt() * cap
    weight = _weight(mean, limit, memory)
    k = gram * (p2 * weight**2)
    k.diagonal(dim1=-2, dim2=-1).add_(p1 * weight.squeeze(-1))
    u = multiply(root, v, precision)
    ka = multiply(k, multiply(v.mT, u, precision), precision)
    z = multiply(multiply_add(u, v, ka, precision, alpha=0.5), k, precision)
    half = multiply_add(root, v, z.mT, precision, beta=0.5)
    root = half + half.mT
    if share:
        square = multiply(root, root, precision)
        fourth = multiply(square, square, precision)
        amount = torch.minimum(share * weight * per_block(noise), per_block(cap / norm(fourth).sqrt()))
        root = congruent(root, fourth.mul_(p2 * amount**2).addcmul_(square, p1 * amount), precision)
    return _unit_diagonal(root)


def _series(degree: int) -> tuple[float, float, float]:
    """The coefficients of x and x², and the largest x."""
    return (*WHITENING_POLYNOMIAL, WHITENING_CAP) if degree == 2 else (*WHITENING_LINE, WHITENING_LINE_CAP)


def _weight(mean: Tensor, limit: Tensor, memory: Tensor) -> Tensor:
    """w, `[count, 1, 1]`: the memory's, or `limit`, what the polynomial covers."""
    return per_block(torch.minimum(memory / mean, limit))


def _unit_diagonal(root: Tensor) -> Tensor:
    """Scale to a mean diagonal of 1, in place."""
    return root.div_(per_block(mean_diagonal(root)))


def diagonal(moment: Tensor | None, grad: Tensor, noise: Tensor, blend: Tensor) -> tuple[Tensor, Tensor]:
    """A diagonal left side: `v ← EMA of mean-square rows`, `d = v^(-1/2)` scaled to mean 1.

    Args:
        moment: v, `[count, m]`.
        grad: the gradient as the other side preconditions it, `[count, m, n]`.
        noise: `[count]`, the energy of white noise that is added to each row in expectation.
        blend: `[count]`, the weight of the new moment.

    Returns:
        the side, `[count, m]`, and the new moment.
    """
    assert moment is not None, "a diagonal side carries its second moment"
    fresh = (torch.linalg.vector_norm(grad, dim=-1).square() + noise.unsqueeze(-1)) / grad.shape[-1]
    moment = moment.lerp(fresh, blend.unsqueeze(-1))
    side = torch.maximum(moment, 1e-12 * moment.mean(-1, keepdim=True)).rsqrt()  # without damping, dead rows are zero
    return side / side.mean(-1, keepdim=True), moment


# --- operation counts: what torch's counter sees, two for a multiplication and an addition ---------------------------


def takes_narrow(d: int, k: int) -> bool:
    """Whether a side of d with the other side of k is cheaper in the narrow form.

    >>> takes_narrow(1024, 256), takes_narrow(256, 256), takes_narrow(256, 1024)
    (True, False, False)
    """
    narrow = 2 * k * k * d + _narrow_flops(d, k) + _narrow_damping_flops(d) / DAMPING_PERIOD
    return narrow < 2 * d * d * k + _wide_flops(d) + _wide_damping_flops(d) / DAMPING_PERIOD


def whitening_flops(
    shape: tuple[int, int], full: tuple[bool, bool], *, substeps: int, damped: bool, degree: int = 2
) -> int:
    """Operations of a refresh of one block; `full` says which sides are, `damped` whether those are damped in it."""
    (m, n), (left, right) = shape, full
    narrow_left, narrow_right = left and takes_narrow(m, n), right and takes_narrow(n, m)
    step = 2 * m * m * n * left + 2 * m * n * n * right  # V
    step += 0 if left else 2 * m * n * n * right  # G R for the diagonal left side
    step += 2 * m * m * n * ((left and not narrow_left) or narrow_right)  # VVᵀ
    step += 2 * m * n * n * ((right and not narrow_right) or narrow_left)  # VᵀV
    once = 0
    for d, k, is_full, narrow in ((m, n, left, narrow_left), (n, m, right, narrow_right)):
        if is_full:
            step += _narrow_flops(d, k) if narrow else _wide_flops(d)
            step -= 2 * (k if narrow else d) ** 3 if degree == 1 else 0
            once += (_narrow_damping_flops(d) if narrow else _wide_damping_flops(d)) if damped else 0
    return substeps * step + once


def _wide_flops(d: int) -> int:
    """Beside `VVᵀ` and the damping."""
    return 6 * d**3


def _wide_damping_flops(d: int) -> int:
    return 2 * d**3


def _narrow_flops(d: int, k: int) -> int:
    """Beside `VᵀV` and the damping."""
    return 4 * d * d * k + 6 * d * k * k + 4 * k**3


def _narrow_damping_flops(d: int) -> int:
    return 8 * d**3
