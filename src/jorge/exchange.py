"""Who refreshes which blocks, and how the results come to the others: the seam that distribution stands on."""

from __future__ import annotations

from typing import Protocol

from jorge.arrange import Stack
from jorge.methods import State


class Exchange(Protocol):
    """What the store asks when it arranges the state, and a step between the refresh of a stack and its directions."""

    def owned(self, stack: Stack) -> tuple[int, int]:
        """The blocks of a stack that are refreshed here: from the first number to before the second."""

    def collect(self, stack: Stack, state: State) -> None:
        """Bring what others have refreshed into the stack's state, in place. Asked where not all blocks are owned."""


class Alone:
    """One process: all blocks are refreshed here, and nothing has to come."""

    def owned(self, stack: Stack) -> tuple[int, int]:
        """All."""
        return 0, stack.count

    def collect(self, stack: Stack, state: State) -> None:
        """Nothing: it is not asked."""
