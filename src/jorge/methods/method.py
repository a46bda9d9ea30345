"""What a method is: its state, its refresh, its direction, their costs, and what it ought to come to.

A gradient `G` (m × n) is preconditioned as `L G R`. A *full* side is a symmetric matrix, `[count, d, d]`; a *diagonal*
side is a vector, `[count, d]`. Every function takes stacks of equal blocks, `[count, m, n]`; none reads a value back to
the host, branches on data, or draws a random number.

To add a method, write a subclass of :class:`Method` in a file of its own and name it in
:data:`jorge.methods.METHODS`; `tests/test_methods_conformance.py` says what it has to keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from jorge.blocks import Side
from jorge.methods.products import apply_right, blend_of, square_sum, two_sided
from jorge.options import Options
from jorge.trace import Trace

#: Tensors of a stack by name, each `[count, …]`. `refreshes` is there in every method: how many a block has had.
State = dict[str, Tensor]
Shape = tuple[int, int]
Sides = tuple[Side, Side]

#: So many refreshes follow each other fast and find the preconditioners far from their fixed point: each stands for
#: itself alone, and there is nothing yet to be damped apart.
EARLY_REFRESHES = 10
#: Where the damping takes a product of its own it is applied at every so many-th refresh, for all of them. The number
#: is odd, as gradients may be zero at every other refresh.
DAMPING_PERIOD = 7


@dataclass(frozen=True)
class Refresh:
    """How much one refresh does. It follows from the step's number alone, so it is the same on every process.

    Args:
        substeps: how often its step is repeated.
        weight: how many refreshes with this gradient it stands for; in a compiled step a 0-dim tensor, so that no
            graph holds its value.
        damping: how many refreshes' damping it applies, where that takes a product of its own; 0 leaves it to a later
            one.
    """

    substeps: int = 1
    weight: float | Tensor = 1.0
    damping: int = 0


class Counterpart(Protocol):
    """What the preconditioners of one block ought to be, in float64, from the same gradients."""

    def refresh(self, grad: Tensor, refresh: Refresh, shares: Mapping[str, float]) -> None:
        """Take in a gradient, `[m, n]` of float64, finite and not zero; `shares` as :class:`jorge.trace.Refreshed`."""

    def roots(self) -> dict[str, Tensor]:
        """What each side that is tracked ought to be, `[d, d]` up to a factor, by its name in the state."""


class Method(ABC):
    """A way to precondition. What is defined here is that of two-sided methods; a method may replace any of it."""

    #: The option `method`.
    name: str
    #: The state of the transposed gradient is the state with left and right swapped, so that blocks of transposed
    #: shapes may lie in one stack.
    transposable = True
    #: A full side is symmetric to the bit after a refresh.
    symmetric = True
    #: The host waits for a CUDA device in a refresh.
    waits = False

    # --- the state of a block -----------------------------------------------------------------------------------------

    def layout(self, shape: Shape, sides: Sides) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is kept for one block beside its counter `refreshes`."""
        found: dict[str, tuple[int, ...]] = {}
        for side, d, kind in zip(("left", "right"), shape, sides, strict=True):
            found[side] = (d, d) if kind == "full" else (d,)
            if kind == "diagonal":
                found[f"{side}_moment"] = (d,)
        return found

    def start(self, state: Mapping[str, Tensor]) -> None:
        """Turn zeros, a stack's state, into what it is before any gradient: preconditioners that change nothing."""
        for side in ("left", "right"):
            if state[side].dim() == 3:
                state[side].diagonal(dim1=-2, dim2=-1).fill_(1)
            else:
                state[side].fill_(1)

    def initial(
        self, count: int, shape: Shape, sides: Sides, *, dtype: torch.dtype, device: torch.device | None = None
    ) -> State:
        """The state of a stack of `count` blocks before any gradient. Its counters are float32."""
        state = {"refreshes": torch.zeros(count, dtype=torch.float32, device=device)}
        for name, size in self.layout(shape, sides).items():
            state[name] = torch.zeros(count, *size, dtype=dtype, device=device)
        self.start(state)
        return state

    # --- a refresh ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def refresh_at(self, number: int, gap: int) -> Refresh:
        """The refresh after `number` earlier ones, `gap` steps from the next."""

    @abstractmethod
    def refreshed(
        self, state: State, grad: Tensor, largest: Tensor, options: Options, refresh: Refresh, trace: Trace | None
    ) -> State:
        """What a refresh makes of the state, new tensors by name; `refreshes` is not among them.

        Args:
            state: in the dtype of `grad`.
            grad: G, `[count, m, n]`. Where a block is zero or not finite what comes out is not used.
            largest: its largest absolute entry, `[count]`.
            options: of the param group.
            refresh: how much is done.
            trace: told of the weights, where there is one.
        """

    def refreshed_together(
        self,
        states: Sequence[State],
        grads: Sequence[Tensor],
        largest: Tensor,
        options: Options,
        refresh: Refresh,
        trace: Trace | None,
    ) -> list[State]:
        """:meth:`refreshed` for several stacks, of one where there is a trace; `largest` is `[total]`.

        A method whose refresh has many small operators may do them for all stacks at once.
        """
        each = zip(states, grads, torch.split(largest, [len(grad) for grad in grads]), strict=True)
        return [self.refreshed(state, grad, most, options, refresh, trace) for state, grad, most in each]

    # --- a step -------------------------------------------------------------------------------------------------------

    #: `direction(state, grad, precision=None)`: the direction of `[count, m, n]` gradients, in their dtype.
    direction: ClassVar[Callable[..., Tensor]] = staticmethod(two_sided)

    # --- what they cost, as torch's counter sees it: two for a multiplication and an addition -------------------------

    def direction_flops(self, shape: Shape, sides: Sides) -> int:
        """Operations of the direction of one block; a diagonal side is no product and counts none."""
        m, n = shape
        return 2 * m * m * n * (sides[0] == "full") + 2 * m * n * n * (sides[1] == "full")

    @abstractmethod
    def refresh_flops(self, shape: Shape, sides: Sides, options: Options, refresh: Refresh) -> int:
        """Operations of one refresh of one block."""

    def decompositions(self, shape: Shape, sides: Sides) -> tuple[int, ...]:
        """Sides of the matrices whose eigenvalues a refresh of one block takes, which that counter does not see."""
        return ()

    # --- what it ought to come to -------------------------------------------------------------------------------------

    def counterpart(self, shape: Shape, options: Options, device: torch.device) -> Counterpart | None:
        """The same without the method's approximations, for one block of full sides; `None` where not known."""
        return None


