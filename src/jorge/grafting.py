"""The step length: how far the optimizer that a recipe was tuned for would go (grafting, arXiv 2002.11803).

Pure functions on lists of tensors `[count, *shape]`, one for each shape group, so that what Python does does not grow
with the number of shapes. All tensors of a call are of one dtype and device. `[total]` is one value for each parameter
of all shape groups, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.options import Scalar

#: How much of the running average of lengths a step keeps: it remembers about ten steps.
_KEPT = 0.9


def buffer_names(kind: str) -> tuple[str, ...]:
    """The buffers that a kind of grafting keeps for one parameter, like it; the first averages gradients.

    >>> buffer_names("sgd"), buffer_names("adam")
    (('momentum_buffer',), ('exp_avg', 'exp_avg_sq'))
    """
    return ("exp_avg", "exp_avg_sq") if kind == "adam" else ("momentum_buffer",)


def scalar(value: Scalar, like: Tensor) -> Scalar:
    """`value`; a tensor 0-dim and of the dtype and device of `like`, without waiting for the device."""
    return value.reshape(()).to(like, non_blocking=True) if isinstance(value, Tensor) else float(value)


def per_parameter(values: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """One value a parameter, `[total]`, as `[count, 1, …]` for each shape group."""
    parts = torch.split(values, [len(tensor) for tensor in tensors])
    return [part.view(-1, *(1,) * (tensor.dim() - 1)) for part, tensor in zip(parts, tensors, strict=True)]


@dataclass(frozen=True)
class Mask:
    """Which parameters a step moves. The buffers of the others stay as they are, to the bit; their gradients are zero.

    Args:
        taken: 0-dim, 1 where the step is taken and 0 where a gradient is not finite, in the dtype of the arithmetic.
        present: for each shape group, who has a gradient, boolean, `[count, 1, …]`; `None` where all have one.
    """

    taken: Tensor
    present: Sequence[Tensor | None]

    def times(self, factor: Scalar) -> list[Tensor]:
        """For each shape group `factor` where a parameter moves and 0 elsewhere."""
        moved = self.taken * scalar(factor, self.taken)
        return [moved if present is None else present * moved for present in self.present]

    def keeping(self, factor: Scalar) -> list[Tensor]:
        """For each shape group `factor` where it moves and exactly 1 elsewhere: what a running sum is multiplied by."""
        kept = 1 - self.taken * (1 - scalar(factor, self.taken))
        return [kept if present is None else torch.where(present, kept, 1.0) for present in self.present]

    def each(self, tensors: Sequence[Tensor]) -> Tensor:
        """1 where a parameter moves and 0 elsewhere, `[total]`, or 0-dim where it is the same for all."""
        if all(present is None for present in self.present):
            return self.taken
        whole = [self.taken.expand(len(tensor)) for tensor in tensors]
        return torch.cat([x if p is None else x * p.flatten() for x, p in zip(whole, self.present, strict=True)])


def lerp(buffers: list[Tensor], values: list[Tensor], weights: list[Tensor]) -> None:
    """`b ← b + w(value − b)` in place, `w` 0-dim or `[count, 1, …]`."""
    if torch.compiler.is_compiling():  # the compiler has no lowering for lists of weights
        for buffer, value, weight in zip(buffers, values, weights, strict=True):
            buffer.lerp_(value, weight)
    else:
        torch._foreach_lerp_(buffers, values, weights)


def _lerped(values: list[Tensor], others: list[Tensor], weight: Scalar) -> list[Tensor]:
    """`value + w(other − value)`, new tensors."""
    if isinstance(weight, Tensor):
        return [torch.lerp(value, other, weight) for value, other in zip(values, others, strict=True)]
    return list(torch._foreach_lerp(values, others, weight))


def ahead(kind: str, buffers: list[Tensor], grads: list[Tensor], momentum: Scalar, *, nesterov: bool) -> list[Tensor]:
    """What a step goes along before it is preconditioned, new tensors: the average that the graft is about to have.

    Adam's is `μm + (1−μ)G`, SGD's `μb + G`. With Nesterov momentum it takes the gradient in once more, as a step that
    looks ahead does: `μ²m + (1−μ²)G`, or `μ²b + (1+μ)G`.

    Args:
        kind: of grafting.
        buffers: m or b, before this step.
        grads: G.
        momentum: μ.
        nesterov: whether it looks ahead.
    """
    kept = scalar(momentum * momentum if nesterov else momentum, grads[0])
    if kind == "adam":
        return _lerped(buffers, grads, 1 - kept)
    own = list(torch._foreach_mul(grads, 1 + scalar(momentum, grads[0]))) if nesterov else grads
    if not isinstance(kept, Tensor):
        return list(torch._foreach_add(own, buffers, alpha=kept))
    found = list(torch._foreach_mul(buffers, kept))
    torch._foreach_add_(found, own)
    return found


def sgd(buffers: list[Tensor], grads: list[Tensor], mask: Mask, momentum: Scalar) -> None:
    """The momentum of `torch.optim.SGD` without dampening, in place: `b ← μb + G` where it moves."""
    torch._foreach_mul_(buffers, mask.keeping(momentum))
    torch._foreach_add_(buffers, grads)


def adam(
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: Tensor,
    grads: list[Tensor],
    mask: Mask,
    *,
    aheads: list[Tensor],
    betas: tuple[Scalar, Scalar],
    eps: float,
    beta2_decay: float | None = None,
    memory: int | None = None,
    nesterov: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """The directions of `torch.optim.Adam`, and what corrects the bias of their first average; updates all in place.

    `m ← β1 m + (1−β1) G`, `v ← β2 v + (1−β2) G²`; Adam's direction is `(m/(1−β1^t)) / (√(v/(1−β2^t)) + eps)`. With a
    decay d, `v ← v + w(G² − v)` with `w = max(1−β2, 1/memory, t^d)`, which has no bias, as in Adafactor (Shazeer and
    Stern, arXiv 1804.04235, section 7.2): Adam counts all gradients alike until there are about 1/(1−β2), which forgets
    the first ones sooner, often the largest by far. With Nesterov momentum m looks ahead as in NAdam (Dozat 2016), but
    with a constant β1: `(β1 m + (1−β1) G)/(1−β1^(t+1))` stands for `m/(1−β1^t)`. Vectors come first, and are Adam's
    own: they follow no decay, and do not look ahead.

    Args:
        exp_avgs, exp_avg_sqs: m and v.
        steps: t of each parameter on its device, `[total]`, so that no host value enters the arithmetic.
        grads: G.
        mask: who moves.
        aheads: of the matrices, which are the last, what :func:`ahead` has found.
        betas: β1 and β2.
        eps: added to the root; at least the root of the smallest normal number, so that 0 divides nothing by zero.
        beta2_decay: d, or `None` for Adam's own rule.
        memory: of how many steps, at most, where there is a decay; `None` is no limit.
        nesterov: whether m looks ahead, as `aheads` then do: their bias is that of one step more.

    Returns:
        the directions but for their factor `1/(1−β1^t)`, and that, `[total]`.
    """
    dtype, vectors = grads[0].dtype, len(grads) - len(aheads)
    beta1, beta2 = (scalar(beta, mask.taken) for beta in betas)
    lerp(exp_avgs, grads, mask.times(1 - beta1))
    steps.add_(mask.each(grads))
    t = steps.clamp(min=1).to(dtype)
    weights, biased = mask.times(1 - beta2), len(grads)
    if beta2_decay is not None:
        share = (t**beta2_decay).clamp(min=1 - beta2)
        share = share if memory is None else share.clamp(min=1 / memory)
        weights[vectors:] = per_parameter(share * mask.each(grads), grads)[vectors:]
        biased = vectors
    lerp(exp_avg_sqs, list(torch._foreach_mul(grads, grads)), weights)
    directions = list(torch._foreach_sqrt(exp_avg_sqs))
    if biased:
        corrections = per_parameter((1 - beta2**t).sqrt_(), grads)
        torch._foreach_div_(directions[:biased], corrections[:biased])
    # A root below that is of a square that underflowed, and says nothing of how small its gradient is.
    torch._foreach_add_(directions, max(eps, torch.finfo(dtype).tiny ** 0.5))
    if nesterov and aheads:
        torch._foreach_add_(list(torch.split(t, [len(grad) for grad in grads]))[vectors:], 1)
    return list(torch._foreach_div([*exp_avgs[:vectors], *aheads], directions)), 1 / (1 - beta1**t)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of each parameter, `[total]`."""
    return torch.cat([torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim()))) for tensor in tensors])


