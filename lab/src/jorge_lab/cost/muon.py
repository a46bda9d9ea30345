"""Muon for parameters of any shape, in two precisions: the opponent that needs no package.

`torch.optim.Muon` takes matrices alone and multiplies in bfloat16. Kernels are handed to it as 2-D views here, and what
it leaves to AdamW (:mod:`jorge.cost.muon_partition`) to that one. :class:`Muon32` does the same update in float32:
on a machine without bfloat16 units the emulated products would make a comparison worthless.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jorge.cost.muon_partition import is_hidden
from jorge_lab.contenders.parts import Parts, as_matrix
from jorge_lab.cost.shapes import Named

#: Coefficients, steps and ε of torch.optim.Muon.
COEFFICIENTS, NEWTON_SCHULZ_STEPS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7


def orthogonalize(matrix: Tensor) -> Tensor:
    """Five Newton–Schulz steps in the dtype of `matrix`, as in `torch.optim.Muon` but for the dtype."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon32(torch.optim.Optimizer):
    """The update of `torch.optim.Muon` with its defaults, in the parameters' own precision."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonalize(p.grad.lerp(buffer, momentum))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * math.sqrt(max(1, p.shape[0] / p.shape[1])))


def with_adamw(named: Named, muon: type[torch.optim.Optimizer], lr: float) -> Parts:
    """A Muon for the hidden weights, as matrices that share their memory, and AdamW for the rest."""
    hidden = [p for name, p in named if is_hidden(name, p.dim())]
    chosen = {id(p) for p in hidden}
    views = [(p, as_matrix(p)) for p in hidden]
    parts: list[torch.optim.Optimizer] = []
    if views:
        kind: Any = muon
        parts.append(kind([matrix for _, matrix in views], lr=lr, weight_decay=0.0))
    rest = [p for _, p in named if id(p) not in chosen]
    if rest:
        parts.append(torch.optim.AdamW(rest, lr=lr, fused=rest[0].is_cuda))
    return Parts(parts, views)
