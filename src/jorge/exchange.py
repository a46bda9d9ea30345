"""Who refreshes which blocks, and how the results come to the others: the seam that distribution stands on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jorge.arrange import Stack
from jorge.methods import State
from jorge.schedule import Piece


class Exchange(Protocol):
    """What the store asks when it arranges the state, and a step between the refresh of a stack and its directions.

    It is the optimizer's attribute `exchange`, and does not go along into copies and pickles of it.
    """

    #: Nobody else refreshes anything: `collect` is not asked.
    alone: bool

    def owned(self, stack: Stack) -> tuple[int, int]:
        """The blocks of a stack that are refreshed here: from the first number to before the second."""

    def collect(self, stack: Stack, state: State, refreshed: Sequence[Piece]) -> None:
        """Bring what others have refreshed into the stack's state, in place.

        Every process is asked in the same steps and in the same order of stacks, whatever it owns of them, as which
        steps refresh what follows from counters alone: `refreshed` are the blocks of all processes.
        """


class Alone:
    """One process: all blocks are refreshed here, and nothing has to come."""

    alone = True

    def owned(self, stack: Stack) -> tuple[int, int]:
        """All."""
        return 0, stack.count

    def collect(self, stack: Stack, state: State, refreshed: Sequence[Piece]) -> None:
        """Nothing: it is not asked."""
