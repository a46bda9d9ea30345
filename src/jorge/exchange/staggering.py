"""With `stagger`: which part of the refreshes is whose, where the parameters of a param group are of several meshes.

One process spreads the refreshes of all of them over the steps of an interval, in the order of its stacks. Where they
are arranged apart, as their processes differ, each block keeps the place that it has there. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jorge.arrange import ParamSpec, Stack, WorkSet, arrange
from jorge.options import Options

#: For each grid of blocks of a parameter, where the refresh of each block begins in that of all, from 0 to 1.
Places = Mapping[int, Sequence[float]]


def places(specs: Sequence[ParamSpec], options: Options, *, on_cuda: bool) -> list[Places]:
    """Those of each parameter, as one process has them that holds all of them.

    >>> import torch
    >>> spec = ParamSpec((4, 6), torch.float32)
    >>> [[round(x, 2) for x in each[0]] for each in places([spec, spec], Options(stagger=True), on_cuda=False)]
    [[0.0], [0.5]]
    """
    found: list[dict[int, Sequence[float]]] = [{} for _ in specs]
    for work in arrange([replace(spec, shards=None) for spec in specs], options, on_cuda=on_cuda):
        for stack in work.stacks:
            begin, end = stack.span
            width, first = (end - begin) / stack.count, 0
            for part in stack.parts:
                group = work.sources[part.source]
                for place in group.places:
                    numbers = range(first, first + part.grid.blocks * group.parts)
                    found[place][part.number] = [begin + (i + 1e-6) * width for i in numbers]
                    first = numbers.stop
    return list(found)


def placed(work_sets: Sequence[WorkSet], mine: Sequence[Places]) -> tuple[WorkSet, ...]:
    """Work sets whose blocks are refreshed in these places, of each parameter that is arranged."""

    def of_stack(work: WorkSet, stack: Stack) -> Stack:
        parts = [(part.number, work.sources[part.source].places) for part in stack.parts]
        return replace(stack, places=tuple(x for number, group in parts for p in group for x in mine[p][number]))

    found = []
    for work in work_sets:
        stacks = [
            of_stack(work, stack) if stack.of is None else replace(stack, of=of_stack(work, stack.of))
            for stack in work.stacks
        ]
        found.append(replace(work, stacks=tuple(stacks)))
    return tuple(found)


def shared(found: Places, offset: int, size: int, whole: int) -> Places:
    """Of a parameter's matrices, `whole` along its first dim, those from `offset` on, `size` of them."""
    return {
        number: each[len(each) * offset // whole : len(each) * (offset + size) // whole]
        for number, each in found.items()
    }
