"""KL-Shampoo, by `eigh`: what `whitening` is without its approximations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jorge.methods.exact import ROUNDING, inverse_root
from jorge.methods.method import Refresh, Shape


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
