"""One face for the four methods: the state of a stack of equal blocks, its refresh and its direction.

A method is an entry of :data:`METHODS`; it differs from the others in the function of :mod:`jorge.roots` that its
refresh calls, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jorge.blocks import Side
from jorge.roots import (
    DAMPING_PERIOD,
    Precision,
    apply,
    apply_right,
    binomial,
    binomial_flops,
    binomial_start,
    choose,
    congruence,
    congruence_flops,
    congruence_start,
    diagonal,
    exact_root,
    largest_entry,
    per_block,
    square_sum,
    symmetrize,
    trace,
    whitening,
    whitening_flops,
)

Init = Literal["auto", "paper"]
State = dict[str, Tensor]

#: So many refreshes follow each other fast and find the roots far from their fixed point: they stand for one each, and
#: there is nothing yet to be damped apart.
EARLY_REFRESHES = 10
#: A refresh stands for so many a step of its gap, as far as its method goes.
_WEIGHT_PER_STEP = 0.6


@dataclass(frozen=True)
class RootOptions:
    """What a refresh needs to know beside the data.

    Args:
        beta2: memory of the second moments, in refreshes: 0.95 remembers about 20.
        damping: white noise that is added to the gradient in expectation, relative to its mean square.
        init: `"paper"` starts the binomial method from `eps^(-1/4)`, `"auto"` from the first gradient's scale.
        eps: the ε of the method's start (binomial, congruence) or of its regularisation (exact); `None` takes the
            method's own (:attr:`Method.eps`).
        degree: of the polynomial or series, 1 or 2; "exact" has none.
        precision: of the products of a refresh (:mod:`jorge.roots.products`); "exact" ignores it.
    """

    beta2: float = 0.95
    damping: float = 1e-4
    init: Init = "auto"
    eps: float | None = None
    degree: int = 2
    precision: Precision = None


@dataclass(frozen=True)
class Pace:
    """Which refresh this is: how often the step is repeated in it, how many refreshes it stands for, and whether it
    applies the damping of several, where that has a product of its own.

    All is the same for every block that is refreshed together, and known on the host; in a compiled step the weight is
    a 0-dim tensor, so that no graph holds its value.
    """

    substeps: int = 1
    weight: float | Tensor = 1.0
    damped: bool = False

    @property
    def share(self) -> float:
        """How many refreshes' damping this one applies."""
        return float(DAMPING_PERIOD) if self.damped else 0.0


@dataclass(frozen=True)
class Method:
    """A way to track the roots: its refresh, the extra state of a full side, and its default ε.

    The refresh is a function of the state, with the `largest` absolute entries of the gradients beside it.
    `early_substeps` are the repetitions of the step in the first refreshes, `substeps` those in all later ones.
    `sparse_weight` is how many refreshes one stands for at most where there are steps without: see `docs/speed.md`.
    """

    refresh: Callable[[State, Tensor, RootOptions, Pace], State]
    damps_apart: bool = False
    symmetric: bool = True
    keeps_factor: bool = False
    eps: float = 0.0
    early_substeps: tuple[int, ...] = ()
    substeps: int = 1
    sparse_weight: float = 1.0

    def substeps_at(self, refreshes: int) -> int:
        """Repetitions of the step in the refresh after `refreshes` earlier ones."""
        return self.early_substeps[refreshes] if refreshes < len(self.early_substeps) else self.substeps

    def pace(self, refreshes: int, gap: int) -> Pace:
        """The pace of the refresh after `refreshes` earlier ones, `gap` steps from the next."""
        settled = refreshes >= EARLY_REFRESHES
        damped = self.damps_apart and settled and refreshes % DAMPING_PERIOD == DAMPING_PERIOD - 1
        weight = min(self.sparse_weight, max(1.0, _WEIGHT_PER_STEP * gap)) if settled else 1.0
        return Pace(self.substeps_at(refreshes), weight, damped)


