"""Muon for parameters of any shape, in two precisions: the opponent that needs no package.

`torch.optim.Muon` takes matrices alone and multiplies in bfloat16. Kernels are handed to it as 2-D views here, and
vectors, embeddings and classifiers to AdamW, as its authors advise. :class:`Muon32` does the same update in float32:
on a machine without bfloat16 units the emulated products would make a comparison worthless.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jorge_lab.cost.shapes import Named

#: What Muon's authors leave to AdamW although it is a matrix.
NOT_HIDDEN = re.compile(r"(^|\.)(wte|wpe|cls|pos|embed\w*|head|fc)($|\.)")
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


class MuonWithAdamW:
    """A Muon for the hidden weights, as matrices that share their memory, and AdamW for the rest."""

    def __init__(self, named: Named, muon: type[torch.optim.Optimizer], lr: float) -> None:
        hidden = [p for name, p in named if p.dim() >= 2 and not NOT_HIDDEN.search(name)]
        chosen = {id(p) for p in hidden}
        self.pairs = [(p, nn.Parameter(p.detach().view(p.shape[0], -1))) for p in hidden]
        self.parts: list[torch.optim.Optimizer] = []
        if hidden:
            kind: Any = muon
            self.parts.append(kind([flat for _, flat in self.pairs], lr=lr, weight_decay=0.0))
        rest = [p for _, p in named if id(p) not in chosen]
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=lr))

    @property
    def state(self) -> dict[Any, Any]:
        """The state of both."""
        return {p: state for part in self.parts for p, state in part.state.items()}

    def step(self) -> None:
        """Take one step with both."""
        for p, flat in self.pairs:
            assert p.grad is not None
            flat.grad = p.grad.view_as(flat)
        for part in self.parts:
            part.step()
