"""What the roots of one block ought to be: float64 references that are fed with the gradients of a training.

:class:`Oracle` follows the refreshes of one block of m × n. Of its two sides, the left one first, it knows

- Shampoo's root: `S ← β2 S + (1−β2) G Gᵀ` at each refresh, bias-corrected; `(S + 1e-6·tr(S)/m·I)^(-1/4)` by `eigh`;
- the root that the method itself tracks, free of its approximations: for `congruence` that of Shampoo's moment with its
  own start and damping, for `binomial` that with the β2 which it implies at each refresh, for `whitening`, whose fixed
  point is another one, the method's own float64 run;
- how many refreshes the method remembers, and whether the cap on its step left it short of what β2 asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.methods import METHODS, Pace, RootOptions, State, initial_state, refresh
from jorge.roots import (
    CONGRUENCE_CAP,
    CONGRUENCE_LINE_CAP,
    WHITENING_CAP,
    WHITENING_LINE_CAP,
    binomial_start,
    congruence,
    congruence_start,
    exact_root,
    whitening,
)

#: The two sides of a block, left and right.
Pair = tuple[Tensor, Tensor]

#: Keeps `eigh`'s rounding from making an eigenvalue negative, where the method has no regularisation of its own.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Memory:
    """What one refresh remembers.

    Args:
        refreshes: for each side 1 over the weight that the newest gradient gets in the second moment.
        cut: whether the cap on the step kept a side from giving the gradient the weight that β2 asks for; None for
            methods without a cap.
    """

    refreshes: tuple[float, float]
    cut: bool | None


class Oracle:
    """The references of one block of m × n, in float64.

    Args:
        method: how the optimizer tracks the roots.
        options: of its refreshes.
        shape: of the block.
        device: of the gradients.
    """

    def __init__(self, method: str, options: RootOptions, shape: tuple[int, int], device: torch.device) -> None:
        self.method = method
        self.options = options
        self.refreshes = 0
        self.memory = Memory((1.0, 1.0), None)
        self.cuts = 0
        self._shampoo = [torch.zeros(d, d, dtype=torch.float64, device=device) for d in shape]
        self._own = [moment.clone() for moment in self._shampoo]
        self._twin: State = {}
        if method == "whitening":
            self._twin = initial_state(method, 1, shape, ("full", "full"), dtype=torch.float64, device=device)

    def refresh(self, grad: Tensor, before: Pair | None, pace: Pace) -> None:
        """Take part in a refresh of the optimizer.

        Args:
            grad: G, `[m, n]` of float64, finite and not zero.
            before: the optimizer's roots before the refresh, in float64; None at the first one.
            pace: of the refresh.
        """
        seen = (grad, grad.mT)
        beta2 = self.options.beta2
        if self.refreshes == 0:
            before = (_start(self.method, grad, self.options), _start(self.method, grad.mT, self.options))
            self._own = [torch.diag_embed(root.diagonal() ** -4) for root in before]
        assert before is not None, "only the first refresh has no roots before it"
        self.memory = _memory(self.method, before, grad, self.refreshes, self.options, pace)
        self.cuts += bool(self.memory.cut)
        self.refreshes += 1
        for side, g in enumerate(seen):
            gram = g @ g.mT
            self._shampoo[side] = beta2 * self._shampoo[side] + (1 - beta2) * gram
            if self.method == "congruence":
                gram.diagonal().add_(self.options.damping * gram.trace() / len(gram))
            weight = 1 / self.memory.refreshes[side] if self.method == "binomial" else 1 - beta2
            self._own[side] = (1 - weight) * self._own[side] + weight * gram
        if self._twin:
            refresh(self.method, self._twin, grad[None], self.options, pace)

    def shampoo(self) -> Pair:
        """Shampoo's roots, after at least one refresh."""
        left, right = (_root(moment, METHODS["exact"].eps) for moment in self._shampoo)
        return left, right

    def own(self) -> Pair:
        """The roots that the method tracks, without its approximations, up to a factor each."""
        if self.method == "exact":
            return self.shampoo()
        if self._twin:
            return self._twin["left"][0], self._twin["right"][0]
        left, right = (_root(moment, _ROUNDING) for moment in self._own)
        return left, right


def _root(moment: Tensor, eps: float) -> Tensor:
    return exact_root(moment[None], eps=eps)[0]


