"""The algorithms for one parameter at a time, slow and plain: the page to read first, and the oracle of the tests.

:func:`step` is the algorithm box; each function below it is one line of that box. All is written in its most obvious
form. The optimizer computes the same numbers for many parameters at once, in forms that cost less. What it adds, and
this page leaves out: it cuts a large matrix into blocks, each of which has roots of its own (:mod:`jorge.blocks`); it
reads a kernel as a matrix, which takes no part in variances and Schatten norms; a gradient that is not finite skips the
step of all parameters of its device; it stores and multiplies in lower precision where it is asked to.

Letters: `W` the parameter (m × n), `G` its gradient, `L` and `R` the roots (m × m and n × n), `D` the direction, `M`
the momentum, `N` what looks ahead of it, `U` the update. A function for one side is written for the left one: `H` is
its own root, d × d, `P` that of its partner, and `G` is d × n. The right side calls it with `Gᵀ`, so that `H = R` and
`P = L`.

Sources: Jorge (Singh, Sating, Bhatele, arXiv 2310.12298), whose full text was not at hand: its recursion is
reconstructed from its abstract, its public reviews and a third party's comments on the algorithm. Shampoo (Gupta et
al., arXiv 1802.09568). Grafting (Agarwal et al., arXiv 2002.11803). Whitening is of the family of PSGD-Kron (Li, arXiv
1512.04202) and KL-Shampoo (Lin et al., arXiv 2509.03378). The paper's own algorithm, but for its momentum, which is of
directions, is here `Options(lr, method="binomial", init="paper", grafting="sgd", interval=1, warmup_refreshes=0,
graft_limit=None)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: By degree: `(p1, p2, cap)`. `1 + p1·x + p2·x²` stands for a negative power of `1 + x` on [0, cap].
Polynomials = dict[int, tuple[float, float, float]]
#: For `(1+x)^(-1/4)`: the minimax polynomial on [0, 3], error 1.3 %, and the line of least relative error on [0, 1].
WHITENING: Polynomials = {2: (-0.185204, 0.030181, 3.0), 1: (-0.17055, 0.0, 1.0)}
#: For `(1+x)^(-1/8)`: the minimax polynomial on [0, 6], and the line of least relative error on [0, 2].
CONGRUENCE: Polynomials = {2: (-0.077425, 0.007224, 6.0), 1: (-0.0709, 0.0, 2.0)}

EARLY = 10  #         so many first refreshes find the roots far from their fixed point
PERIOD = 7  #         damping that has a step of its own comes at every seventh refresh; odd, as gradients may alternate
LEAST = 1e-10  #    share of a row or column; what has less is taken for rounding
KEPT = 0.9  #         of the running average of step lengths, a step

FOLLOWS: Any = None  # the default of what follows the graft


@dataclass(frozen=True)
class Options:
    """Options of :class:`jorge.Jorge` that change a number, under its names and with its defaults."""

    lr: float = 1e-3
    momentum: float = FOLLOWS  #                   μ
    nesterov: bool = FOLLOWS
    weight_decay: float = FOLLOWS  #               λ
    method: str = "whitening"
    grafting: str = "adam"
    graft_limit: float | None = 2.0
    betas: tuple[float, float] = (0.9, 0.999)  #   Adam's
    eps: float = 1e-8  #                           Adam's
    beta2_decay: float | None = -0.8
    graft_memory: int | None = 20
    graft_norm: str = "schatten"
    adapt_variance: bool = True
    interval: int = 5
    warmup_refreshes: int = 20
    max_dim: int | None = None
    preconditioner_beta2: float = 0.95  #          β2 of the roots
    damping: float = 1e-4
    degree: int = 2
    init: str = "auto"
    root_eps: float | None = None  #               ε; None is the method's own
    stagger: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        adam = self.grafting == "adam"
        follow = {"momentum": self.betas[0] if adam else 0.9, "nesterov": adam, "weight_decay": 0.01 if adam else 0.0}
        for name, value in follow.items():
            if getattr(self, name) is FOLLOWS:
                object.__setattr__(self, name, value)
        if adam:
            object.__setattr__(self, "betas", (self.momentum, self.betas[1]))


@dataclass(frozen=True)
class Side:
    """A root `H`, d × d, and what it remembers; both change at a refresh alone.

    `S` is, for "exact", the running `GGᵀ` (d × d), and for a diagonal side, whose `H` is here a matrix with a diagonal
    alone, the running mean square of each row (d). Nothing else reads it.
    """

    H: Tensor
    S: Tensor
    full: bool


@dataclass
class State:
    """What is remembered of one parameter. A vector has no use for the sides, which are then 1 × 1."""

    left: Side  #                           changes at a refresh
    right: Side  #                          changes at a refresh
    M: Tensor  #                            momentum of SGD, or Adam's average of G; changes at each step that is taken
    v: Tensor  #                            Adam's running average of G²; likewise all below
    r: Tensor  #                            running shares of D's rows in its squared norm, and
    c: Tensor  #                            of its columns
    scale: float = 1.0  #                   s of Adam's length; changes at the steps that refresh
    lengths: tuple[float, float] = (0, 0)  # `Σ .9^(t−i) ℓ_i` and `Σ .9^(t−i)` over earlier step lengths ℓ_i
    taken: int = 0  #                       steps that were taken: Adam's t
    refreshes: int = 0  #                   k, refreshes that were taken
    steps: int = 0  #                       all steps with a gradient, finite or not: the schedule's t


def is_matrix(W: Tensor) -> bool:
    """Whether W has two sides above 1; a matrix with a side of 1 is a vector."""
    return W.dim() == 2 and min(W.shape) > 1


def init(W: Tensor, options: Options) -> State:
    """The state before any gradient: both roots I, all else zero."""

    def side(d: int) -> Side:
        full = options.max_dim is None or d <= options.max_dim  # None: such a block is never that long
        return Side(torch.eye(d).to(W), torch.zeros((d, d) if full else (d,)).to(W), full)

    m, n = W.shape if is_matrix(W) else (1, 1)
    zero = torch.zeros_like(W)
    return State(side(m), side(n), M=zero, v=zero, r=zero.sum(-1), c=zero.sum(0))


def step(W: Tensor, G: Tensor, state: State, options: Options) -> Tensor:
    """One step on `W` with the gradient `G`: the new weights. It replaces the fields of `state`.

    SGD would step by 0.3 and 0.1 here. Jorge steps as far, and the roots have made both parts alike:

    >>> options, W = Options(lr=0.1, grafting="sgd"), torch.eye(2, dtype=torch.float64)
    >>> state = init(W, options)
    >>> W = step(W, torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64), state, options)
    >>> [[round(w, 4) for w in row] for row in W.tolist()]
    [[0.7764, 0.0], [0.0, 0.7764]]
    >>> state.steps, state.refreshes, [round(h, 4) for h in state.left.H.diagonal().tolist()]
    (1, 1, [0.7321, 1.2679])
    """
    lr = options.lr
    state.steps += 1  #                                       t ← t + 1, whatever the gradient is
    if not torch.isfinite(norm(G)):  #                        the guard: such a gradient changes nothing else
        return W
    state.taken += 1
    G = -G if options.maximize else G
    U, N = sgd(G, state, options) if options.grafting == "sgd" else adam(G, state, options)  # the graft's own update
    if is_matrix(W):
        refresh(G, state, options)  #                         L, R where the schedule says so
        D = state.left.H @ N @ state.right.H  #               D = L N R
        A = adapted(D, state, options)  #                     D/(r cᵀ)^(1/4)
        state.scale = schatten_scale(U, A, state, options)  # s
        length = state.scale * limited(U, state, options)  #  ℓ = s ‖U‖: of the graft's update only the length is used
        ratio = length / (norm(A) + torch.finfo(W.dtype).tiny ** 0.5)  # below, squares underflow
        U = A * ratio if torch.isfinite(ratio) else torch.zeros_like(A)  # U = ℓ A / ‖A‖
    return W - lr * options.weight_decay * W - lr * U  #      W ← W − lr λ W − lr U


# --- when the roots are refreshed, and how ---------------------------------------------------------------------------


def scheduled(t: int, options: Options) -> tuple[int, int] | None:
    """Number of the refresh (from 0) that step `t` (from 1) makes, and its gap, the steps that it is for; else `None`.

    The gap is 1 for the first `warmup_refreshes`, 2 for as many more, and so on up to `interval`. A refresh comes at
    the last step of its gap, or with `stagger` at the first: that is so for one block alone, while several take the
    steps of the gap in turns.

    >>> [t for t in range(1, 26) if scheduled(t, Options(lr=1, interval=10, warmup_refreshes=3))]
    [1, 2, 3, 5, 7, 9, 12, 15, 18, 22]
    """
    number, last, warmup = -1, 0, options.warmup_refreshes
    while last < t:
        number += 1
        gap = min(1 + number // warmup, options.interval) if warmup else options.interval
        last += gap
    return (number, gap) if t == (last - gap + 1 if options.stagger else last) else None


@dataclass(frozen=True)
class Refresh:
    """How a refresh is done. Only whitening knows weights; the first refreshes weigh one and are not damped."""

    substeps: int  #        how often its step is repeated
    weight: float  #        how many refreshes it stands for: 0.6 a step of its gap, at least 1 and at most 3
    dampings: int  #        of how many refreshes it applies the damping, where that is a step of its own


def refresh_at(number: int, gap: int, method: str) -> Refresh:
    """How the refresh of this number (from 0) and gap is done."""
    early = number < EARLY
    substeps = {"whitening": max(1, 4 - number), "congruence": 4 if early else 2}.get(method, 1)
    weight = min(3.0, max(1.0, 0.6 * gap)) if method == "whitening" and not early else 1.0
    return Refresh(substeps, weight, PERIOD if not early and number % PERIOD == PERIOD - 1 else 0)


def refresh(G: Tensor, state: State, options: Options) -> None:
    """Replace L and R where the schedule says so, both from what both were before.

    Guards: a gradient of zeros, and one from which any new value would not be finite, leave the sides and k as they
    were. The schedule goes on all the same.
    """
    now = scheduled(state.steps, options)
    if now is None or not G.any():
        return
    how = refresh_at(*now, options.method)
    left, right, k = state.left, state.right, state.refreshes
    if options.method == "whitening":
        G = G / G.abs().max()  #          the roots do not see scale; the moments of a diagonal side do
    for _ in range(how.substeps if options.method == "whitening" else 1):
        left, right = renewed(left, G, right.H, k, how, options), renewed(right, G.T, left.H, k, how, options)
    if all(torch.isfinite(x).all() for side in (left, right) for x in (side.H, side.S)):
        state.left, state.right, state.refreshes = left, right, k + 1


def renewed(side: Side, G: Tensor, P: Tensor, k: int, how: Refresh, options: Options) -> Side:
    """One side after a refresh with `G`, where there were k before; `P` is its partner's root."""
    if not side.full:
        return diagonal(side.S, G, P, k, how, options)
    if options.method == "exact":
        return exact(side.S, G, k, options)
    if options.method == "whitening":
        return replace(side, H=whitening(side.H, G, P, k, how, options))
    if options.method == "congruence":
        return replace(side, H=congruence(side.H, G, k, how, options))
    return replace(side, H=binomial(side.H, G, k, options))


