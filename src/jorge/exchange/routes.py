"""What goes from whom to whom, so that strips come to their owners and back to all who hold a part: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jorge.exchange.segments import Held
from jorge.exchange.strips import Strip
from jorge.shards import Box


@dataclass(frozen=True)
class Piece:
    """A rectangle that a strip has in common with what a process holds of its matrix.

    Args:
        source: the matrix' shape group, by number among the sources.
        matrix: by number in it.
        here: the rectangle in what is held of the matrix.
        run: of the strip.
        strip: by number among those of its run that its owner works on.
        there: the rectangle in the strip.
    """

    source: int
    matrix: int
    here: Box
    run: int
    strip: int
    there: Box

    @property
    def elements(self) -> int:
        """Of the rectangle."""
        return self.there.size[0] * self.there.size[1]


@dataclass
class Routes:
    """What one process gives and gets, in the order in which it lies in a message.

    Args:
        held_to_owner: for each process, the pieces of which this one holds that go to it as their owner.
        owner_from_holders: for each process, the pieces that come from it to this one as their owner.
        owner_to_holders: for each process, the pieces that go back to it.
        held_from_owner: for each process, the pieces that come back from it.
        anything: whether any process gives another one anything, on the way to the owners and on the way back.
    """

    held_to_owner: list[list[Piece]] = field(default_factory=list)
    owner_from_holders: list[list[Piece]] = field(default_factory=list)
    owner_to_holders: list[list[Piece]] = field(default_factory=list)
    held_from_owner: list[list[Piece]] = field(default_factory=list)
    anything: tuple[bool, bool] = (False, False)


def routes(
    strips: Sequence[Strip],
    owners: Sequence[int],
    sources: Sequence[int],
    held: Held,
    rank: int,
    size: int,
) -> Routes:
    """The routes of a work set.

    Where several hold the same, it comes from the owner itself if it can, else from one of them by turns.

    Args:
        strips: all of them.
        owners: of each.
        sources: of each run, its matrices' shape group.
        held: for each of these.
        rank: of this process.
        size: the number of processes.
    """
    found = Routes(*_lists(size), *_lists(size))
    there = back = False
    for piece, giver, owner, holders in pieces(strips, owners, sources, held):
        there, back = there or giver != owner, back or holders != [owner]
        if giver == rank:
            found.held_to_owner[owner].append(piece)
        if owner == rank:
            found.owner_from_holders[giver].append(piece)
            for other in holders:
                found.owner_to_holders[other].append(piece)
        if rank in holders:
            found.held_from_owner[owner].append(piece)
    found.anything = there, back
    return found


def pieces(
    strips: Sequence[Strip], owners: Sequence[int], sources: Sequence[int], held: Held
) -> Iterator[tuple[Piece, int, int, list[int]]]:
    """All pieces in their order: each with who gives it to its owner, its owner, and all who hold it.

    Arguments are those of :func:`routes`.
    """
    counts: dict[tuple[int, int], int] = {}
    who_holds: dict[tuple[int, int], dict[Box, list[int]]] = {}
    for source, several in held.items():
        for i, boxes in enumerate(several):
            mine = who_holds.setdefault((source, i), {})
            for rank, box in enumerate(boxes):
                mine.setdefault(box, []).append(rank)
    for strip, owner in zip(strips, owners, strict=True):
        source = sources[strip.run]
        number = counts.get((owner, strip.run), 0)
        counts[owner, strip.run] = number + 1
        (y, x), (m, n) = strip.box.offset, strip.box.size
        for box, holders in who_holds[source, strip.matrix % len(held[source])].items():
            (top, left), (rows, columns) = box.offset, box.size
            if top < y + m and y < top + rows and left < x + n and x < left + columns:
                common = box.meeting(strip.box)
                piece = Piece(source, strip.matrix, common.within(box), strip.run, number, common.within(strip.box))
                yield piece, owner if owner in holders else holders[owner % len(holders)], owner, holders


def _lists(size: int) -> tuple[list[list[Piece]], list[list[Piece]]]:
    return [[] for _ in range(size)], [[] for _ in range(size)]
