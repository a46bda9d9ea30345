"""Who works on which blocks, and how what is needed comes from and to the others: the seam of distribution.

:class:`Alone` has all of it in one process. With :class:`jorge.exchange.replicated.Replicated` every process holds all
parameters and all of the state, and refreshes a share of the preconditioners; what it refreshed goes to the others.
With :class:`jorge.exchange.owned.Owned` each preconditioner is kept by one process alone, and parameters may be
sharded: averages of gradients come to it, and gradients where it refreshes; directions go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from jorge import grafting
from jorge.arrange import Stack, WorkSet
from jorge.methods import State
from jorge.options import Options
from jorge.schedule import Piece

#: Of what is asked for within a stack: how much is done, from a number to before another.
Span = tuple[int, int]


class Exchange(Protocol):
    """What a step asks where its result depends on what other processes hold.

    Every process is asked the same, in the same order and with the same shapes, whatever it holds: which steps do what
    follows from counters alone.
    """

    #: There is nobody else.
    alone: bool
    #: What is worked on here lies apart from what is held here: directions can be sent while the rest goes on.
    apart: bool

    def settle(self, work_sets: tuple[WorkSet, ...], options: Options) -> tuple[WorkSet, ...]:
        """The work sets with what of their blocks is kept here."""

    def share(self, stack: Stack, count: int) -> Span:
        """Which of `count` consecutive blocks that are kept here are refreshed here."""

    def to_owners(self, work: WorkSet, tensors: list[Tensor]) -> list[Tensor]:
        """What this process works on of the matrices: of each of the work set's `cut`, `[count, m, n]`.

        It may be on its way until :meth:`arrived`, as may be what the next two bring.

        Args:
            work: the work set.
            tensors: of each shape group of matrices, `[count, *local]`.
        """

    def to_holders(self, work: WorkSet, found: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        """The reverse: what came of it, `found`, for each shape group of matrices, in the memory of `tensors`."""

    def collect(self, work: WorkSet, states: Sequence[State], refreshed: Sequence[Sequence[Piece]]) -> None:
        """Bring what others have refreshed of the stacks into their state, in place.

        Args:
            work: the work set.
            states: of its stacks.
            refreshed: of each stack, the blocks that all processes together have refreshed.
        """

    def arrived(self, work: WorkSet) -> None:
        """Wait for all that is on its way for a work set."""

    def norms(self, work: WorkSet, tensors: Sequence[Tensor]) -> Tensor:
        """Euclidean norm of each whole matrix, `[total]`."""

    def whole_sides(
        self, work: WorkSet, numbers: Sequence[int], rows: list[Tensor], columns: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The norms of rows and columns of whole matrices, `[count, M]` and `[count, N]`, from those of what is here.

        Args:
            work: the work set.
            numbers: of the shape groups of matrices.
            rows, columns: norms of the rows and columns of what is held here.
        """

    def held_sides(
        self, work: WorkSet, numbers: Sequence[int], rows: list[Tensor], columns: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of one value for each row and each column those of what is held here."""

    def completed(self, values: list[list[Tensor]]) -> list[list[Tensor]]:
        """What was measured of blocks: all of it, where each process has measured its share and left zeros."""

    def matrix_sums(self, work: WorkSet, sums: list[Tensor]) -> list[Tensor]:
        """Sums over the blocks of whole matrices, of each shape group of matrices, from those of the `cut`."""


class Alone:
    """One process: all is here, and nothing has to come."""

    alone = True
    apart = False

    def settle(self, work_sets: tuple[WorkSet, ...], options: Options) -> tuple[WorkSet, ...]:
        """As they are."""
        return work_sets

    def share(self, stack: Stack, count: int) -> Span:
        """All."""
        return 0, count

    def to_owners(self, work: WorkSet, tensors: list[Tensor]) -> list[Tensor]:
        """The matrices."""
        return tensors

    def to_holders(self, work: WorkSet, found: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        """What was found."""
        return found

    def collect(self, work: WorkSet, states: Sequence[State], refreshed: Sequence[Sequence[Piece]]) -> None:
        """Nothing comes."""

    def arrived(self, work: WorkSet) -> None:
        """All is here."""

    def norms(self, work: WorkSet, tensors: Sequence[Tensor]) -> Tensor:
        """Of what is here."""
        return grafting.norms(tensors)

    def whole_sides(
        self, work: WorkSet, numbers: Sequence[int], rows: list[Tensor], columns: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As they are."""
        return rows, columns

    def held_sides(
        self, work: WorkSet, numbers: Sequence[int], rows: list[Tensor], columns: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As they are."""
        return rows, columns

    def completed(self, values: list[list[Tensor]]) -> list[list[Tensor]]:
        """As it is."""
        return values

    def matrix_sums(self, work: WorkSet, sums: list[Tensor]) -> list[Tensor]:
        """As they are."""
        return sums


class Apart(Alone):
    """Each process works on what it holds, which are whole matrices, and all take the same decisions."""

    alone = False