def newness(k: int, weight: float, options: Options) -> float:
    """`a`, the share of the new in a running average after k refreshes: all count alike until there are 1/(1−β2) of
    them (Adafactor's rule, arXiv 1804.04235, with the exponent −1). A weight w is as of w refreshes at once.
    """
    a = max(1 - options.preconditioner_beta2, 1 / (k + 1))  #   a = max(1−β2, 1/(k+1))
    return float(1 - (1 - a) ** weight)  #                      a ← 1 − (1−a)^w


# --- the four methods, for one side ----------------------------------------------------------------------------------


def whitening(H: Tensor, G: Tensor, P: Tensor, k: int, how: Refresh, options: Options) -> Tensor:
    """The side whitens the gradient that both have preconditioned: the fixed point is `E[VVᵀ] = τI`.

    White noise of variance `damping·σ²`, with σ² the mean square of G, would add `η HHᵀ` to `VVᵀ` in expectation. τ
    always counts that of one refresh. Where the partner is much shorter, the optimizer's cheaper form ("narrow") damps
    by a step of its own. k = 0 has no memory: `c = ∞`.
    """
    d, n = G.shape
    p1, p2, cap = WHITENING[options.degree]
    V = H @ G @ P  #                                                    V = H G P
    X = V @ V.T  #                                                      X = V Vᵀ
    eta = options.damping * G.square().mean() * (P @ P.T).trace()  #    η = damping σ² tr(P Pᵀ)
    tau = (X.trace() + eta * (H @ H.T).trace()) / d  #                  τ = tr(X + η H Hᵀ)/d
    a = newness(k, how.weight, options)
    c = a / (1 - a) if a < 1 else math.inf  #                           c = a/(1−a)
    if not (narrow := whitening_is_narrow(d, n)):
        X = X + how.dampings * eta * (H @ H.T)  #                       X ← X + 7 η H Hᵀ at every seventh refresh
    w = torch.minimum(c / tau, cap / largest(X, options.degree))  #     w = min(c/τ, cap/λ)
    H = congruent(H, w * X, p1, p2)  #                                  H ← Q H Q, Q ≈ (I + wX)^(-1/4)
    if narrow:
        share = torch.minimum(how.dampings * w * eta, cap / largest(H @ H))
        H = congruent(H, share * (H @ H), p1, p2)  #                    H ← Q H Q, Q ≈ (I + 7wη H²)^(-1/4)
    return H / H.diagonal().mean()  #                                   a mean diagonal of 1


