"""Shape groups' tensors as stacks of blocks, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from jorge.arrange import Stack, WorkSet
from jorge.blocks import gather, gather_into, scatter

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
