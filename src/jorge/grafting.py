"""The step length: how far the optimizer that a recipe was tuned for would go (grafting, arXiv 2002.11803).

Pure functions on a bundle of equal-shaped parameters, `[count, *shape]`. `active` says which of them take part in
the step: a boolean tensor, 0-dim or `[count, 1, …]`; the buffers of the others stay as they are, to the bit. The
gradients of inactive parameters must be zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

Buffers = dict[str, Tensor]

#: The buffers that each kind of grafting keeps for one parameter, beside the shared momentum.
BUFFERS: dict[str, tuple[str, ...]] = {"sgd": ("graft_momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq")}


def fading(active: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """`factor` where active and exactly 1 elsewhere: what a running average is multiplied by."""
    one = torch.ones((), dtype=dtype, device=active.device)
    return torch.where(active, one * factor, one)


def sgd(buffer: Tensor, grad: Tensor, active: Tensor, *, momentum: float, nesterov: bool) -> Tensor:
    """The direction of `torch.optim.SGD` without dampening; updates `buffer` in place.

    `b ← μb + G`; the direction is `b`, or `G + μb` with Nesterov momentum.
    """
    buffer.mul_(fading(active, momentum, buffer.dtype)).add_(grad)
    return torch.add(grad, buffer, alpha=momentum) if nesterov else buffer


def adam(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    grad: Tensor,
    active: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """The bias-corrected direction of `torch.optim.Adam`; updates the buffers and `steps` in place.

    `m ← β1 m + (1−β1) G`, `v ← β2 v + (1−β2) G²`; the direction is `(m/(1−β1^t)) / (√(v/(1−β2^t)) + eps)`.
    `steps` holds t for each parameter on its device, `[count]`, so that no host value enters the arithmetic.
    """
    beta1, beta2 = betas
    exp_avg.mul_(fading(active, beta1, grad.dtype)).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(fading(active, beta2, grad.dtype)).addcmul_(grad, grad, value=1 - beta2)
    steps.add_(active.view(-1))
    t = steps.clamp(min=1).to(grad.dtype).view(-1, *(1,) * (grad.dim() - 1))
    root = torch.pow(beta2, t).neg().add(1).sqrt()
    denominator = exp_avg_sq.sqrt().add_(root * eps)
    unbias = torch.div(root, torch.pow(beta1, t).neg().add(1))
    direction: Tensor = exp_avg.div(denominator).mul_(unbias)
    return direction


def norms(bundle: Tensor) -> Tensor:
    """Euclidean norm of each parameter of a bundle, shaped `[count, 1, …]`."""
    lengths: Tensor = torch.linalg.vector_norm(bundle, dim=tuple(range(1, bundle.dim())), keepdim=True)
    return lengths


def rescale(direction: Tensor, length: Tensor, active: Tensor) -> Tensor:
    """`direction` with the norms `length` (`[count, 1, …]`), in place; zero where inactive. It must be finite."""
    ratio = length / norms(direction).add_(torch.finfo(direction.dtype).tiny)
    return direction.mul_(torch.where(active & torch.isfinite(ratio), ratio, 0.0))
