"""`whitening`: two-sided and scale-free, beyond Shampoo. The default.

Both sides whiten the gradient that both have preconditioned. The family is that of PSGD-Kron (arXiv 1512.04202) and
KL-Shampoo (arXiv 2509.03378).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from jorge.methods.exact import ROUNDING, inverse_root
from jorge.methods.method import (
    DAMPING_PERIOD,
    EARLY_REFRESHES,
    Counterpart,
    Method,
    Refresh,
    Shape,
    Sides,
    State,
    diagonal,
)
from jorge.methods.products import (
    apply_left,
    apply_right,
    blend_of,
    congruent,
    diagonal_sum,
    largest_entry,
    mean_diagonal,
    multiply,
    multiply_add,
    norm,
    per_block,
    square_sum,
    unit_diagonal,
)
from jorge.options import Options, Precision
from jorge.trace import Trace

#: Minimax of `(1+x)^(-1/4)` on [0, 3] as `1 + p1·x + p2·x²`, monotone there, error 1.3 %.
WHITENING_POLYNOMIAL, WHITENING_CAP = (-0.185204, 0.030181), 3.0
#: The line of least relative error on [0, 1], 1.4 %.
WHITENING_LINE, WHITENING_LINE_CAP = (-0.17055, 0.0), 1.0
#: By degree: the coefficients of x and x², and the largest x.
_SERIES = {2: (*WHITENING_POLYNOMIAL, WHITENING_CAP), 1: (*WHITENING_LINE, WHITENING_LINE_CAP)}

#: Told of a substep: the side, the largest weight of the newest gradient beside all earlier ones that its polynomial
#: allows, and the weight that is asked for, `[count]` each.
Record = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True)
class Substep:
    """What both sides share in one step of a refresh.

    Args:
        damping_trace: the trace of the damping's part of X, the same for either side, `[count]`.
        memory: c, the weight that β2 asks for, `[count]`.
        damped_steps: how many steps' damping is applied.
        degree: of the polynomial.
        precision: of the products.
        record: as for :func:`whiten`.
    """

    damping_trace: Tensor
    memory: Tensor
    damped_steps: int
    degree: int
    precision: Precision
    record: Record | None


def whiten(
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
    damping_refreshes: int = 1,
    degree: int = 2,
    precision: Precision = None,
    largest: Tensor | None = None,
    record: Record | None = None,
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
        damping_refreshes: how many refreshes' damping a full side applies in this one, as it takes a product of its
            own; 0 leaves it to a later one. A diagonal side always applies its own.
        degree: of the polynomial. With 1, λ is the Frobenius norm of X: X² is never built.
        precision: of the products (:mod:`jorge.methods.products`).
        largest: the largest absolute entry of each gradient, `[count]`, where it is known.
        record: told at each substep, for each full side, what the step gives of what it is asked for.

    Returns:
        the new left, right and moments.
    """
    m, n = grad.shape[-2:]
    narrow_left = left.dim() == 3 and (takes_narrow(m, n) if narrow[0] is None else narrow[0])
    narrow_right = right.dim() == 3 and (takes_narrow(n, m) if narrow[1] is None else narrow[1])
    wide_left, wide_right = left.dim() == 3 and not narrow_left, right.dim() == 3 and not narrow_right
    grad = grad / per_block(largest_entry(grad) if largest is None else largest)
    noise = square_sum(grad) * (damping / (m * n))
    blend = blend_of(refreshes, beta2)
    if isinstance(weight, Tensor) or weight != 1:
        blend = 1 - (1 - blend) ** weight
    memory = blend / (1 - blend)
    for number in range(substeps):
        size = square_sum(left)
        for_left, for_right = noise * square_sum(right), noise * size  # the factors of L Lᵀ and R Rᵀ
        substep = Substep(
            damping_trace=for_left * size,  # of either
            memory=memory,
            damped_steps=damping_refreshes * substeps if damping and number == 0 else 0,
            degree=degree,
            precision=precision,
            record=record,
        )
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
            new_left = _wide("left", left, gram, for_left, substep)
            del gram
        elif columns is not None:
            new_left = _narrow("left", left, v, columns, for_left, substep)
        else:
            seen = apply_right(grad, right, precision)
            new_left, left_moment = _diagonal(moments[0], seen, for_left, blend)
            del seen
        right_moment = moments[1]
        if wide_right:
            gram = multiply(v.mT, v, precision) if columns is None else columns
            right = _wide("right", right, gram, for_right, substep)
            del gram
        elif rows is not None:
            right = _narrow("right", right, v.mT, rows, for_right, substep)
        else:
            right, right_moment = _diagonal(moments[1], half.mT, for_right, blend)
        left, moments = new_left, (left_moment, right_moment)
    return left, right, moments


