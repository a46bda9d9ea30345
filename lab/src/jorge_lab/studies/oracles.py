"""What the roots of one block ought to be: float64 references that are fed with the gradients of a training.

:class:`Oracle` follows the refreshes of one block of m × n. Of its two sides, the left one first, it knows

- Shampoo's root: that of `method="exact"` in float64;
- the root that the method itself tracks, free of its approximations (:meth:`jorge.methods.Method.counterpart`);
- the same method's root in float64, approximations and all;
- how many refreshes the method remembers, and whether the cap on its step left it short of what β2 asks for, as the
  optimizer's trace tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.methods import METHODS, Method, Refresh
from jorge.options import Options
from jorge.stacking import Blocks, refresh_blocks

#: What each tracked side of a block is, by its name.
Sides = dict[str, Tensor]


@dataclass(frozen=True)
class Memory:
    """What one refresh remembers.

    Args:
        refreshes: for each side 1 over the share that the newest gradient gets in the second moment, in their order.
        cut: whether the cap on the step kept a side from giving the gradient the weight that β2 asks for; None for
            methods without a cap.
    """

    refreshes: tuple[float, ...]
    cut: bool | None


class Oracle:
    """The references of one block of m × n, in float64.

    Args:
        method: how the optimizer tracks the roots.
        options: of its param group.
        shape: of the block.
        device: of the gradients.

    Raises:
        ValueError: the method has no counterpart.
    """

    def __init__(self, method: Method, options: Options, shape: tuple[int, int], device: torch.device) -> None:
        own = method.counterpart(shape, options, device)
        if own is None:
            raise ValueError(f"{method.name} has no counterpart to compare with")
        plain = options.replace(method="exact", root_eps=options.root_eps if method.name == "exact" else None)
        shampoo = METHODS["exact"].counterpart(shape, plain, device)
        assert shampoo is not None
        self._own, self._shampoo = own, shampoo
        self._method, self._options = method, options.replace(matmul_precision=None)
        self._state = method.initial(1, shape, ("full", "full"), dtype=torch.float64, device=device)
        self.refreshes = 0
        self.memory = Memory((), None)
        self.cuts = 0

    def refresh(self, grad: Tensor, refresh: Refresh, shares: Mapping[str, float], cut: bool | None) -> None:
        """Take part in a refresh of the optimizer.

        Args:
            grad: G, `[m, n]` of float64, finite and not zero.
            refresh: how much was done.
            shares: of the newest gradient in the second moment of each side, as the trace has them.
            cut: whether the cap left a side short; None where there is none.
        """
        self._own.refresh(grad, refresh, shares)
        self._shampoo.refresh(grad, refresh, shares)
        refresh_blocks(self._method, [Blocks(self._state, grad[None], slice(None))], self._options, refresh)
        self.memory = Memory(tuple(1 / share for share in shares.values()), cut)
        self.cuts += bool(cut)
        self.refreshes += 1

    def shampoo(self) -> Sides:
        """Shampoo's roots, after at least one refresh."""
        return self._shampoo.roots()

    def own(self) -> Sides:
        """The roots that the method tracks, without its approximations, up to a factor each."""
        return self._own.roots()

    def unrounded(self) -> Sides:
        """The method's roots in float64, of the same refreshes."""
        return {side: self._state[side][0] for side in self.own()}
