"""`exact`: Shampoo's root by `eigh`, the control of every comparison and the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from jorge.roots.products import symmetrize, trace


def exact_root(factor: Tensor, *, eps: float, power: float = -0.25) -> Tensor:
    """`(S + ε·tr(S)/d·I)^power` of symmetric positive semi-definite `[count, d, d]`, by `eigh` in float64.

    The eigenvalues are floored at the regularisation, so that rounding cannot make one negative. Source: Shampoo,
    arXiv 1802.09568, algorithm 1. On CUDA, `eigh` waits for the device: it is the one method that does.
    """
    wide = factor.double()
    floor = (eps * trace(wide) / factor.shape[-1]).unsqueeze(-1)
    values, vectors = torch.linalg.eigh(wide)
    powers = (values.clamp(min=0) + floor) ** power
    return symmetrize((vectors * powers.unsqueeze(-2)) @ vectors.mT).to(factor.dtype)