def _start(method: str, grad: Tensor, options: RootOptions) -> Tensor:
    """The left root before the first refresh."""
    eps = options.eps or METHODS[method].eps
    if method == "binomial":
        return binomial_start(grad[None], None if options.init == "auto" else eps)[0]
    if method == "congruence":
        return congruence_start(grad[None], eps)[0]
    return torch.eye(len(grad), dtype=grad.dtype, device=grad.device)


def _memory(method: str, roots: Pair, grad: Tensor, earlier: int, options: RootOptions, pace: Pace) -> Memory:
    """The memory of the refresh that comes after `earlier` others and starts from `roots`."""
    if method == "whitening":
        return _whitening_memory(roots, grad, earlier, options, pace)
    sides = ((roots[0], grad), (roots[1], grad.mT))
    if method == "congruence":
        (left, left_cut), (right, right_cut) = (_congruence_memory(*side, options, pace) for side in sides)
        return Memory((left, right), left_cut or right_cut)
    if method == "binomial":
        # β2 = ν/(1+ν) with ν = ‖L⁴GGᵀ‖_F
        left, right = (1 + float((torch.linalg.matrix_power(root, 4) @ g @ g.mT).norm()) for root, g in sides)
        return Memory((left, right), None)
    chosen = (1 - options.beta2 ** (earlier + 1)) / (1 - options.beta2)
    return Memory((chosen, chosen), None)


def _congruence_memory(root: Tensor, grad: Tensor, options: RootOptions, pace: Pace) -> tuple[float, bool]:
    """Of one side: the steps of a refresh one by one, each with what the cap lets through."""
    wanted = (1 - options.beta2) / options.beta2
    noise = options.damping * grad.square().sum() / len(root)
    remaining = wanted
    cap = CONGRUENCE_CAP if options.degree == 2 else CONGRUENCE_LINE_CAP
    for _ in range(pace.substeps):
        square = root @ root
        v = square @ grad
        largest = _schatten(v @ v.mT + noise * square @ square)
        given = min(remaining, cap / largest)
        # β2 such that the step gives what remains, or is capped; its factor on the root is taken out again
        beta2 = 1 / (1 + remaining)
        new = congruence(
            root[None], grad[None], beta2=beta2, damping=options.damping, substeps=1, degree=options.degree
        )
        root = new[0] * beta2**0.25
        remaining -= given
        if remaining <= 0:
            break
    weight = wanted - remaining
    return (1 + weight) / weight, remaining > 0


def _whitening_memory(roots: Pair, grad: Tensor, earlier: int, options: RootOptions, pace: Pace) -> Memory:
    """The steps of a refresh one by one: a step gives `c`, or as much of it as the cap on `wX` leaves."""
    left, right = roots
    grad = grad / grad.abs().max()
    noise = options.damping * grad.square().mean()
    blend = max(1 - options.beta2, 1 / (earlier + 1))
    blend = 1 - (1 - blend) ** float(pace.weight)
    wanted = blend / (1 - blend) if blend < 1 else math.inf
    kept, cut = [1.0, 1.0], False
    cap = WHITENING_CAP if options.degree == 2 else WHITENING_LINE_CAP
    for _ in range(pace.substeps):
        v = left @ grad @ right
        for side, (mine, other, seen) in enumerate(((left, right, v), (right, left, v.mT))):
            x = seen @ seen.mT + noise * other.square().sum() * mine @ mine.mT
            given = min(wanted, cap * float(x.trace()) / len(x) / _schatten(x))
            kept[side] /= 1 + given
            cut |= given < wanted < math.inf  # the first refresh asks for all that there is
        counter = grad.new_full((1,), earlier)
        new_left, new_right, _ = whitening(
            left[None],
            grad[None],
            right[None],
            counter,
            beta2=options.beta2,
            damping=options.damping,
            substeps=1,
            weight=pace.weight,
            degree=options.degree,
        )
        left, right = new_left[0], new_right[0]
    return Memory((1 / (1 - kept[0]), 1 / (1 - kept[1])), cut)


def _schatten(x: Tensor) -> float:
    """`‖X²‖_F^(1/2)`, which is at least the largest eigenvalue of symmetric X."""
    size = float(x.norm())
    unit = x / size
    return size * math.sqrt(float((unit @ unit).norm()))