def _wide(side: str, root: Tensor, gram: Tensor, noise: Tensor, substep: Substep) -> Tensor:
    """`root` after one step towards whitening V.

    `gram` is `VVᵀ`, whose memory is used; `noise`, `[count]`, is the factor of `H Hᵀ` in X. The weight goes by the
    trace with the damping of one step: by that of several, what is to be damped most would weaken its own damping, and
    grow without bound.
    """
    p1, p2, cap = _SERIES[substep.degree]
    mean = torch.add(mean_diagonal(gram), substep.damping_trace, alpha=1 / root.shape[-1])
    x = gram
    if substep.damped_steps:
        x = multiply_add(gram, root * per_block(substep.damped_steps * noise), root, substep.precision, into=gram)
    x2 = multiply(x, x, substep.precision) if substep.degree == 2 else None
    limit = cap / norm(x) if x2 is None else norm(x2).rsqrt() * cap
    weight = per_block(torch.minimum(substep.memory / mean, limit))
    if substep.record is not None:
        substep.record(side, limit * mean, substep.memory)
    change = x.mul_(p1 * weight) if x2 is None else x2.mul_(p2 * weight**2).addcmul_(x, p1 * weight)  # E = Q − I
    return unit_diagonal(congruent(root, change, substep.precision))


def _narrow(side: str, root: Tensor, v: Tensor, gram: Tensor, noise: Tensor, substep: Substep) -> Tensor:
    """As :func:`_wide` from V, `[count, d, k]`, and `S = VᵀV`, without a d × d product of d × d matrices.

    With `K = p1·w·I + p2·w²·S`, `U = H V`, `A = VᵀU` and `Z = (U + V K A/2) K`, `Q H Q = H + V Zᵀ + Z Vᵀ`. The damping
    does cost such products, so that of several steps is applied at once, as a step of its own with
    `wX = damped_steps·w·noise·H²`, or as much of it as the polynomial covers.
    """
    p1, p2, cap = _SERIES[substep.degree]
    precision = substep.precision
    mean = (diagonal_sum(gram) + substep.damping_trace) / root.shape[-1]
    limit = cap / norm(gram) if substep.degree == 1 else norm(multiply(gram, gram, precision)).rsqrt() * cap
    weight = per_block(torch.minimum(substep.memory / mean, limit))
    if substep.record is not None:
        substep.record(side, limit * mean, substep.memory)
    k = gram * (p2 * weight**2)
    k.diagonal(dim1=-2, dim2=-1).add_(p1 * weight.squeeze(-1))
    u = multiply(root, v, precision)
    ka = multiply(k, multiply(v.mT, u, precision), precision)
    z = multiply(multiply_add(u, v, ka, precision, alpha=0.5), k, precision)
    half = multiply_add(root, v, z.mT, precision, beta=0.5)
    root = half + half.mT
    if substep.damped_steps:
        square = multiply(root, root, precision)
        fourth = multiply(square, square, precision)
        most = per_block(cap / norm(fourth).sqrt())
        amount = torch.minimum(substep.damped_steps * weight * per_block(noise), most)
        root = congruent(root, fourth.mul_(p2 * amount**2).addcmul_(square, p1 * amount), precision)
    return unit_diagonal(root)


def _diagonal(moment: Tensor | None, grad: Tensor, noise: Tensor, blend: Tensor) -> tuple[Tensor, Tensor]:
    assert moment is not None, "a diagonal side carries its second moment"
    return diagonal(moment, grad, noise, blend)


# --- operation counts: what torch's counter sees, two for a multiplication and an addition ---------------------------


@cache
def takes_narrow(d: int, k: int) -> bool:
    """Whether a side of d with the other side of k is cheaper in the narrow form.

    >>> takes_narrow(1024, 256), takes_narrow(256, 256), takes_narrow(256, 1024)
    (True, False, False)
    """
    narrow = 2 * k * k * d + _narrow_flops(d, k) + _narrow_damping_flops(d) / DAMPING_PERIOD
    return narrow < 2 * d * d * k + _wide_flops(d) + _wide_damping_flops(d) / DAMPING_PERIOD


def whiten_flops(shape: Shape, full: tuple[bool, bool], *, substeps: int, damped: bool, degree: int = 2) -> int:
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


