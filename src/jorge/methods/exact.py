"""`exact`: Shampoo's root by `eigh`, the control of every comparison and the oracle of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from jorge.methods.method import Counterpart, Method, Refresh, Shape, Sides, State, each_side, each_side_flops
from jorge.methods.products import diagonal_sum, per_block, symmetrize
from jorge.options import Options
from jorge.trace import Trace

#: Keeps the rounding of `eigh` from making an eigenvalue negative, where a method has no regularisation of its own.
ROUNDING = 1e-12


def inverse_root(factor: Tensor, *, eps: float, power: float = -0.25) -> Tensor:
    """`(S + ε·tr(S)/d·I)^power` of symmetric positive semi-definite `[count, d, d]`, by `eigh` in float64.

    The eigenvalues are floored at the regularisation, so that rounding cannot make one negative. Source: Shampoo,
    arXiv 1802.09568, algorithm 1. On CUDA, `eigh` waits for the device: it is the one method that does.
    """
    wide = factor.double()
    floor = (eps * diagonal_sum(wide) / factor.shape[-1]).unsqueeze(-1)
    values, vectors = torch.linalg.eigh(wide)
    powers = (values.clamp(min=0) + floor) ** power
    return symmetrize((vectors * powers.unsqueeze(-2)) @ vectors.mT).to(factor.dtype)


class Exact(Method):
    """`method="exact"`: Shampoo. Beside each root it keeps the second moment, `left_factor` and `right_factor`."""

    name = "exact"
    waits = True
    eps = 1e-6
    #: Where the factors are stored in bfloat16, whose rounding makes eigenvalues below about that of nothing.
    eps_bfloat16 = 1e-3

    def layout(self, shape: Shape, sides: Sides) -> dict[str, tuple[int, ...]]:
        """Two matrices for each full side."""
        found = super().layout(shape, sides)
        for side, d, kind in zip(("left", "right"), shape, sides, strict=True):
            if kind == "full":
                found[f"{side}_factor"] = (d, d)
        return found

    def refresh_at(self, number: int, gap: int) -> Refresh:
        """All refreshes are alike."""
        return Refresh()

    def refreshed(
        self, state: State, grad: Tensor, largest: Tensor, options: Options, refresh: Refresh, trace: Trace | None
    ) -> State:
        """`S ← β2 S + (1−β2) G Gᵀ`, bias-corrected by `1−β2^t`, and its root."""
        beta2 = options.preconditioner_beta2
        eps = self._eps(options)
        grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)  # `eigh` raises where the others pass NaN on
        correction = 1 - beta2 ** (state["refreshes"] + 1)

        def full(side: str, root: Tensor, seen: Tensor) -> State:
            factor = state[f"{side}_factor"] * beta2 + (seen @ seen.mT) * (1 - beta2)
            factor = symmetrize(factor)
            return {f"{side}_factor": factor, side: inverse_root(factor / per_block(correction), eps=eps)}

        if trace is not None:
            share = (1 - beta2) / correction
            trace.refreshed({side: share for side in ("left", "right") if state[side].dim() == 3})
        return each_side(state, grad, options, full)

    def refresh_flops(self, shape: Shape, sides: Sides, options: Options, refresh: Refresh) -> int:
        """The factor, and the root from its eigenvectors."""
        return each_side_flops(shape, sides, lambda d, k: 2 * d * d * k + 2 * d**3)

    def decompositions(self, shape: Shape, sides: Sides) -> tuple[int, ...]:
        """One for each full side."""
        return tuple(d for d, kind in zip(shape, sides, strict=True) if kind == "full")

    def counterpart(self, shape: Shape, options: Options, device: torch.device) -> Counterpart:
        """The same in float64."""
        share = 1 - options.preconditioner_beta2
        return Moments(shape, device, share=lambda given: share, eps=self._eps(options))

    def _eps(self, options: Options) -> float:
        return options.root_eps or (self.eps_bfloat16 if options.preconditioner_dtype == torch.bfloat16 else self.eps)


class Moments:
    """A running second moment of each side in float64, and its inverse fourth root by `eigh`.

    Args:
        shape: of the block.
        device: of its gradients.
        start: the moment before the first gradient, as a multiple of the identity, from that gradient's `G Gᵀ`; zero
            where there is none, which is where the root's own scale does not count.
        share: the weight of the newest gradient, from that which the method gave it.
        damping: white noise added to each gradient in expectation, relative to its mean square.
        eps: the regularisation of the root, relative to its trace.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        *,
        start: Callable[[Tensor], Tensor | float] | None = None,
        share: Callable[[float], float],
        damping: float = 0.0,
        eps: float = ROUNDING,
    ) -> None:
        sides = zip(("left", "right"), shape, strict=True)
        self._moments = {side: torch.zeros(d, d, dtype=torch.float64, device=device) for side, d in sides}
        self._start, self._share, self._damping, self._eps = start, share, damping, eps
        self._refreshes = 0

    def refresh(self, grad: Tensor, refresh: Refresh, shares: Mapping[str, float]) -> None:
        """See :class:`~jorge.methods.method.Counterpart`."""
        for side, seen in (("left", grad), ("right", grad.mT)):
            gram = seen @ seen.mT
            if self._refreshes == 0 and self._start is not None:
                self._moments[side].diagonal().fill_(float(self._start(gram)))
            gram.diagonal().add_(self._damping * gram.trace() / len(gram))
            self._moments[side].lerp_(gram, self._share(shares.get(side, 1.0)))
        self._refreshes += 1

    def roots(self) -> dict[str, Tensor]:
        """See :class:`~jorge.methods.method.Counterpart`."""
        return {side: inverse_root(moment[None], eps=self._eps)[0] for side, moment in self._moments.items()}
