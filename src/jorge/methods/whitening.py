"""`whitening`: two-sided and scale-free, beyond Shampoo. The default.

Both sides whiten the gradient that both have preconditioned. The family is that of PSGD-Kron (arXiv 1512.04202) and
KL-Shampoo (arXiv 2509.03378).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jorge.methods.kl_shampoo import KLShampoo
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
    largest_entries,
    multiply,
    multiply_add,
    norm,
    split,
    square_sum,
    unit_diagonals,
)
from jorge.methods.whitening_flops import takes_narrow, whiten_flops
from jorge.options import Options, Precision
from jorge.trace import Trace

#: Minimax of `(1+x)^(-1/4)` on [0, 3] as `1 + p1·x + p2·x²`, monotone there, error 1.3 %.
WHITENING_POLYNOMIAL, WHITENING_CAP = (-0.185204, 0.030181), 3.0
#: The line of least relative error on [0, 1], 1.4 %.
WHITENING_LINE, WHITENING_LINE_CAP = (-0.17055, 0.0), 1.0
#: By degree: the coefficients of x and x², and the largest x.
_SERIES = {2: (*WHITENING_POLYNOMIAL, WHITENING_CAP), 1: (*WHITENING_LINE, WHITENING_LINE_CAP)}

#: What a refresh changes.
_TRACKED = ("left", "right", "left_moment", "right_moment")
#: Told of a substep: the side, the largest weight of the newest gradient beside all earlier ones that its polynomial
#: allows, and the weight that is asked for, `[count]` each.
Record = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True)
class Seen:
    """What a stack sees of its gradient in one step of a refresh.

    Args:
        half: `L G`, `[count, m, n]`; `None` where no diagonal right side asks for it.
        v: `V = L G R`, `[count, m, n]`.
        rows: `VVᵀ`, the start of X for a wide left side and what a narrow right one needs; else `None`.
        columns: `VᵀV` alike.
        narrow: whether the left side and the right one take the narrow form.
    """

    half: Tensor | None
    v: Tensor
    rows: Tensor | None
    columns: Tensor | None
    narrow: tuple[bool, bool]

    def trace(self) -> Tensor:
        """Of `VVᵀ` and of `VᵀV`, `[count]`."""
        gram = self.rows if self.rows is not None else self.columns
        return square_sum(self.v) if gram is None else diagonal_sum(gram)


@dataclass(frozen=True)
class Side:
    """A full side of a stack in one step of a refresh.

    Args:
        name: left or right.
        root: H, `[count, d, d]`.
        gram: `VVᵀ` as the side sees V, whose memory is used; in the narrow form `VᵀV`, which is not written to, as the
            other side may share it.
        v: V as the side sees it, `[count, d, k]`, in the narrow form; `None` in the wide one.
        noise: the factor of `H Hᵀ` in X, `[count]`.
        trace: of X, `[count]`, with the damping of one step: with that of several, what is to be damped most would
            weaken its own damping, and grow without bound.
        memory: c, the weight that β2 asks for, `[count]`.
    """

    name: Literal["left", "right"]
    root: Tensor
    gram: Tensor
    v: Tensor | None
    noise: Tensor
    trace: Tensor
    memory: Tensor


@dataclass(frozen=True)
class Substep:
    """What all sides share in one step of a refresh.

    Args:
        damped_steps: how many steps' damping is applied.
        degree: of the polynomial.
        precision: of the products.
        record: as for :func:`whiten`.
    """

    damped_steps: int
    degree: int
    precision: Precision
    record: Record | None


def whiten(
    states: Sequence[Mapping[str, Tensor]],
    grads: Sequence[Tensor],
    *,
    beta2: float,
    damping: float,
    substeps: int,
    weight: float | Tensor = 1.0,
    narrow: tuple[bool | None, bool | None] = (None, None),
    damping_refreshes: int = 1,
    degree: int = 2,
    precision: Precision = None,
    largest: Tensor | None = None,
    record: Record | None = None,
) -> list[State]:
    r"""One refresh of both sides of some stacks: each side whitens the gradient that both have preconditioned.

    With `V = L G R` and, for the left side, `X = VVᵀ + damping·σ²·tr(RRᵀ)·LLᵀ`:
    `L ← sym(Q L Q)`, `Q = q(wX) ≈ (I + wX)^(-1/4)`, then `L` is scaled to a mean diagonal of 1. The weight w is
    `min(c/τ, cap/λ)` with `τ = tr(X)/m`, `c = w_t/(1−w_t)`, `w_t = max(1−β2, 1/(k+1))`, `λ = ‖X²‖_F^(1/2)`.

    What is one number a block is calculated for the blocks of all stacks at once.

    Args:
        states: of each stack `left` and `right`, L and R, `[count, d, d]` each, or `[count, d]` of a diagonal side,
            whose running second moment, `left_moment` or `right_moment`, is there, too, `[count, d]`; and `refreshes`,
            k, `[count]`, how many there were before.
        grads: of each stack G, `[count, m, n]`, finite and not zero.
        beta2: memory of the second moments.
        damping: white noise added in expectation, relative to the mean square of `G`.
        substeps: how often the step is repeated.
        weight: how many refreshes with this gradient the step stands for: `1−w_t` is raised to it.
        narrow: for each side, whether to take the form that multiplies no two d × d matrices, an exact rewrite but for
            the damping, which is then a step of its own; `None` chooses by operation count.
        damping_refreshes: how many refreshes' damping a full side applies in this one, as it takes a product of its
            own; 0 leaves it to a later one. A diagonal side always applies its own.
        degree: of the polynomial. With 1, λ is the Frobenius norm of X: X² is never built.
        precision: of the products (:mod:`jorge.methods.products`).
        largest: the largest absolute entry of each gradient, `[total]`, where it is known.
        record: told at each substep, for each full side, what the step gives of what it is asked for.

    Returns:
        of each stack its new sides, and their moments.
    """
    largest = largest_entries(grads) if largest is None else largest
    grads = list(torch._foreach_div(list(grads), split(largest, grads)))
    root_mean_squares = torch._foreach_mul(
        [norm(g) for g in grads], [(g.shape[-2] * g.shape[-1]) ** -0.5 for g in grads]
    )
    noise = torch.cat(root_mean_squares).square() * damping
    blend = blend_of(torch.cat([state["refreshes"] for state in states]), beta2)
    if isinstance(weight, Tensor) or weight != 1:
        blend = 1 - (1 - blend) ** weight
    memory = blend / (1 - blend)
    found = [{name: state[name] for name in _TRACKED if name in state} for state in states]
    for number in range(substeps):
        substep = Substep(damping_refreshes * substeps if damping and number == 0 else 0, degree, precision, record)
        _take(substep, found, grads, noise, memory, blend, narrow, last=number == substeps - 1)
    return found


def _take(
    substep: Substep,
    states: Sequence[State],
    grads: list[Tensor],
    noise: Tensor,
    memory: Tensor,
    blend: Tensor,
    narrow: tuple[bool | None, bool | None],
    *,
    last: bool,
) -> None:
    """Replace the sides of `states` by those after one step; the numbers are `[total]`. The last one clears `grads`."""
    lefts, rights = (torch.cat([norm(state[side]) for state in states]).square() for side in ("left", "right"))
    for_left, for_right = noise * rights, noise * lefts  # the factors of L Lᵀ and R Rᵀ
    seen = [_see(state, grad, narrow, substep.precision) for state, grad in zip(states, grads, strict=True)]
    traces = torch.cat([each.trace() for each in seen]).addcmul_(for_left, lefts)  # of X, on either side
    values = (for_left, for_right, traces, memory, blend)
    parts = zip(*(torch.split(each, [len(grad) for grad in grads]) for each in values), strict=True)
    sides: list[tuple[State, Side]] = []
    for state, grad, mine, numbers in zip(states, grads, seen, parts, strict=True):
        sides += [(state, side) for side in _sides(state, grad, mine, numbers, substep.precision)]
    del seen, mine, grad
    if last:
        grads.clear()
    # The narrow form leaves a gram as it is, which the wide one of the other side may share.
    for is_narrow, form in ((True, _narrow), (False, _wide)):
        some = [(state, side) for state, side in sides if (side.v is not None) == is_narrow]
        if some:
            for (state, side), root in zip(some, form([side for _, side in some], substep), strict=True):
                state[side.name] = root


def _see(state: State, grad: Tensor, narrow: tuple[bool | None, bool | None], precision: Precision) -> Seen:
    left, right = state["left"], state["right"]
    m, n = grad.shape[-2:]
    full_left, full_right = left.dim() == 3, right.dim() == 3
    narrow_left = full_left and (takes_narrow(m, n) if narrow[0] is None else narrow[0])
    narrow_right = full_right and (takes_narrow(n, m) if narrow[1] is None else narrow[1])
    half = apply_left(left, grad, precision)
    v = apply_right(half, right, precision)
    rows = multiply(v, v.mT, precision) if (full_left and not narrow_left) or narrow_right else None
    columns = multiply(v.mT, v, precision) if (full_right and not narrow_right) or narrow_left else None
    return Seen(None if full_right else half, v, rows, columns, (narrow_left, narrow_right))


def _sides(state: State, grad: Tensor, seen: Seen, numbers: tuple[Tensor, ...], precision: Precision) -> list[Side]:
    """The full sides of a stack; a diagonal one is refreshed in `state`.

    `numbers` are the factors of `L Lᵀ` and `R Rᵀ`, the trace of X, c, and the weight of the newest gradient, `[count]`.
    """
    for_left, for_right, trace, memory, blend = numbers
    left, right, v = state["left"], state["right"], seen.v
    sides: list[Side] = []
    if left.dim() == 3:
        gram, own = (seen.columns, v) if seen.narrow[0] else (seen.rows, None)
        assert gram is not None
        sides.append(Side("left", left, gram, own, for_left, trace, memory))
    else:
        whole = apply_right(grad, right, precision)
        state["left"], state["left_moment"] = diagonal(state["left_moment"], whole, for_left, blend)
    if right.dim() == 3:
        gram, own = (seen.rows, v.mT) if seen.narrow[1] else (seen.columns, None)
        assert gram is not None
        sides.append(Side("right", right, gram, own, for_right, trace, memory))
    else:
        assert seen.half is not None
        state["right"], state["right_moment"] = diagonal(state["right_moment"], seen.half.mT, for_right, blend)
    return sides


def _wide(sides: Sequence[Side], substep: Substep) -> list[Tensor]:
    """The roots after one step towards whitening V."""
    p1, p2, cap = _SERIES[substep.degree]
    roots, xs = [side.root for side in sides], [side.gram for side in sides]
    if substep.damped_steps:
        scaled = torch._foreach_mul(
            roots, split(substep.damped_steps * torch.cat([side.noise for side in sides]), roots)
        )
        for x, each, root in zip(xs, scaled, roots, strict=True):
            multiply_add(x, each, root, substep.precision, into=x)
        del scaled
    if substep.degree == 1:
        limit = cap / torch.cat([norm(x) for x in xs])
    else:
        squares = [multiply(x, x, substep.precision) for x in xs]
        limit = torch.cat([norm(square) for square in squares]).rsqrt() * cap
    weight = _weight(sides, limit, substep)
    torch._foreach_mul_(xs, split(p1 * weight, roots))  # E = Q − I
    if substep.degree == 2:
        torch._foreach_addcmul_(xs, squares, split(p2 * weight**2, roots))
        del squares
    return unit_diagonals([congruent(root, x, substep.precision) for root, x in zip(roots, xs, strict=True)])


def _narrow(sides: Sequence[Side], substep: Substep) -> list[Tensor]:
    """As :func:`_wide` from V, `[count, d, k]`, and `S = VᵀV`, without a d × d product of d × d matrices.

    With `K = p1·w·I + p2·w²·S`, `U = H V`, `A = VᵀU` and `Z = (U + V K A/2) K`, `Q H Q = H + V Zᵀ + Z Vᵀ`. The damping
    does cost such products, so that of several steps is applied at once, as a step of its own with
    `wX = damped_steps·w·noise·H²`, or as much of it as the polynomial covers.
    """
    p1, p2, cap = _SERIES[substep.degree]
    precision = substep.precision
    grams = [side.gram for side in sides]
    if substep.degree == 1:
        limit = cap / torch.cat([norm(gram) for gram in grams])
    else:
        limit = torch.cat([norm(multiply(gram, gram, precision)) for gram in grams]).rsqrt() * cap
    weight = _weight(sides, limit, substep)
    ks = torch._foreach_mul(grams, split(p2 * weight**2, grams))
    diagonals = [k.diagonal(dim1=-2, dim2=-1) for k in ks]
    torch._foreach_add_(diagonals, torch.split((p1 * weight).unsqueeze(-1), [len(k) for k in ks]))
    roots: list[Tensor] = []
    for side, k in zip(sides, ks, strict=True):
        assert side.v is not None
        u = multiply(side.root, side.v, precision)
        ka = multiply(k, multiply(side.v.mT, u, precision), precision)
        z = multiply(multiply_add(u, side.v, ka, precision, alpha=0.5), k, precision)
        half = multiply_add(side.root, side.v, z.mT, precision, beta=0.5)
        roots.append(half + half.mT)
    if substep.damped_steps:
        squares = [multiply(root, root, precision) for root in roots]
        fourths = [multiply(square, square, precision) for square in squares]
        most = cap / torch.cat([norm(fourth) for fourth in fourths]).sqrt()
        amount = torch.minimum(substep.damped_steps * weight * torch.cat([side.noise for side in sides]), most)
        torch._foreach_mul_(squares, split(p1 * amount, roots))
        torch._foreach_addcmul_(squares, fourths, split(p2 * amount**2, roots))
        del fourths
        roots = [congruent(root, change, precision) for root, change in zip(roots, squares, strict=True)]
    return unit_diagonals(roots)


def _weight(sides: Sequence[Side], limit: Tensor, substep: Substep) -> Tensor:
    """w, `[total]`: `c/τ`, or the largest that the polynomial covers."""
    sizes = [float(side.root.shape[-1]) for side in sides]
    means = torch.cat(torch._foreach_div([side.trace for side in sides], sizes))
    if substep.record is not None:
        allowed = torch.split(limit * means, [len(side.root) for side in sides])
        for side, mine in zip(sides, allowed, strict=True):
            substep.record(side.name, mine, side.memory)
    return torch.minimum(torch.cat([side.memory for side in sides]) / means, limit)


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
        return self.refreshed_together([state], [grad], largest, options, refresh, trace)[0]

    def refreshed_together(
        self,
        states: Sequence[State],
        grads: Sequence[Tensor],
        largest: Tensor,
        options: Options,
        refresh: Refresh,
        trace: Trace | None,
    ) -> list[State]:
        """See :func:`whiten`."""
        kept: dict[str, Tensor] = {}
        capped: dict[str, Tensor] = {}

        def record(side: str, allowed: Tensor, wanted: Tensor) -> None:
            short = (allowed < wanted) & torch.isfinite(wanted)  # the very first refresh asks for all that there is
            kept[side] = kept.get(side, 1.0) / (1 + torch.minimum(allowed, wanted))
            capped[side] = capped[side] | short if side in capped else short

        new = whiten(
            states,
            grads,
            beta2=options.preconditioner_beta2,
            damping=options.damping,
            substeps=refresh.substeps,
            weight=refresh.weight,
            damping_refreshes=refresh.damping,
            degree=options.degree,
            precision=options.precisions[0],
            largest=largest,
            record=record if trace is not None else None,
        )
        if trace is not None:
            trace.refreshed({side: 1 - value for side, value in kept.items()}, capped)
        return new

    def refresh_flops(self, shape: Shape, sides: Sides, options: Options, refresh: Refresh) -> int:
        """See :func:`whiten_flops`."""
        full = (sides[0] == "full", sides[1] == "full")
        damped = refresh.damping > 0 and options.damping > 0
        return whiten_flops(shape, full, substeps=refresh.substeps, damped=damped, degree=options.degree)

    def counterpart(self, shape: Shape, options: Options, device: torch.device) -> Counterpart:
        """KL-Shampoo of normalised gradients, by `eigh`: without the polynomial, and without `Q L Q` for a product."""
        return KLShampoo(shape, device, damping=options.damping)