def whitening_is_narrow(d: int, n: int) -> bool:
    """Whether the narrow form takes fewer operations for a side of d with the other of n, about n < 0.61 d."""
    wide = 2 * d**2 * n + 6 * d**3 + 2 * d**3 / PERIOD
    return 2 * d * n**2 + 4 * d**2 * n + 6 * d * n**2 + 4 * n**3 + 8 * d**3 / PERIOD < wide


def congruence(H: Tensor, G: Tensor, k: int, how: Refresh, options: Options) -> Tensor:
    """Shampoo's root of `S ← β2 S + (1−β2) GGᵀ`, tracked symmetric and positive definite.

    `S_new^(-1/4)` is `β2^(-1/4) (H^(-4) + (1−β2)/β2 · GGᵀ)^(-1/4)`; with `X = H² GGᵀ H²` the bracket is
    `H^(-2) (I + (1−β2)/β2 · X) H^(-2)`, and `Q H Q` with `Q ≈ (I + wX)^(-1/8)` has its root where all commute. w is as
    much of `(1−β2)/β2` as the polynomial covers; the substeps give the rest, and what then remains is dropped. ε is
    large, as a small one hurts where gradients are rank-deficient.
    """
    d, n = G.shape
    p1, p2, cap = CONGRUENCE[options.degree]
    beta2, energy = options.preconditioner_beta2, G.square().sum()
    if k == 0:
        H = ((options.root_eps or 1e-2) * energy / d) ** -0.25 * torch.eye(d).to(G)  # H_0 = (ε ‖G‖²/d)^(-1/4) I
    eta = options.damping * energy / d  #                           η = damping σ² n: white noise adds η H⁴ to X
    narrow = congruence_is_narrow(d, n, how.substeps, options)
    rest, given = G.new_tensor((1 - beta2) / beta2), G.new_tensor(0.0)
    for _ in range(how.substeps):
        V = H @ H @ G
        X = V @ V.T  #                                              X = H² G Gᵀ H²
        if not narrow:
            X = X + eta * (H @ H @ H @ H)  #                        X ← X + η H⁴
        w = torch.minimum(rest, cap / largest(X, options.degree))  # w = min(rest, cap/λ)
        H = congruent(H, w * X, p1, p2)  #                          H ← Q H Q, Q ≈ (I + wX)^(-1/8)
        rest, given = rest - w, given + w
    if narrow:
        X = H @ H @ H @ H
        share = torch.minimum(how.dampings * given * eta, cap / largest(X))
        H = congruent(H, share * X, p1, p2)  #                      the damping of seven refreshes at every seventh
    return torch.mul(H, beta2**-0.25)  #                            H ← β2^(-1/4) H


