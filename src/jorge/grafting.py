"""The step length: how far the optimizer that a recipe was tuned for would go (grafting, arXiv 2002.11803).

Pure functions on a bundle of equal-shaped parameters, `[count, *shape]`. `active` says which of them take part in
the step: a boolean tensor, 0-dim or `[count, 1, …]`; the buffers of the others stay as they are, to the bit. The
gradients of inactive parameters must be zero.
"""

from __future__ import annotations

import torch
from torch import Tensor


def buffer_dtypes(kind: str, compute: torch.dtype, stored: torch.dtype | None) -> dict[str, torch.dtype]:
    """The buffers that a kind of grafting keeps for one parameter, beside the shared momentum, and their dtypes.

    `stored` is a lower precision for what is only measured: of the SGD momentum no more than the norm is used. It is
    `None` where the parameter is updated by the buffer itself. Adam's averages move by too little a step for bfloat16.

    >>> buffer_dtypes("sgd", torch.float32, torch.bfloat16)
    {'graft_momentum_buffer': torch.bfloat16}
    """
    if kind == "adam":
        return {"exp_avg": compute, "exp_avg_sq": compute}
    lower = stored is not None and stored.itemsize < compute.itemsize
    return {"graft_momentum_buffer": stored if stored is not None and lower else compute}


#: How much of the running average of lengths a step keeps: it remembers about ten steps.
_KEPT = 0.9

#: A hyperparameter of the step: a number, or a 0-dim tensor that a compiled or captured step reads anew each time.
Scalar = float | Tensor


def scalar(value: Scalar, like: Tensor) -> Tensor:
    """`value` as a 0-dim tensor of the dtype and device of `like`, without waiting for the device."""
    if isinstance(value, Tensor):
        return value.reshape(()).to(like, non_blocking=True)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def fading(active: Tensor, factor: Scalar, like: Tensor) -> Tensor:
    """`factor` where active and exactly 1 elsewhere: what a running average is multiplied by."""
    return torch.where(active, scalar(factor, like), scalar(1.0, like))


def average(buffer: Tensor, value: Tensor, active: Tensor, factor: Scalar) -> None:
    """`b ← factor·b + (1−factor)·value` in place where active; untouched, to the bit, where not and `value` is 0."""
    weight = torch.where(active, 1 - scalar(factor, buffer), scalar(0.0, buffer))
    buffer.lerp_(value, weight)


def blend(value: Tensor, ahead: Tensor, factor: Scalar) -> None:
    """`value ← (1−factor)·value + factor·ahead` in place."""
    value.lerp_(ahead, scalar(factor, value))


def sgd(buffer: Tensor, grad: Tensor, active: Tensor, *, momentum: Scalar, nesterov: bool) -> Tensor:
    """The direction of `torch.optim.SGD` without dampening; updates `buffer` in place.

    `b ← μb + G`; the direction is `b`, or `G + μb` with Nesterov momentum. The buffer may be of a lower precision than
    `grad`, in which all is computed.
    """
    wide = buffer.to(grad.dtype)
    torch.addcmul(grad, wide, fading(active, momentum, grad), out=wide)
    if wide is not buffer:
        buffer.copy_(wide)
    return torch.addcmul(grad, wide, scalar(momentum, grad)) if nesterov else wide


def adam(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    grad: Tensor,
    active: Tensor,
    *,
    betas: tuple[Scalar, Scalar],
    eps: float,
    beta2_decay: float | None = None,
) -> Tensor:
    """The bias-corrected direction of `torch.optim.Adam`; updates the buffers and `steps` in place.

    `m ← β1 m + (1−β1) G`, `v ← β2 v + (1−β2) G²`; the direction is `(m/(1−β1^t)) / (√(v/(1−β2^t)) + eps)`.
    With a decay d, `v ← v + w(G² − v)` with `w = max(1−β2, t^d)`, which has no bias, as in Adafactor (Shazeer and
    Stern, arXiv 1804.04235, section 7.2): Adam counts all gradients alike until there are about 1/(1−β2), which forgets
    the first ones sooner, often the largest by far. `steps` holds t for each parameter on its device, `[count]`, so
    that no host value enters the arithmetic.
    """
    beta1, beta2 = betas
    average(exp_avg, grad, active, beta1)
    steps.add_(active.view(-1))
    t = steps.clamp(min=1).to(grad.dtype).view(-1, *(1,) * (grad.dim() - 1))
    base = scalar(beta2, grad)
    weight = 1 - base if beta2_decay is None else torch.maximum(t**beta2_decay, 1 - base)
    exp_avg_sq.lerp_(grad.square(), torch.where(active, weight, 0.0))
    denominator = exp_avg_sq.sqrt()
    if beta2_decay is None:
        denominator.div_((1 - base**t).sqrt())
    direction: Tensor = exp_avg / denominator.add_(eps)
    return direction.div_(1 - scalar(beta1, grad) ** t)


def norms(bundle: Tensor) -> Tensor:
    """Euclidean norm of each parameter of a bundle, shaped `[count, 1, …]`."""
    lengths: Tensor = torch.linalg.vector_norm(bundle, dim=tuple(range(1, bundle.dim())), keepdim=True)
    return lengths


def limited(lengths: Tensor, history: Tensor, active: Tensor, limit: float) -> Tensor:
    """`lengths`, or `limit` times their running average where that is less, `[count]`; updates `history` in place.

    SGD's length follows the gradient's: one bad batch makes it many times as long, and a step of that length along a
    direction that is not the gradient's may send the weights so far that the next gradient is longer still. A sudden
    change is therefore followed over some steps; what grows by less than a tenth a step is not touched.

    Args:
        lengths: of the graft's directions, `[count]`.
        history: `[count, 2]`, the sums `Σ .9^(t−i) ℓ_i` and `Σ .9^(t−i)` over earlier steps i, of which the average is
            the quotient. Lengths of 0 are left out; there is no limit before the first other.
        active: `[count]` or 0-dim.
        limit: at least 1.
    """
    shortened = torch.fmin(lengths, history[:, 0] / history[:, 1] * limit)  # 0/0 is NaN, which fmin leaves out
    fresh = torch.stack([shortened, torch.ones_like(shortened)], dim=-1)
    counts = (active & (shortened > 0)).unsqueeze(-1)
    torch.where(counts, fresh.add_(history, alpha=_KEPT), history, out=history)
    return shortened


def ratio(direction: Tensor, length: Tensor, active: Tensor) -> Tensor:
    """What gives `direction` the norms `length`, `[count, 1, …]`; zero where inactive or where the norm is."""
    ratios = length / norms(direction).add_(torch.finfo(direction.dtype).tiny)
    return torch.where(active & torch.isfinite(ratios), ratios, 0.0)