class Whitening(Method):
    """`method="whitening"`: both sides whiten what both have preconditioned."""

    name = "whitening"
    #: Steps of the first refreshes, which find the preconditioners far from their fixed point; one in all later ones.
    early_substeps = (4, 3, 2)
    #: A refresh stands for so many others a step of its gap, and for so many at most: measured, as docs/guide says.
    weight_per_step, most_weight = 0.6, 3.0

    def refresh_at(self, number: int, gap: int) -> Refresh:
        """From the tenth on a refresh stands for several where there are steps without, and every seventh is damped."""
        if number < EARLY_REFRESHES:
            return Refresh(self.early_substeps[number] if number < len(self.early_substeps) else 1)
        weight = min(self.most_weight, max(1.0, self.weight_per_step * gap))
        return Refresh(1, weight, DAMPING_PERIOD if number % DAMPING_PERIOD == DAMPING_PERIOD - 1 else 0)

    def refreshed(
        self, state: State, grad: Tensor, largest: Tensor, options: Options, refresh: Refresh, trace: Trace | None
    ) -> State:
        """See :func:`whiten`."""
        kept: dict[str, Tensor] = {}
        capped: dict[str, Tensor] = {}

        def record(side: str, allowed: Tensor, wanted: Tensor) -> None:
            short = (allowed < wanted) & torch.isfinite(wanted)  # the very first refresh asks for all that there is
            kept[side] = kept.get(side, 1.0) / (1 + torch.minimum(allowed, wanted))
            capped[side] = capped[side] | short if side in capped else short

        left, right, moments = whiten(
            state["left"],
            grad,
            state["right"],
            state["refreshes"],
            beta2=options.preconditioner_beta2,
            damping=options.damping,
            substeps=refresh.substeps,
            weight=refresh.weight,
            moments=(state.get("left_moment"), state.get("right_moment")),
            damping_refreshes=refresh.damping,
            degree=options.degree,
            precision=options.precisions[0],
            largest=largest,
            record=record if trace is not None else None,
        )
        if trace is not None:
            trace.refreshed({side: 1 - value for side, value in kept.items()}, capped)
        new = {"left": left, "right": right}
        if moments[0] is not None:
            new["left_moment"] = moments[0]
        if moments[1] is not None:
            new["right_moment"] = moments[1]
        return new

    def refresh_flops(self, shape: Shape, sides: Sides, options: Options, refresh: Refresh) -> int:
        """See :func:`whiten_flops`."""
        full = (sides[0] == "full", sides[1] == "full")
        damped = refresh.damping > 0 and options.damping > 0
        return whiten_flops(shape, full, substeps=refresh.substeps, damped=damped, degree=options.degree)

    def counterpart(self, shape: Shape, options: Options, device: torch.device) -> Counterpart:
        """KL-Shampoo of normalised gradients, by `eigh`: without the polynomial, and without `Q L Q` for a product."""
        return KLShampoo(shape, device, damping=options.damping)


class KLShampoo:
    """What whitening stands for: factors whose inverse roots whiten the gradients, in float64, by `eigh`.

    `A ← (1−a) A + a X/τ` with `X = G B⁻¹ Gᵀ + damping·σ²·tr(B⁻¹)·I` and `τ = tr(A⁻¹X)/m`, B alike, both from what both
    were before; the roots are `A^(-1/2)` and `B^(-1/2)`. The share a is what the method gave the gradient.

    Source: KL-Shampoo (Lin et al., arXiv 2509.03378), which has n for τ. With τ, as in Tyler's estimate of scatter
    (Annals of Statistics 15, 1987), each gradient counts alike whatever its size is.

    Args:
        shape: of the block.
        device: of its gradients.
        damping: white noise added to each gradient in expectation, relative to its mean square.
    """

    def __init__(self, shape: Shape, device: torch.device, *, damping: float) -> None:
        sides = zip(("left", "right"), shape, strict=True)
        self._factors = {side: torch.eye(d, dtype=torch.float64, device=device) for side, d in sides}
        self._damping = damping

    def refresh(self, grad: Tensor, refresh: Refresh, shares: Mapping[str, float]) -> None:
        """See :class:`~jorge.methods.method.Counterpart`."""
        inverses = self._powers(-1.0)
        for side, other, seen in (("left", "right", grad), ("right", "left", grad.mT)):
            x = seen @ inverses[other] @ seen.mT
            x.diagonal().add_(self._damping * seen.square().mean() * inverses[other].trace())
            self._factors[side].lerp_(x / self._energy(inverses[side], x, seen), shares[side])

    def roots(self) -> dict[str, Tensor]:
        """See :class:`~jorge.methods.method.Counterpart`."""
        return self._powers(-0.5)

    def _energy(self, inverse: Tensor, x: Tensor, grad: Tensor) -> Tensor | float:
        """What X is divided by: τ."""
        return (inverse * x).sum() / len(x)

    def _powers(self, power: float) -> dict[str, Tensor]:
        return {side: inverse_root(a[None], eps=ROUNDING, power=power)[0] for side, a in self._factors.items()}