def congruence_is_narrow(d: int, n: int, substeps: int, options: Options) -> bool:
    """Whether the narrow form takes fewer operations, as :func:`whitening_is_narrow`, about n < 0.75 d."""
    damping = 10 * d**3 / PERIOD if options.damping else 0
    return substeps * (8 * d**2 * n + 8 * d * n**2 + 4 * n**3) + damping < substeps * (10 * d**3 + 4 * d**2 * n)


def binomial(H: Tensor, G: Tensor, k: int, options: Options) -> Tensor:
    """The paper's: with `H = S^(-1/4)`, `S_new^(-1/4) = β2^(-1/4) H (I + (1−β2)/β2 · X)^(-1/4)` where `X = H⁴ GGᵀ`.

    The last factor is its binomial series, with β2 from each gradient. Not symmetrised, as in the paper.
    """
    eye = torch.eye(len(G)).to(G)
    if k == 0:
        scale = G.square().sum() / len(G) if options.init == "auto" else G.new_tensor(options.root_eps or 1e-6)
        H = scale**-0.25 * eye  #                       H_0 = (‖G‖²/d)^(-1/4) I, the paper's ε^(-1/4) I
    X = H @ H @ H @ H @ G @ G.T  #                      X = H⁴ G Gᵀ
    nu = norm(X)  #                                     ν = ‖X‖_F
    if not (torch.isfinite(nu) and nu > 1e-30):  #      the guard: nothing to learn from this gradient
        return H
    beta2 = nu / (1 + nu)  #                            β2 = ν/(1+ν), so that (1−β2)/β2 = 1/ν
    Y = X / nu
    series = eye - Y / 4  #                             (I + Y)^(-1/4) ≈ I − Y/4 + 5Y²/32
    if options.degree == 2:
        series = series + 5 / 32 * (Y @ Y)
    return torch.mul(H @ series, beta2**-0.25)  #       H ← β2^(-1/4) H (I − X/(4ν) + 5X²/(32ν²))


