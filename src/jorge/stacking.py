"""Shape groups' tensors as stacks of blocks, and back; the refresh of blocks in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from jorge.arrange import Stack, WorkSet
from jorge.blocks import gather, gather_into, scatter
from jorge.methods import Method, Refresh, State
from jorge.methods.products import choose, diagonal_sum, largest_entries
from jorge.options import Options
from jorge.trace import Trace

#: Of what a work set's blocks are cut from, its `cut`, by number: `[count, *part]`.
Tensors = Sequence[Tensor] | Mapping[int, Tensor]


def stacked(stack: Stack, work: WorkSet, tensors: Tensors) -> Tensor:
    """The blocks of a stack, `[count, m, n]`; a view where they are whole parameters."""
    if len(stack.parts) == 1:
        (part,) = stack.parts
        if part.whole:
            return tensors[part.group].view(stack.count, *stack.shape)
        return gather(_as_matrices(tensors, part.group, work), part.grid, transposed=part.transposed)
    blocks = tensors[stack.parts[0].group].new_empty(stack.count, *stack.shape)
    rooms = torch.split(blocks, [part.count for part in stack.parts])
    for part, room in zip(stack.parts, rooms, strict=True):
        gather_into(room, _as_matrices(tensors, part.group, work), part.grid, transposed=part.transposed)
    return blocks


def unstack(blocks: Tensor, stack: Stack, work: WorkSet, tensors: list[Tensor]) -> None:
    """Put the blocks of a stack into the tensors, or in their place where they are whole parameters."""
    for part, mine in zip(stack.parts, torch.split(blocks, [part.count for part in stack.parts]), strict=True):
        if part.whole:
            tensors[part.group] = mine.view_as(tensors[part.group])
        else:
            scatter(mine.mT if part.transposed else mine, _as_matrices(tensors, part.group, work), part.grid)


def sums_of_blocks(values: Sequence[Tensor], work: WorkSet) -> list[Tensor]:
    """What is known of each block, `[count, k]` of each stack, summed over those of each matrix: of each shape group
    of the work set's `cut` `[count, k]`, which may be a view.
    """
    sums: list[list[Tensor]] = [[] for _ in work.cut]
    for stack, found in zip(work.stacks, values, strict=True):
        for part, mine in zip(stack.parts, torch.split(found, [part.count for part in stack.parts]), strict=True):
            matrices = work.cut[part.group].count
            each = mine if part.count == matrices else mine.view(matrices, -1, mine.shape[-1]).sum(1)
            sums[part.group].append(each)
    return [each[0] if len(each) == 1 else torch.stack(each).sum(0) for each in sums]


def _as_matrices(tensors: Tensors, group: int, work: WorkSet) -> Tensor:
    """A shape group's tensor as `[count, M, N]`."""
    blocking = work.cut[group].blocking
    assert blocking is not None
    return tensors[group].view(-1, *blocking.matrix)


class Blocks(NamedTuple):
    """Some blocks of a stack, to be refreshed.

    Args:
        state: of the stack.
        grads: of the stack, `[count, m, n]`.
        where: which blocks: a slice, or their numbers on the device.
    """

    state: State
    grads: Tensor
    where: slice | Tensor


def refresh_blocks(
    method: Method, some: Sequence[Blocks], options: Options, refresh: Refresh, trace: Trace | None = None
) -> None:
    """Refresh the preconditioners of some blocks in place, in the dtype of the gradients; of one stack with a trace.

    Blocks whose gradient is zero or not finite keep their state to the bit, counters included; so do those whose
    new preconditioners would not be finite (the binomial recursion can overflow).
    """
    grads = [each.grads[each.where] for each in some]
    olds = [{name: tensor[each.where] for name, tensor in each.state.items()} for each in some]
    wides = [{n: value.to(grad.dtype) for n, value in old.items()} for old, grad in zip(olds, grads, strict=True)]
    largest = largest_entries(grads)
    news = method.refreshed_together(wides, grads, largest, options, refresh, trace)
    counts = [len(grad) for grad in grads]
    total = _totals(news, method, largest, counts)
    usable = (total - total).eq(0) & (largest > 0)  # the difference is NaN where the total is not finite
    usables = torch.split(usable, counts)
    for old, wide, new, mine in zip(olds, wides, news, usables, strict=True):
        for name, value in new.items():
            if old[name].dtype == value.dtype:
                torch.where(mine.view(-1, *(1,) * (value.dim() - 1)), value, old[name], out=old[name])
            else:
                old[name].copy_(choose(mine, value, wide[name]))
    torch._foreach_add_([old["refreshes"] for old in olds], usables)
    for blocks, old in zip(some, olds, strict=True):
        if isinstance(blocks.where, Tensor):  # these are copies, where a slice gives views
            for name, tensor in blocks.state.items():
                tensor.index_copy_(0, blocks.where, old[name])


def _totals(news: Sequence[State], method: Method, largest: Tensor, counts: list[int]) -> Tensor:
    """`[total]`: what is finite only where `largest` and all entries of a block's new preconditioners are."""
    totals = list(torch.split(largest.clone(), counts))
    for values in zip_longest(*(new.values() for new in news)):
        some, sums = [], []
        for total, value in zip(totals, values, strict=True):
            if value is not None:
                # A symmetric preconditioner is `B + Bᵀ`: what is not finite in B reaches its diagonal.
                on_diagonal = method.symmetric and value.dim() == 3 and value.shape[-1] == value.shape[-2]
                some.append(total)
                sums.append(diagonal_sum(value) if on_diagonal else value.flatten(1).sum(-1))
        torch._foreach_add_(some, sums)
    return torch.cat(totals)
