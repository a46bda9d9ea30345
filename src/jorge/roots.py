"""The mathematics: inverse roots that are tracked by matrix products, as pure functions on batches of matrices.

Every function takes a batch `[count, m, n]` of gradients (or `[count, d, d]` of roots) and returns new tensors;
nothing here reads a value back to the host, branches on data, or draws a random number.

A gradient `G` (m × n) is preconditioned as `L G R`. A *full* side is a symmetric matrix, `[count, d, d]`; a
*diagonal* side is a vector, `[count, d]`. Four methods (:mod:`jorge.methods` gives them one face):

========== ========================================================================= =====================
method     what it tracks                                                             source
========== ========================================================================= =====================
binomial   the inverse fourth root, by the paper's truncated binomial series          arXiv 2310.12298
congruence the same root, kept symmetric positive definite, with Shampoo's memory     this package
whitening  the inverse square root of the already preconditioned gradient's moments   this package
exact      Shampoo: the inverse fourth root by `eigh`                                 arXiv 1802.09568
========== ========================================================================= =====================

The constants were derived as said where they stand. The paper's full text was not at hand when this was written:
its recursion is reconstructed from its abstract, its public reviews and a third party's comments on the algorithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Minimax of `(1+x)^(-1/8)` on [0, 6] as `1 + p1·x + p2·x²`; the Taylor polynomial on [0, 1] is clearly worse.
CONGRUENCE_POLYNOMIAL, CONGRUENCE_CAP = (-0.077425, 0.007224), 6.0
#: Minimax of `(1+x)^(-1/4)` on [0, 3], monotone there, error 1.3 %.
WHITENING_POLYNOMIAL, WHITENING_CAP = (-0.185204, 0.030181), 3.0
#: The narrow forms of the recursions pay where the other side is at most this part of the side itself.
NARROW = 0.55


def apply(left: Tensor, grad: Tensor, right: Tensor) -> Tensor:
    """`L G R` for each of `[count, m, n]` gradients; each side is `[count, d, d]` or, diagonal, `[count, d]`."""
    return apply_right(apply_left(left, grad), right)


def apply_left(left: Tensor, grad: Tensor) -> Tensor:
    """`L G`, a new `[count, m, n]`."""
    return left @ grad if left.dim() == 3 else left.unsqueeze(-1) * grad


def apply_right(grad: Tensor, right: Tensor) -> Tensor:
    """`G R`, a new `[count, m, n]`."""
    return grad @ right if right.dim() == 3 else grad * right.unsqueeze(-2)


def symmetrize(matrices: Tensor) -> Tensor:
    """`(A + Aᵀ)/2`, symmetric to the bit."""
    return (matrices + matrices.mT).mul_(0.5)


def identity_like(matrices: Tensor) -> Tensor:
    """Identity matrices of the same batch, side, dtype and device as `[count, d, d]`."""
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where the block's `mask` is true, `old` (to the bit) elsewhere."""
    return torch.where(mask.view(-1, *(1,) * (new.dim() - 1)), new, old)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of squares of each block, `[count]`; of a side `O` it is `tr(O Oᵀ)`."""
    return tensor.square().flatten(1).sum(-1)


def per_block(values: Tensor) -> Tensor:
    """`[count]` as `[count, 1, 1]`."""
    return values.view(-1, 1, 1)


# --- binomial: the paper's recursion ------------------------------------------------------------------------------


def binomial(root: Tensor, grad: Tensor, *, narrow: bool | None = None) -> Tensor:
    r"""One refresh of the paper's recursion for the left side; for the right side pass `grad.mT`.

    With `X = L⁴ G Gᵀ`, `ν = ‖X‖_F` and `β2 = ν/(1+ν)`:
    `L ← β2^(-1/4) · L (I − X/(4ν) + 5X²/(32ν²))`. Right-multiplied and not symmetrised, as in the paper.
    Where ν is not finite or not above 1e-30, `L` is kept.

    Args:
        root: `L`, `[count, m, m]`.
        grad: `G`, `[count, m, n]`.
        narrow: the form that never builds `L⁴` or `GGᵀ`, an exact rewrite; `None` chooses by operation count.

    Source: arXiv 2310.12298, algorithm 1 as reconstructed (see the module's docstring).
    """
    m, n = grad.shape[-2:]
    if narrow is None:
        narrow = 6 * m * m * n + 4 * m * n * n < 4 * m**3 + 2 * m * m * n
    return _binomial_narrow(root, grad) if narrow else _binomial_wide(root, grad)


def _binomial_wide(root: Tensor, grad: Tensor) -> Tensor:
    root2 = root @ root
    x = ((root2 @ root2) @ grad) @ grad.mT
    nu = torch.linalg.vector_norm(x, dim=(-2, -1))
    x = x / per_block(nu)
    step = root @ x
    series = root - step / 4 + (step @ x) * (5 / 32)
    return _binomial_scale(series, root, nu)


def _binomial_narrow(root: Tensor, grad: Tensor) -> Tensor:
    u = root @ (root @ (root @ (root @ grad)))
    u_norm, g_norm = (torch.linalg.vector_norm(t, dim=(-2, -1)) for t in (u, grad))  # apart: ν² may underflow
    u, g = u / per_block(u_norm), grad / per_block(g_norm)
    unit = ((u.mT @ u) * (g.mT @ g)).flatten(1).sum(-1).clamp(min=0).sqrt()
    nu = unit * u_norm * g_norm
    u = u / per_block(unit)
    inner = identity_like(u.mT @ u) / 4 - (g.mT @ u) * (5 / 32)
    series = root - ((root @ u) @ inner) @ g.mT
    return _binomial_scale(series, root, nu)


def _binomial_scale(series: Tensor, root: Tensor, nu: Tensor) -> Tensor:
    beta2 = nu / (1 + nu)
    return choose(torch.isfinite(nu) & (nu > 1e-30), series * per_block(beta2**-0.25), root)


def binomial_start(grad: Tensor, eps: float | None) -> Tensor:
    """`L_0`, `[count, m, m]`: `ε^(-1/4) I` for a given ε (the paper), `(tr(GGᵀ)/m)^(-1/4) I` for `None`."""
    count, m, _ = grad.shape
    scale = grad.new_full((count,), eps) if eps is not None else square_sum(grad) / m
    return torch.diag_embed((scale**-0.25).unsqueeze(-1).expand(count, m))


# --- congruence: symmetric, positive definite, Shampoo's fixed point ------------------------------------------------


def congruence(
    root: Tensor, grad: Tensor, *, beta2: float, damping: float, substeps: int, narrow: bool | None = None
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
        narrow: the form without m × m products, for n well below m, which leaves the damping out; `None` takes it
            never while there is damping, and below :data:`NARROW` otherwise.

    λ_max is bounded by the Schatten-4 norm `‖X²‖_F^(1/2)`, with X first divided by its trace against overflow.
    """
    m, n = grad.shape[-2:]
    if narrow is None:
        narrow = damping == 0 and n <= NARROW * m
    remaining = grad.new_full((grad.shape[0],), (1 - beta2) / beta2)
    noise = (damping * square_sum(grad) / m).sqrt()
    for _ in range(substeps):
        if narrow:
            root, used = _congruence_narrow(root, grad, remaining)
        else:
            root, used = _congruence_wide(root, grad, remaining, noise)
        remaining = remaining - used
    return torch.mul(root, beta2**-0.25)


def _weight(remaining: Tensor, square: Tensor, trace: Tensor, cap: float) -> Tensor:
    """`min(remaining, cap/λ)` for `X = trace · U` with `square = U²`; the same λ for `VVᵀ` and `VᵀV`."""
    return torch.minimum(remaining, cap / (trace * torch.linalg.vector_norm(square, dim=(-2, -1)).sqrt()))


def _congruence_wide(root: Tensor, grad: Tensor, remaining: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    p1, p2 = CONGRUENCE_POLYNOMIAL
    root2 = root @ root
    v = torch.cat([root2 @ grad, root2 * per_block(noise)], dim=-1)
    trace = square_sum(v)
    v = v * per_block(trace.rsqrt())
    x = v @ v.mT
    x2 = x @ x
    weight = _weight(remaining, x2, trace, CONGRUENCE_CAP)
    scale = per_block(weight * trace)
    q = x * (p1 * scale) + x2 * (p2 * scale**2)
    q.diagonal(dim1=-2, dim2=-1).add_(1)
    return symmetrize(q @ root @ q), weight


def _congruence_narrow(root: Tensor, grad: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
    p1, p2 = CONGRUENCE_POLYNOMIAL
    v = root @ (root @ grad)
    trace = square_sum(v)
    v = v * per_block(trace.rsqrt())
    s = v.mT @ v
    weight = _weight(remaining, s @ s, trace, CONGRUENCE_CAP)
    v = v * per_block((weight * trace).sqrt())
    k = s * (p2 * per_block(weight * trace))
    k.diagonal(dim1=-2, dim2=-1).add_(p1)
    w = root @ v
    m = k @ (v.mT @ w) @ k
    z = w @ k + (v @ m) * 0.5
    vz = v @ z.mT
    return root + (vz + vz.mT), weight


def congruence_start(grad: Tensor, eps: float) -> Tensor:
    """`L_0 = (ε‖G‖²/m)^(-1/4) I`, `[count, m, m]`. ε = 1e-2: 1e-6 hurts where gradients are rank-deficient."""
    count, m, _ = grad.shape
    return torch.diag_embed(((eps * square_sum(grad) / m) ** -0.25).unsqueeze(-1).expand(count, m))


# --- whitening: two-sided, scale-free -------------------------------------------------------------------------------


def whitening(
    left: Tensor,
    grad: Tensor,
    right: Tensor,
    refreshes: Tensor,
    *,
    beta2: float,
    damping: float,
    substeps: int,
    moments: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    r"""One refresh of both sides: each whitens the gradient that both have preconditioned.

    With `V = L G R` and, for the left side, `X = VVᵀ + damping·σ²·tr(RRᵀ)·LLᵀ`:
    `L ← sym(Q L Q)`, `Q = q(wX) ≈ (I + wX)^(-1/4)`, then `L` is scaled to a mean diagonal of 1. The weight w is
    `min(c/τ, cap/λ)` with `τ = tr(X)/m`, `c = w_t/(1−w_t)`, `w_t = max(1−β2, 1/(k+1))`. The family is that of
    PSGD-Kron (arXiv 1512.04202) and KL-Shampoo (arXiv 2509.03378).

    Args:
        left, right: `L` and `R`, `[count, d, d]`; a diagonal side is `[count, d]` and needs its `moments`.
        grad: `G`, `[count, m, n]`, finite and not zero.
        refreshes: k, `[count]`: refreshes so far.
        beta2: memory of the second moments.
        damping: white noise added in expectation, relative to the mean square of `G`.
        substeps: how often the step is repeated.
        moments: running second moments of the diagonal sides, `[count, d]` each.

    Returns:
        the new left, right and moments.
    """
    grad = grad / per_block(grad.abs().amax(dim=(-2, -1)))
    sigma2 = grad.square().mean(dim=(-2, -1))
    blend = (1 / (refreshes + 1)).clamp(min=1 - beta2)
    new_moments: list[Tensor | None] = list(moments)
    for _ in range(substeps):
        half = apply_left(left, grad)
        v = apply_right(half, right)
        noise = damping * sigma2
        if left.dim() == 3:
            new_left = _whiten(left, v, square_sum(right) * noise, blend)
        else:
            new_left, new_moments[0] = diagonal(moments[0], apply_right(grad, right), square_sum(right) * noise, blend)
        if right.dim() == 3:
            right = _whiten(right, v.mT, square_sum(left) * noise, blend)
        else:
            right, new_moments[1] = diagonal(moments[1], half.mT, square_sum(left) * noise, blend)
        left = new_left
    return left, right, (new_moments[0], new_moments[1])


def _whiten(root: Tensor, v: Tensor, noise: Tensor, blend: Tensor) -> Tensor:
    """`root` after one step towards whitening `v`; `noise`, `[count]`, is the factor of `H Hᵀ` in X."""
    p1, p2 = WHITENING_POLYNOMIAL
    x = torch.baddbmm(v @ v.mT, root * per_block(noise), root.mT)
    x2 = x @ x
    mean = _trace(x) / x.shape[-1]
    largest = torch.linalg.vector_norm(x2, dim=(-2, -1)).sqrt()
    weight = per_block(torch.minimum(blend / ((1 - blend) * mean), WHITENING_CAP / largest))
    q = x.mul_(p1 * weight).add_(x2.mul_(p2 * weight**2))
    q.diagonal(dim1=-2, dim2=-1).add_(1)
    new = symmetrize(q @ root @ q)
    return new / per_block(_trace(new) / new.shape[-1])


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
    fresh = (grad.square().sum(-1) + noise.unsqueeze(-1)) / grad.shape[-1]
    moment = moment.lerp(fresh, blend.unsqueeze(-1))
    side = torch.maximum(moment, 1e-12 * moment.mean(-1, keepdim=True)).rsqrt()  # without damping, dead rows are zero
    return side / side.mean(-1, keepdim=True), moment


# --- exact: Shampoo -------------------------------------------------------------------------------------------------


def exact_root(factor: Tensor, *, eps: float, power: float = -0.25) -> Tensor:
    """`(S + ε·tr(S)/d·I)^power` of symmetric positive semi-definite `[count, d, d]`, by `eigh` in float64.

    The eigenvalues are floored at the regularisation, so that rounding cannot make one negative. Source: Shampoo,
    arXiv 1802.09568, algorithm 1. On CUDA, `eigh` waits for the device: it is the one method that does.
    """
    wide = factor.double()
    floor = (eps * _trace(wide) / factor.shape[-1]).unsqueeze(-1)
    values, vectors = torch.linalg.eigh(wide)
    powers = (values.clamp(min=0) + floor) ** power
    return symmetrize((vectors * powers.unsqueeze(-2)) @ vectors.mT).to(factor.dtype)