def exact(S: Tensor, G: Tensor, k: int, options: Options) -> Side:
    """Shampoo: the root of the running `GGᵀ`, from its eigenvalues, in float64."""
    beta2, eps = options.preconditioner_beta2, options.root_eps or 1e-6
    S = symmetrized(beta2 * S + (1 - beta2) * (G @ G.T))  # S ← β2 S + (1−β2) G Gᵀ
    unbiased = (S / (1 - beta2 ** (k + 1))).double()  #     Ŝ = S/(1 − β2^(k+1))
    values, vectors = torch.linalg.eigh(unbiased)  #        Ŝ = E diag(e) Eᵀ
    powers = torch.diag((values.clamp(min=0) + eps * unbiased.trace() / len(S)) ** -0.25)
    H = vectors @ powers @ vectors.T  #                     H = (Ŝ + ε tr(Ŝ)/d I)^(-1/4)
    return Side(symmetrized(H).to(G), S, True)


def diagonal(S: Tensor, G: Tensor, P: Tensor, k: int, how: Refresh, options: Options) -> Side:
    """A side that is too long for a matrix, with every method: one number a row of the gradient that the other side
    preconditions. It applies its damping at every refresh.
    """
    a = newness(k, how.weight, options)
    eta = options.damping * G.square().mean() * (P @ P.T).trace()  #    η = damping σ² tr(P Pᵀ), for each row
    rows = ((G @ P).square().sum(1) + eta) / G.shape[1]  #              mean squares of the rows of G P
    S = (1 - a) * S + a * rows  #                                       S ← (1−a) S + a rows
    h = torch.maximum(S, 1e-12 * S.mean()) ** -0.5  #                   without damping, a dead row is zero
    return Side(torch.diag(h / h.mean()), S, False)  #                  a mean diagonal of 1


# --- small pieces ----------------------------------------------------------------------------------------------------


def congruent(H: Tensor, X: Tensor, p1: float, p2: float) -> Tensor:
    """`Q H Q` with `Q = I + p1 X + p2 X²`, symmetric to the bit."""
    Q = torch.eye(len(H)).to(H) + p1 * X + p2 * (X @ X)
    return symmetrized(Q @ H @ Q)


def symmetrized(A: Tensor) -> Tensor:
    """`(A + Aᵀ)/2`: rounding makes a product of symmetric matrices a little asymmetric, and more so each time."""
    return (A + A.T) / 2


def largest(X: Tensor, degree: int = 2) -> Tensor:
    """λ, a bound on the largest eigenvalue: `‖X²‖_F^(1/2)`, which is `(Σ eigenvalue⁴)^(1/4)`; with degree 1 `‖X‖_F`, so
    that X² is never needed. The trace is taken out of X² against overflow.
    """
    Y = X / X.trace()
    return norm(X) if degree == 1 else X.trace() * norm(Y @ Y).sqrt()


def norm(X: Tensor) -> Tensor:
    """Euclidean or Frobenius norm."""
    return torch.linalg.vector_norm(X)  # type: ignore[no-any-return]


# --- what whitening leaves --------------------------------------------------------------------------------------------


