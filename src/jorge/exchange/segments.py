"""Sharded parameters that hold several matrices, such as fused queries, keys and values: what lies where. Pure.

A shard of such a parameter has a part of one matrix, several of them, or none. What is elementwise is done for each
matrix by itself: each is a shape group of the parts of it that are held here, views into what is held of the parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from jorge.arrange import ParamSpec, ShapeGroup, WorkSet
from jorge.shards import Box

#: For sources of a work set, by number, where the matrices of a parameter lie: of each the box of each process in it;
#: one entry for all of them where they lie alike.
Held = Mapping[int, Sequence[Sequence[Box]]]


def segmented(work: WorkSet) -> WorkSet:
    """A work set in which each matrix of a sharded parameter that holds several is of a shape group of its own."""
    matrices = tuple(each for source in work.sources for each in _segments(source))
    return replace(work, groups=work.groups[: len(work.groups) - len(work.sources)] + matrices, matrices=matrices)


def _segments(source: ShapeGroup) -> Iterator[ShapeGroup]:
    if not source.is_segmented:
        yield source
        return
    shards = source.spec.shards
    assert shards is not None
    for number in range(source.parts):
        mine, segment = shards.segment(number, source.spec.shape, source.part)
        spec = ParamSpec(source.part, source.spec.dtype, mine)
        count = len(source.places)
        yield replace(source, spec=spec, parts=1, count=count, local=spec.local, segment=segment)


def firsts(work: WorkSet) -> list[tuple[int, int]]:
    """Of each source, which of `matrices` is the first of it, and how many there are for it."""
    found = []
    start = 0
    for source in work.sources:
        several = source.parts if source.is_segmented else 1
        found.append((start, several))
        start += several
    return found


def held(work: WorkSet, size: int) -> dict[int, list[tuple[Box, ...]]]:
    """What each process holds of each matrix of a segmented work set's sources, as a part of the matrix it is read as.

    Args:
        work: the work set.
        size: the number of processes.
    """
    return {
        i: [_boxes(group, size) for group in work.matrices[first : first + several]]
        for i, (first, several) in enumerate(firsts(work))
    }


def sharded(work: WorkSet, found: Held) -> Held:
    """Of what is held of sources that of those that are sharded."""
    return {i: several for i, several in found.items() if work.sources[i].spec.shards is not None}


def _boxes(group: ShapeGroup, size: int) -> tuple[Box, ...]:
    assert group.blocking is not None
    if group.spec.shards is None:
        return (Box((0, 0), group.blocking.matrix),) * size
    return group.spec.shards.matrices(group.spec.shape)
