"""Between parameters, of any dtype and memory format, and what a step works on: gradients in, updates out.

On CUDA torch's foreach functions take many tensors with one kernel, but only where all of a list are laid out alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from jorge import grafting
from jorge.arrange import ShapeGroup, WorkSet
from jorge.options import Options

#: Who of a shape group has a gradient; `None` where all have.
Present = Sequence[bool] | None
#: Integers of the size of a dtype of the arithmetic.
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def gather_gradients(
    work: WorkSet,
    given: Sequence[list[Tensor]],
    present: Sequence[Present],
    kept: Tensor,
    *,
    maximize: bool,
    into: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """G of each shape group, `[count, *local]`, a copy; zero where there is none or not all are finite.

    Args:
        work: what is worked on.
        given: of each shape group, the gradients that there are.
        present: of each shape group, who has one; `None` where all have.
        kept: as for :func:`clear`.
        maximize: whether their sign is changed.
        into: tensors for them; new ones by default.
    """
    grads: list[Tensor] = []
    rooms: list[Tensor] = []
    for i, (group, mine) in enumerate(zip(work.groups, present, strict=True)):
        if into is None:
            make = torch.empty if mine is None else torch.zeros
            grads.append(make((group.count, *group.local), dtype=work.compute, device=kept.device))
        else:
            grads.append(into[i] if mine is None else into[i].zero_())
        rooms += _given(grads[-1], group, mine)
    for targets, sources in alike(rooms, list(chain.from_iterable(given))):
        torch._foreach_copy_(targets, sources)
    if maximize:
        torch._foreach_neg_(grads)
    clear(grads, kept)
    return grads


def move(
    work: WorkSet,
    params: Sequence[list[Tensor]],
    present: Sequence[Present],
    updates: Sequence[Tensor],
    taken: Tensor,
    options: Options,
) -> None:
    """`W ← W − lr·λ·W − lr·U`, rounded once where the parameters are of lower precision than the arithmetic.

    Args:
        work: what is worked on.
        params: of each shape group, those that have a gradient.
        present: of each shape group, who has one; `None` where all have.
        updates: U of each shape group, `[count, *local]`, in whose memory it may be scaled.
        taken: 0-dim, 1 where the step is taken and 0 where a gradient is not finite.
        options: of the param group.
    """
    rate, decay, scale = options.lr, options.weight_decay, 1.0
    if isinstance(rate, Tensor):  # alpha= takes no tensor, and reading it back would wait for the device
        rate = grafting.scalar(rate, taken)
        torch._foreach_mul_(list(updates), rate)
    else:
        scale = rate
    wide: list[Tensor] = []
    moved: list[Tensor] = []
    lower: defaultdict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for group, mine, update, having in zip(work.groups, params, updates, present, strict=True):
        moved += _given(update, group, having)
        if group.spec.dtype == work.compute:
            wide += mine
            continue
        copies = widened(mine, work.compute)
        wide += copies
        lower[group.spec.dtype] += zip(mine, copies, strict=True)
    if options.decays:
        decay = grafting.scalar(decay, taken) if isinstance(decay, Tensor) else decay
        torch._foreach_mul_(wide, 1 - taken * (rate * decay))
    for steps, weights in alike(moved, wide):
        torch._foreach_add_(weights, steps, alpha=-scale)
    for pairs in lower.values():  # on CUDA, torch before 2.11 mixes several dtypes up
        torch._foreach_copy_([p for p, _ in pairs], [copy for _, copy in pairs])


def clear(tensors: Sequence[Tensor], kept: Tensor) -> None:
    """Set to zero, in place, where `kept` is 0 and not 1: 0-dim, an integer of the tensors' size.

    A product would keep NaN; on the bits it is exact, and on a CPU eight times as quick as filling by a mask. A factor
    of another dtype, such as a boolean, would cost the list its fast route on CUDA.
    """
    torch._foreach_mul_([tensor.view(kept.dtype) for tensor in tensors], kept)


def _given(tensor: Tensor, group: ShapeGroup, present: Present) -> Sequence[Tensor]:
    """A shape group's tensor parameter by parameter, for those that have a gradient."""
    views = tensor.view(len(group.places), *group.spec.local).unbind(0)
    return views if present is None else [view for view, has in zip(views, present, strict=True) if has]


def alike(contiguous: Sequence[Tensor], others: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of tensors in lists whose memory is laid out alike: one that differs costs a whole list the fast route.

    Args:
        contiguous: of one dtype.
        others: of the same shapes, of any dtype and memory format.
    """
    lists: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[Tensor]]] = {}
    for first, second in zip(contiguous, others, strict=True):
        firsts, seconds = lists.setdefault((second.dtype, second.is_contiguous()), ([], []))
        firsts.append(first)
        seconds.append(second)
    return list(lists.values())


def widened(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies in another dtype, each in the memory format that it has."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
