"""The paper's algorithm for one matrix at a time, slow and plain: the page to read first, and the oracle of the tests.

Source: Singh, Sating, Bhatele, *Jorge: Approximate Preconditioning for GPU-efficient Second-order Optimization*,
arXiv 2310.12298, algorithm 1. Its full text was not at hand when this was written; the recursion is reconstructed
from its abstract, its public reviews and a third party's comments on the algorithm. The package's optimizer computes
the same numbers with `method="binomial", init="paper", interval=1`, for many matrices at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ReferenceState:
    """State of one m × n matrix: `L` (m × m), `R` (n × n), the momentum `M` and SGD's own momentum `b` (m × n)."""

    L: Tensor
    R: Tensor
    M: Tensor
    b: Tensor


def reference_init(W: Tensor, *, eps: float = 1e-6) -> ReferenceState:
    """`L_0 = ε^(-1/4) I`, `R_0 = ε^(-1/4) I`, both momenta zero."""
    m, n = W.shape
    eye_m = torch.eye(m, dtype=W.dtype, device=W.device)
    eye_n = torch.eye(n, dtype=W.dtype, device=W.device)
    return ReferenceState(eps**-0.25 * eye_m, eps**-0.25 * eye_n, torch.zeros_like(W), torch.zeros_like(W))


def reference_root(L: Tensor, GGt: Tensor) -> Tensor:
    """One refresh of `L ≈ (Σ G Gᵀ)^(-1/4)` without an inverse.

    Shampoo's statistics obey `S ← β2 S + (1−β2) G Gᵀ`. With `L = S^(-1/4)` and `X = L⁴ G Gᵀ`,
    `S_new^(-1/4) = β2^(-1/4) L (I + (1−β2)/β2 · X)^(-1/4)`, and the last factor is expanded to second order.
    """
    X = L @ L @ L @ L @ GGt  #                               X  = L⁴ G Gᵀ
    nu = torch.linalg.matrix_norm(X)  #                      ν  = ‖X‖_F
    if not (torch.isfinite(nu) and nu > 1e-30):  #           the guard: nothing to learn from this gradient
        return L
    beta2 = nu / (1 + nu)  #                                 β2 = ν / (1 + ν), so that (1−β2)/β2 = 1/ν
    eye = torch.eye(L.shape[0], dtype=L.dtype, device=L.device)
    series = eye - X / (4 * nu) + 5 * (X @ X) / (32 * nu**2)  # (I + X/ν)^(-1/4) ≈ I − X/(4ν) + 5X²/(32ν²)
    return torch.mul(L @ series, beta2**-0.25)  #                   L ← β2^(-1/4) L (I − X/(4ν) + 5X²/(32ν²))


def reference_step(
    W: Tensor, G: Tensor, state: ReferenceState, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> Tensor:
    """One step on `W` (m × n) with gradient `G`; updates `state` and returns the new weights.

    >>> W = torch.eye(2)
    >>> state = reference_init(W)
    >>> reference_step(W, torch.eye(2), state, lr=0.1).diagonal().tolist()
    [0.8999999761581421, 0.8999999761581421]
    """
    state.L = reference_root(state.L, G @ G.T)
    state.R = reference_root(state.R, G.T @ G)
    D = state.L @ G @ state.R  #                                    the preconditioned gradient
    state.M = momentum * state.M + (1 - momentum) * D  #            M ← μM + (1−μ)D
    state.b = momentum * state.b + G  #                             b ← μb + G, SGD's momentum: the step length
    tiny = torch.finfo(W.dtype).tiny
    U = state.M * (torch.linalg.matrix_norm(state.b) / (torch.linalg.matrix_norm(state.M) + tiny))
    return torch.sub(W, lr * weight_decay * W + lr * U)  #                    decoupled weight decay