def _fresh_moment(state: State, side: str, other: str, grad: Tensor, options: RootOptions) -> tuple[Tensor, Tensor]:
    """The diagonal `side` from the gradient that the other side preconditions, with the state's counter."""
    blend = (1 / (state["refreshes"] + 1)).clamp(min=1 - options.beta2)
    noise = options.damping * grad.square().mean(dim=(-2, -1)) * square_sum(state[other])
    seen = apply_right(grad, state[other], options.precision)
    return diagonal(state[f"{side}_moment"], seen, noise, blend)


def _refresh_sides(
    state: State, grad: Tensor, options: RootOptions, full: Callable[[str, Tensor, Tensor], State]
) -> State:
    """Refresh each side on its own: full ones by `full(side, root, gradient seen from that side)`."""
    new: State = {}
    for side, other, seen in (("left", "right", grad), ("right", "left", grad.mT)):
        if state[side].dim() == 3:
            new |= full(side, state[side], seen)
        else:
            new[side], new[f"{side}_moment"] = _fresh_moment(state, side, other, seen, options)
    return new


def _first(state: State, start: Tensor, root: Tensor) -> Tensor:
    """`start` for blocks that were never refreshed, their `root` for the others."""
    return choose(state["refreshes"] == 0, start, root)


def _refresh_binomial(state: State, grad: Tensor, options: RootOptions, pace: Pace) -> State:
    eps = None if options.init == "auto" else (options.eps or METHODS["binomial"].eps)

    def full(side: str, root: Tensor, seen: Tensor) -> State:
        root = _first(state, binomial_start(seen, eps), root)
        return {side: binomial(root, seen, degree=options.degree, precision=options.precision)}

    return _refresh_sides(state, grad, options, full)


def _refresh_congruence(state: State, grad: Tensor, options: RootOptions, pace: Pace) -> State:
    eps = options.eps or METHODS["congruence"].eps

    def full(side: str, root: Tensor, seen: Tensor) -> State:
        root = _first(state, congruence_start(seen, eps), root)
        new = congruence(
            root,
            seen,
            beta2=options.beta2,
            damping=options.damping,
            substeps=pace.substeps,
            damped=pace.share,
            degree=options.degree,
            precision=options.precision,
        )
        return {side: new}

    return _refresh_sides(state, grad, options, full)


def _refresh_whitening(state: State, grad: Tensor, options: RootOptions, pace: Pace) -> State:
    left, right, moments = whitening(
        state["left"],
        grad,
        state["right"],
        state["refreshes"],
        beta2=options.beta2,
        damping=options.damping,
        substeps=pace.substeps,
        weight=pace.weight,
        moments=(state.get("left_moment"), state.get("right_moment")),
        damped=pace.share,
        degree=options.degree,
        precision=options.precision,
        scale=state["largest"],
    )
    new = {"left": left, "right": right, "left_moment": moments[0], "right_moment": moments[1]}
    return {key: value for key, value in new.items() if value is not None}


def _refresh_exact(state: State, grad: Tensor, options: RootOptions, pace: Pace) -> State:
    eps = options.eps or METHODS["exact"].eps
    grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)  # `eigh` raises where the others pass NaN on
    correction = per_block(1 - options.beta2 ** (state["refreshes"] + 1))

    def full(side: str, root: Tensor, seen: Tensor) -> State:
        factor = state[f"{side}_factor"] * options.beta2 + (seen @ seen.mT) * (1 - options.beta2)
        factor = symmetrize(factor)
        return {f"{side}_factor": factor, side: exact_root(factor / correction, eps=eps)}

    return _refresh_sides(state, grad, options, full)


METHODS: dict[str, Method] = {
    "whitening": Method(_refresh_whitening, damps_apart=True, early_substeps=(4, 3, 2), sparse_weight=3.0),
    "congruence": Method(
        _refresh_congruence, damps_apart=True, eps=1e-2, early_substeps=(4,) * EARLY_REFRESHES, substeps=2
    ),
    "binomial": Method(_refresh_binomial, eps=1e-6, symmetric=False),
    "exact": Method(_refresh_exact, eps=1e-6, keeps_factor=True),
}