# --- pieces that methods share ----------------------------------------------------------------------------------------


def diagonal(moment: Tensor, grad: Tensor, noise: Tensor, blend: Tensor) -> tuple[Tensor, Tensor]:
    """A diagonal left side: `v ← EMA of mean-square rows`, `d = v^(-1/2)` scaled to mean 1.

    Args:
        moment: v, `[count, m]`.
        grad: the gradient as the other side preconditions it, `[count, m, n]`.
        noise: `[count]`, the energy of white noise that is added to each row in expectation.
        blend: `[count]`, the weight of the new moment.

    Returns:
        the side, `[count, m]`, and the new moment.
    """
    fresh = (torch.linalg.vector_norm(grad, dim=-1).square() + noise.unsqueeze(-1)) / grad.shape[-1]
    moment = moment.lerp(fresh, blend.unsqueeze(-1))
    side = torch.maximum(moment, 1e-12 * moment.mean(-1, keepdim=True)).rsqrt()  # without damping, dead rows are zero
    return side / side.mean(-1, keepdim=True), moment


def each_side(state: State, grad: Tensor, options: Options, full: Callable[[str, Tensor, Tensor], State]) -> State:
    """Refresh each side on its own: full ones by `full(side, root, gradient seen from that side)`."""
    new: State = {}
    for side, other, seen in (("left", "right", grad), ("right", "left", grad.mT)):
        if state[side].dim() == 3:
            new |= full(side, state[side], seen)
        else:
            noise = options.damping * seen.square().mean(dim=(-2, -1)) * square_sum(state[other])
            whole = apply_right(seen, state[other], options.precisions[0])
            blend = blend_of(state["refreshes"], options.preconditioner_beta2)
            new[side], new[f"{side}_moment"] = diagonal(state[f"{side}_moment"], whole, noise, blend)
    return new


def each_side_flops(shape: Shape, sides: Sides, full: Callable[[int, int], int]) -> int:
    """Operations of :func:`each_side`: `full(d, k)` for a full side of d whose gradients are d × k."""
    (m, n), (left, right) = shape, sides
    total = 0
    for d, k, mine, other in ((m, n, left, right), (n, m, right, left)):
        total += full(d, k) if mine == "full" else 2 * d * k * k * (other == "full")
    return total