def limited(lengths: Tensor, history: Tensor, moves: Tensor, limit: float) -> Tensor:
    """`lengths`, or `limit` times their running average where that is less, `[total]`; updates `history` in place.

    SGD's length follows the gradient's: one bad batch makes it many times as long, and a step of that length along a
    direction that is not the gradient's may send the weights so far that the next gradient is longer still. A sudden
    change is therefore followed over some steps; what grows by less than a tenth a step is not touched.

    Args:
        lengths: of the graft's directions, `[total]`.
        history: `[total, 2]`, the sums `Σ .9^(t−i) ℓ_i` and `Σ .9^(t−i)` over earlier steps i, of which the average is
            the quotient. Lengths of 0 are left out; there is no limit before the first other.
        moves: 1 where a parameter moves and 0 elsewhere, `[total]` or 0-dim.
        limit: at least 1.
    """
    shortened = torch.fmin(lengths, history[:, 0] / history[:, 1] * limit)  # 0/0 is NaN, which fmin leaves out
    fresh = torch.stack([shortened, torch.ones_like(shortened)], dim=-1)
    counts = (moves * shortened > 0).unsqueeze(-1)
    torch.where(counts, fresh.add_(history, alpha=_KEPT), history, out=history)
    return shortened


def ratios(norms: Tensor, lengths: Tensor) -> Tensor:
    """What gives directions of these norms the norms `lengths`, `[total]`; zero where it would not be finite.

    A norm below the root of the smallest normal number is of squares that underflowed, and would make them far longer.
    """
    found = lengths / norms.add_(torch.finfo(lengths.dtype).tiny ** 0.5)
    return torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
