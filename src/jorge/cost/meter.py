"""What a step dispatches and moves, by running it: on meta tensors, which have shapes and no memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jorge.cost.counter import Meter as Meter
from jorge.cost.weights import Weight
from jorge.methods import DAMPING_PERIOD, EARLY_REFRESHES, METHODS
from jorge.optimizer import Jorge
from jorge.options import FIELDS, Options

#: Larger than any step that is looked at: while warming up, every step refreshes; with such an interval, none does.
_ALWAYS = _NEVER = 10**9
#: A workspace in which every refresh is done in one piece: as much is moved, by fewer operators.
UNCUT = 1e9


@dataclass(frozen=True)
class StepCount:
    """What one step dispatches: launches, FLOPs by torch's counter, and bytes moved by all other operators."""

    launches: int
    flops: int
    moved_bytes: int


def early_refreshes() -> range:
    """The refreshes that look for the fixed point, by number from 0: some are repeated, none is damped."""
    return range(EARLY_REFRESHES)


def settled_refreshes() -> range:
    """One period of the refreshes of a long training: they differ in whether they apply the damping."""
    start = 1000 * DAMPING_PERIOD
    return range(start, start + DAMPING_PERIOD)


class Rehearsal:
    """The optimizer itself on parameters and gradients without memory, to count its steps.

    Products count without `matmul_precision`, which would be emulated on the meta device, and the step as it is
    before `compile_step` compiles it.

    Args:
        weights: the parameters.
        options: of :class:`jorge.Jorge`.
    """

    def __init__(self, weights: Sequence[Weight], options: Options) -> None:
        self._options = options
        self._params = [torch.empty_like(w.tensor).requires_grad_() for w in weights if w.tensor.numel()]
        self._optimizer: Jorge | None = None
        if self._params:
            values = {name: getattr(options, name) for name in FIELDS}
            values |= {"matmul_precision": None, "compile_step": False, "cuda_graphs": False, "nonfinite": "skip"}
            self._optimizer = Jorge(self._params, **values)
            self._count(1)  # makes the state

    def interval(self) -> tuple[StepCount, ...]:
        """The steps of one interval late in training; of the refreshes, the kind that is most frequent."""
        interval = self._options.interval
        number = self._typical(settled_refreshes(), interval)
        if self._options.stagger and interval > 1:
            steps = range(number * interval, number * interval + interval)
            return tuple(self._count(t, warmup_refreshes=0, interval=interval) for t in steps)
        refresh = self._count(number * interval + interval - 1, warmup_refreshes=0, interval=interval)
        plain = self._count(1, warmup_refreshes=0, interval=_NEVER, stagger=False) if interval > 1 else refresh
        return (plain,) * (interval - 1) + (refresh,)

    def early(self) -> tuple[StepCount, ...]:
        """The steps of the first ten refreshes."""
        method = METHODS[self._options.method]
        refreshes = {k: method.refresh_at(k, 1) for k in early_refreshes()}
        numbers = {refresh: k for k, refresh in refreshes.items()}  # one of each kind, as they cost the same
        interval = self._options.interval
        counts = {r: self._count(k, warmup_refreshes=_ALWAYS, interval=interval) for r, k in numbers.items()}
        return tuple(counts[refresh] for refresh in refreshes.values())

    def _typical(self, numbers: range, gap: int) -> int:
        """The last refresh of the most frequent kind."""
        refreshes = [METHODS[self._options.method].refresh_at(k, gap) for k in numbers]
        most = max(refreshes, key=refreshes.count)
        return max(k for k, refresh in zip(numbers, refreshes, strict=True) if refresh == most)

    def _count(self, steps: int, **changes: int) -> StepCount:
        """Count the step after so many, with some options changed."""
        optimizer = self._optimizer
        if optimizer is None:
            return StepCount(0, 0, 0)
        optimizer.param_groups[0].update({"stagger": self._options.stagger, **changes})
        for p in self._params:
            p.grad = torch.empty_like(p)
            optimizer.state[p]["step"] = steps
        with Meter() as meter:
            optimizer.step()
        return StepCount(meter.launches, meter.flops, meter.moved_bytes)


def mean_bytes(steps: Sequence[StepCount]) -> float:
    """Bytes that one of these steps moves, on average."""
    return sum(step.moved_bytes for step in steps) / len(steps)


def mean_launches(steps: Sequence[StepCount]) -> float:
    """What one of these steps launches, on average."""
    return sum(step.launches for step in steps) / len(steps)