def initial_state(
    method: str,
    count: int,
    shape: tuple[int, int],
    sides: tuple[Side, Side],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> State:
    """State of `count` blocks of `shape` before any gradient: identity roots, zero moments, counters of zero.

    `dtype` is that in which the roots are stored; the counters are float32.
    """
    state: State = {"refreshes": torch.zeros(count, dtype=torch.float32, device=device)}
    for name, d, kind in zip(("left", "right"), shape, sides, strict=True):
        if kind == "full":
            state[name] = torch.eye(d, dtype=dtype, device=device).repeat(count, 1, 1)
            if METHODS[method].keeps_factor:
                state[f"{name}_factor"] = torch.zeros(count, d, d, dtype=dtype, device=device)
        else:
            state[name] = torch.ones(count, d, dtype=dtype, device=device)
            state[f"{name}_moment"] = torch.zeros(count, d, dtype=dtype, device=device)
    return state


def refresh(method: str, state: State, grad: Tensor, options: RootOptions, pace: Pace) -> None:
    """Refresh the roots of a stack in place from `grad`, `[count, m, n]`, in the dtype of `grad`.

    Blocks whose gradient is zero or not finite keep their state to the bit, counters included; so do those whose
    new roots would not be finite (the binomial recursion can overflow).
    """
    largest = largest_entry(grad)
    wide = {key: value.to(grad.dtype) for key, value in state.items()}
    new = METHODS[method].refresh({**wide, "largest": largest}, grad, options, pace)
    total = largest
    for value in new.values():
        # A symmetric root is a product `B + Bᵀ`: what is not finite in B reaches its diagonal.
        on_diagonal = value.dim() == 3 and METHODS[method].symmetric
        total = total + (trace(value) if on_diagonal else value.flatten(1).sum(-1))
    usable = (total - total).eq(0) & (largest > 0)  # the difference is NaN where the total is not finite
    for key, value in new.items():
        mask = usable.view(-1, *(1,) * (value.dim() - 1))
        if state[key].dtype == value.dtype:
            torch.where(mask, value, state[key], out=state[key])
        else:
            state[key].copy_(torch.where(mask, value, wide[key]))
    state["refreshes"].add_(usable)


def direction(state: State, grad: Tensor, precision: Precision = None) -> Tensor:
    """`L G R` with the state's roots, `[count, m, n]` in the dtype of `grad`."""
    return apply(state["left"].to(grad.dtype), grad, state["right"].to(grad.dtype), precision)


# --- operation counts: what torch's counter sees, two for a multiplication and an addition ---------------------------


def direction_flops(shape: tuple[int, int], sides: tuple[Side, Side]) -> int:
    """Operations of `L G R` for one block of `shape`; a diagonal side is no product and counts none."""
    m, n = shape
    return 2 * m * m * n * (sides[0] == "full") + 2 * m * n * n * (sides[1] == "full")


def refresh_flops(
    method: str, shape: tuple[int, int], sides: tuple[Side, Side], options: RootOptions, *, substeps: int, number: int
) -> int:
    """Operations of one refresh of one block of `shape`, after `number` earlier ones; `eigh` counts none.

    Damping that has a product of its own is applied at every :data:`~jorge.roots.DAMPING_PERIOD`-th refresh.
    """
    m, n = shape
    full = (sides[0] == "full", sides[1] == "full")
    damped = METHODS[method].pace(number, 1).damped
    if method == "whitening":
        applied = damped and options.damping > 0
        return whitening_flops(shape, full, substeps=substeps, damped=applied, degree=options.degree)
    total = 0
    for d, k, mine, other in ((m, n, *full), (n, m, *full[::-1])):
        if not mine:
            total += 2 * d * k * k * other  # the gradient that the other side preconditions
        elif method == "binomial":
            total += binomial_flops(d, k, options.degree)
        elif method == "congruence":
            total += congruence_flops(
                d, k, substeps=substeps, damping=options.damping, damped=damped, degree=options.degree
            )
        else:
            total += 2 * d * d * k + 2 * d**3  # the factor, and the root from its eigenvectors
    return total