def adapted(D: Tensor, state: State, options: Options) -> Tensor:
    """Variance adaptation: rows and columns of D over the fourth roots of r and c, the running shares of D's rows and
    columns in its squared norm (factored as in Adafactor, arXiv 1804.04235, section 3). Their scale is free.
    """
    if options.grafting != "adam" or not options.adapt_variance:
        return D
    P = (D / norm(D)).square() if 0 < norm(D) < math.inf else torch.zeros_like(D)
    w = max(1 / 20, 1 / state.taken)
    state.r = (1 - w) * state.r + w * P.sum(1)  #               r ← (1−w) r + w P1,   w = max(1/20, 1/t)
    state.c = (1 - w) * state.c + w * P.sum(0)  #               c ← (1−w) c + w Pᵀ1
    rows, columns = (x.clamp(min=LEAST) ** 0.25 for x in (state.r, state.c))
    return D / torch.outer(rows, columns)


# --- whose length a matrix's step has, and a vector's own step: the graft --------------------------------------------


def sgd(G: Tensor, state: State, options: Options) -> tuple[Tensor, Tensor]:
    """The update of `torch.optim.SGD`, for vectors and matrices alike; it is N, too."""
    mu = options.momentum
    state.M = mu * state.M + G  #                               M ← μM + G
    N = G + mu * state.M if options.nesterov else state.M  #    N = M, or G + μM with Nesterov momentum
    return N, N


def schatten_scale(U: Tensor, A: Tensor, state: State, options: Options) -> float:
    """`s = ‖U‖₄/‖A‖₄` of Schatten norms, where U and A are of one Frobenius norm: by it Jorge's step has Adam's
    Schatten norm. It is measured at the steps that refresh, and kept between them.
    """
    off = options.grafting != "adam" or options.graft_norm != "schatten" or not (state.left.full or state.right.full)
    if off or scheduled(state.steps, options) is None or not (0 < norm(U) < math.inf and 0 < norm(A) < math.inf):
        return state.scale
    return float(schatten(U / norm(U)) / schatten(A / norm(A)))


def schatten(X: Tensor) -> Tensor:
    """The Schatten-4 norm: `(Σσ⁴)^(1/4)` of the singular values."""
    return norm(torch.linalg.svdvals(X).square()).sqrt()


def limited(U: Tensor, state: State, options: Options) -> float:
    """`ℓ = ‖U‖`, or `graft_limit` times the average of the last ten or so where that is less; Adam's has no limit."""
    length, (total, count) = float(norm(U)), state.lengths
    if options.graft_limit is None or options.grafting == "adam":
        return length
    if count > 0:
        length = min(length, options.graft_limit * total / count)
    if length > 0:  #                                           a length of 0 leaves no trace
        state.lengths = (KEPT * total + length, KEPT * count + 1)
    return length


def adam(G: Tensor, state: State, options: Options) -> tuple[Tensor, Tensor]:
    """The update of `torch.optim.Adam`, and N, which is preconditioned.

    That of matrices alone may forget as Adafactor's, and look ahead.

    `beta2_decay`: squares are averaged as in Adafactor (Shazeer and Stern, arXiv 1804.04235, section 7.2), which has no
    bias; `graft_memory`: over so many steps at most. `nesterov`: the average looks ahead as in NAdam (Dozat 2016), but
    with a constant β1.
    """
    (beta1, beta2), t = options.betas, state.taken
    decay, a = options.beta2_decay if is_matrix(G) else None, 1 - beta2
    if decay is not None:
        a = max(a, t**decay, 1 / (options.graft_memory or math.inf))  #         a = max(1−β2, t^decay, 1/memory)
    state.M = beta1 * state.M + (1 - beta1) * G  #                              M ← β1 M + (1−β1) G
    state.v = (1 - a) * state.v + a * G.square()  #                             v ← (1−a) v + a G²
    N, first = state.M, state.M / (1 - beta1**t)  #                             N = M, M/(1−β1^t)
    second = state.v / (1 - beta2**t) if decay is None else state.v  #          v/(1−β2^t), or v
    if is_matrix(G) and options.nesterov:
        N = beta1 * state.M + (1 - beta1) * G  #                                N = β1 M + (1−β1) G: once more
        first = N / (1 - beta1 ** (t + 1))  #                                   N/(1−β1^(t+1))
    return first / (second.sqrt() + options.eps), N  #                          U = first/(√second + eps)
