"""The step length of linear maps: Adam's in the Schatten norm of order 4, `(Σσ⁴)^(1/4)` of the singular values.

A whitened direction is spread over many singular values, Adam's over few: at one Frobenius norm it goes less far along
each. What the state keeps, `quartics`, is `Σσ⁴` of each block of Adam's direction and of what the step goes along, both
matrices at a Frobenius norm of 1, as they were at the last step that refreshed. `Σσ⁴ = ‖XXᵀ‖_F²` takes one product.
What follows from them, `schatten_scale`, is kept too, as most steps renew neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from jorge.arrange import Stack, WorkSet
from jorge.exchange import Exchange
from jorge.methods import State
from jorge.methods.products import multiply, precision_scope
from jorge.options import Precision
from jorge.stacking import stacked, sums_of_blocks


def units(tensors: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
    """Each parameter divided by its norm, `[count]` of each shape group, NaN where it is to be left out; contiguous."""
    pairs = zip(tensors, lengths, strict=True)
    each = [length.view(-1, *(1,) * (tensor.dim() - 1)) for tensor, length in pairs]
    return [tensor.contiguous() for tensor in torch._foreach_div(list(tensors), each)]


def gram_norms(blocks: Tensor, precision: Precision = None) -> Tensor:
    """`‖XXᵀ‖_F`, the root of the sum of the singular values' fourth powers, of each of `[count, m, n]`, `[count]`."""
    wide = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT
    lengths: Tensor = torch.linalg.vector_norm(multiply(wide, wide.mT, precision), dim=(1, 2))
    return lengths


def flops(shape: tuple[int, int]) -> int:
    """Operations of :func:`gram_norms` of two blocks, of Adam's direction and of what the step goes along."""
    m, n = shape
    return 4 * m * n * min(m, n)


def quartics(
    work: WorkSet,
    measured: Sequence[Sequence[slice | Tensor]],
    tensors: Sequence[Tensor],
    norms: Tensor,
    precision: Precision,
    exchange: Exchange,
) -> list[list[Tensor]]:
    """Of the blocks whose `quartics` are renewed `‖XXᵀ‖_F`, of which they are the squares, in matrices X of norm 1.

    One `[count]` for each entry of `measured`; NaN where a norm, `[total]`, is zero or not finite.
    """
    lengths = torch.split(norms + (norms - norms), [len(tensor) for tensor in tensors])
    cut: Sequence[Tensor] | None = None
    if not exchange.alone:
        cut = exchange.to_owners(work, units(tensors, lengths))
        exchange.arrived(work)
    return exchange.completed(
        [
            _of_stack(stack, mine, work, tensors, lengths, cut, precision, exchange) if mine else []
            for stack, mine in zip(work.stacks, measured, strict=True)
        ]
    )


def _of_stack(
    stack: Stack,
    measured: Sequence[slice | Tensor],
    work: WorkSet,
    tensors: Sequence[Tensor],
    lengths: Sequence[Tensor],
    cut: Sequence[Tensor] | None,
    precision: Precision,
    exchange: Exchange,
) -> list[Tensor]:
    if cut is None:  # of the stack's own alone, for the sake of memory
        groups = sorted({part.group for part in stack.parts})
        some = units([tensors[i] for i in groups], [lengths[i] for i in groups])
        blocks = stacked(stack, work, dict(zip(groups, some, strict=True)))
    else:
        blocks = stacked(stack, work, cut)
    found = []
    with precision_scope(blocks.device, precision):
        for where in measured:
            mine = blocks[where]
            first, last = exchange.share(stack, len(mine))
            if last - first == len(mine):
                found.append(gram_norms(mine, precision))
            else:  # zeros for the others' shares
                found.append(blocks.new_zeros(len(mine)))
                found[-1][first:last] = gram_norms(mine[first:last], precision)
    return found


def remember(
    states: Sequence[State],
    measured: Sequence[Sequence[slice | Tensor]],
    grafts: Sequence[Sequence[Tensor]],
    steps: Sequence[Sequence[Tensor]],
    finite: Tensor,
) -> None:
    """Renew `quartics`: of Adam's direction and of what the step goes along. What is not finite leaves them."""
    places = [(state["quartics"], where) for state, mine in zip(states, measured, strict=True) for where in mine]
    graft, step = (list(chain.from_iterable(each)) for each in (grafts, steps))
    if not places:
        return
    new = torch.stack([torch.cat(graft), torch.cat(step)], dim=1).square()
    usable = finite & (new - new).eq(0).all(1, keepdim=True)  # the difference is NaN where it is not finite
    counts = [len(each) for each in graft]
    for (tensor, where), mine, values in zip(
        places, torch.split(usable, counts), torch.split(new, counts), strict=True
    ):
        old = tensor[where]
        torch.where(mine, values, old, out=old)
        if isinstance(where, Tensor):  # a copy, where a slice gives a view
            tensor.index_copy_(0, where, old)


def scales(work: WorkSet, states: Sequence[State], exchange: Exchange) -> Tensor:
    """What gives each matrix's step Adam's Schatten norm where it has its Frobenius norm, `[total]`.

    The sums of blocks that were measured in different steps are kept to what one matrix of norm 1 could have.
    """
    sums = exchange.matrix_sums(work, sums_of_blocks([state["quartics"] for state in states], work))
    least = [1 / group.blocking.rank if group.blocking else 1.0 for group in work.matrices]
    kept = torch.cat(list(torch._foreach_clamp_min(sums, least))).clamp_(max=1)
    return (kept[:, 0] / kept[:, 1]) ** 0.25
