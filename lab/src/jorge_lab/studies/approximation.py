"""How near the roots are to the exact ones while a task is trained, how long they remember, and how symmetric they are.

A run trains a task with one optimizer and follows the largest block of each of a few parameters with an
:class:`~jorge_lab.studies.oracles.Oracle`. What is measured at :data:`POINTS` steps is a number a side of each block:

================== ====================================================================================================
own_error          relative Frobenius distance of the root, after the best scaling, to the float64 root that the method
                   itself tracks: what its polynomial, its cap and its dtype leave out; for whitening that of
                   :class:`jorge.methods.kl_shampoo.KLShampoo` with the memory that the cap leaves
own_cosine         cosine between the two
direction          cosine between the newest gradient as these two precondition it, the same for both sides; none where
                   it is zero
rounding           the same distance to the method's own run in float64: what its dtype leaves out
shampoo_error      the same distance to Shampoo's root of the same gradients; none for whitening, which tracks another
shampoo_cosine     cosine between these two
memory             how many refreshes the newest roots remember
cut                share of the refreshes so far in which the cap on the step left the root short of that; none for
                   methods without a cap
asymmetry          ‖L − Lᵀ‖_F / ‖L‖_F
condition          condition number of the moving average of `VVᵀ` (or `VᵀV`) over the steps, with `V = L G R`; that of
                   an average that has a null space is :data:`SINGULAR`
raw_condition      the same of the raw gradients
whiteness          (tr X)² / (d · tr X²) of that average: 1 where all eigenvalues are equal, 1/d where one has all
raw_whiteness      the same of the raw gradients
================== ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jorge import Jorge
from jorge.blocks import gather
from jorge.methods import METHODS
from jorge.options import Options
from jorge.routing import route_by
from jorge.trace import Trace
from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.environment import environment
from jorge_lab.runs.run import Watcher, settings_on
from jorge_lab.runs.store import Record
from jorge_lab.studies.oracles import Oracle, Sides
from jorge_lab.tasks.task import Data, Task

#: The methods, by the names of the optimizers that have them.
OPTIMIZERS = ("jorge", "jorge-congruence", "jorge-binomial", "shampoo")
MEASURES = (
    *("own_error", "own_cosine", "direction", "rounding"),
    *("shampoo_error", "shampoo_cosine", "memory", "cut", "asymmetry"),
    *("condition", "raw_condition", "whiteness", "raw_whiteness"),
)
#: Measured steps of a run, evenly spread, the last one among them.
POINTS = 20
#: Parameters of which a block is followed.
BLOCKS = 4
#: Condition numbers above it are said to be it: float64 does not tell them from a null space.
SINGULAR = 1e12
#: Version of the records' layout.
VERSION = 2
#: Weight of the newest step in the averages of gradients: about 20 steps.
_NEWEST = 0.05


class Followed:
    """A block of a parameter: its gradients, the optimizer's roots for it, and their references.

    Args:
        name: the parameter's.
        param: the parameter.
        group: its param group.

    The block is the middle one of the largest of the parameter's block shapes: at the edge of images all is zero.
    """

    def __init__(self, name: str, param: Tensor, group: dict[str, Any]) -> None:
        blocking = route_by(tuple(param.shape), Options.of(group)).blocking
        assert blocking is not None, "only matrices have blocks"
        self.param, self.blocking = param, blocking
        self.number, self.grid = max(enumerate(blocking.grids), key=lambda pair: math.prod(pair[1].shape))
        self.place = self.grid.blocks // 2
        before = sum(grid.blocks for grid in blocking.grids[: self.number])
        self.described = {
            "name": name,
            "block": before + self.place,
            "of": blocking.blocks,
            "shape": list(self.grid.shape),
        }
        self.method = str(group["method"])
        self.oracle = Oracle(METHODS[self.method], Options.of(group), self.grid.shape, param.device)
        self._raw, self._seen = _Moments(self.grid.shape, param.device), _Moments(self.grid.shape, param.device)

    def gradient(self) -> Tensor:
        """The block's gradient, `[m, n]` of float64."""
        assert self.param.grad is not None
        matrix = self.param.grad.detach().double().reshape(1, *self.blocking.matrix)
        return gather(matrix, self.grid)[self.place]

    def after(self, state: dict[str, Any], trace: Trace) -> None:
        """Follow a step of the optimizer, from what it saw and the parameter's state after it; the gradient stands."""
        grad = self.gradient()
        taken = float(state[f"refreshes.{self.number}"][self.place]) > self.oracle.refreshes  # a zero one is not
        for seen in trace.refreshes if taken else ():
            row = seen.row(self.param, self.number, self.place)
            if row is not None:
                shares = {side: float(share[row]) for side, share in seen.shares.items()}
                cut = any(bool(short[row]) for short in seen.capped.values()) if seen.capped else None
                self.oracle.refresh(grad, seen.refresh, shares, cut)
        self._raw.add(grad)
        kept = self.state(state)
        self._seen.add(METHODS[self.method].direction(kept, grad[None])[0])

    def state(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """What the optimizer keeps of the block, a stack of one in float64."""
        keys = (key.rpartition(".") for key in state)
        names = [name for name, _, number in keys if number == str(self.number)]
        return {n: state[f"{n}.{self.number}"][self.place : self.place + 1].double() for n in names}

    def roots(self, state: dict[str, Any]) -> Sides:
        """The optimizer's roots in float64, of the sides that it tracks."""
        kept = self.state(state)
        return {side: kept[side][0] for side in self.oracle.own()}

    def measure(self, state: dict[str, Any]) -> dict[str, list[float] | None]:
        """Each of :data:`MEASURES` for the left and the right side; None where the method has no such thing."""
        roots, oracle = self.roots(state), self.oracle
        found: dict[str, list[float] | None] = dict.fromkeys(MEASURES)
        exact, grad = oracle.own(), self.gradient()
        found["own_error"], found["own_cosine"] = _distances(roots, exact)
        if grad.any():
            found["direction"] = [distance(along(roots, grad), along(exact, grad))[1]] * 2
        found["rounding"], _ = _distances(roots, oracle.unrounded())
        if self.method != "whitening":
            found["shampoo_error"], found["shampoo_cosine"] = _distances(roots, oracle.shampoo())
        found["memory"] = list(oracle.memory.refreshes)
        if oracle.memory.cut is not None:
            found["cut"] = [oracle.cuts / oracle.refreshes] * 2
        found["asymmetry"] = [float((root - root.mT).norm() / root.norm()) for root in roots.values()]
        found["condition"], found["whiteness"] = self._seen.spectra()
        found["raw_condition"], found["raw_whiteness"] = self._raw.spectra()
        return found


class _Moments:
    """Moving averages of `VVᵀ` and `VᵀV` over the steps."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.sides = [torch.zeros(d, d, dtype=torch.float64, device=device) for d in shape]

    def add(self, v: Tensor) -> None:
        for side, gram in zip(self.sides, (v @ v.mT, v.mT @ v), strict=True):
            side.lerp_(gram, _NEWEST)

    def spectra(self) -> tuple[list[float], list[float]]:
        """Condition number and whiteness of each side."""
        conditions, whitenesses = [], []
        for moment in self.sides:
            values = torch.linalg.eigvalsh(moment)
            top = float(values[-1])
            conditions.append(min(SINGULAR, top / float(values[0])) if values[0] * SINGULAR > top else SINGULAR)
            whitenesses.append(float(values.sum() ** 2 / (len(values) * values.square().sum())))
        return conditions, whitenesses


def _distances(roots: Sides, exact: Sides) -> tuple[list[float], list[float]]:
    """Error and cosine of each side; see :func:`distance`."""
    found = [distance(root, exact[side]) for side, root in roots.items()]
    return [error for error, _ in found], [cosine for _, cosine in found]


def along(roots: Sides, grad: Tensor) -> Tensor:
    """The direction `L G R`."""
    return roots["left"] @ grad @ roots["right"]


def distance(root: Tensor, exact: Tensor) -> tuple[float, float]:
    """`min_a ‖a·root − exact‖_F / ‖exact‖_F`, and the cosine between the two, of which it is the sine."""
    root, exact = root / root.norm(), exact / exact.norm()
    cosine = float((root * exact).sum())
    return float((cosine * root - exact).norm()), cosine


def followed(optimizer: Jorge) -> list[Followed]:
    """The largest block of each of :data:`BLOCKS` parameters, those with the largest blocks first.

    Parameters with a diagonal side are left out, as it has no root.
    """
    found = [
        Followed(name, param, group)
        for group in optimizer.param_groups
        for name, param in zip(group["param_names"], group["params"], strict=True)
        if (blocking := route_by(tuple(param.shape), Options.of(group)).blocking)
        and (blocking.left, blocking.right) == ("full", "full")
    ]
    return sorted(found, key=lambda block: -math.prod(block.grid.shape))[:BLOCKS]


def key(task: Task, name: str, seed: int, steps: int) -> list[Any]:
    """What identifies a run."""
    return [VERSION, task.name, task.size, name, seed, steps, task.batch_size]


def follow(task: Task, name: str, seed: int, steps: int, data: Data, watch: Watcher = lambda *_: None) -> Record:
    """Train a task with one of :data:`OPTIMIZERS` and measure; the record of the run, in plain values.

    A loss that is not finite ends the run.

    Raises:
        ValueError: no parameter of the model has a block with two full sides, or the optimizer is not one of ours.
    """
    device = data.train[0].device
    torch.manual_seed(seed)
    model = task.model().to(device)
    contender = find_contender(name)
    optimizer, scheduler = contender.build(task, model, steps)
    if not isinstance(optimizer, Jorge):
        raise ValueError(f"{name} is no method of ours: there are {', '.join(OPTIMIZERS)}")
    chosen = settings_on(task, optimizer)
    blocks = followed(optimizer)
    if not blocks:
        raise ValueError(f"{task.name}: no parameter of the model has two full sides")
    wanted = {math.ceil(steps * i / POINTS) for i in range(1, POINTS + 1)}
    points: list[dict[str, Any]] = []
    diverged_at = None
    batches = task.batches(data, seed)
    for step in range(1, steps + 1):
        loss = task.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value = loss.item()
        if not math.isfinite(value):
            diverged_at = step
            break
        optimizer.trace = Trace()
        optimizer.step()
        scheduler.step()
        for block in blocks:
            if block.param.grad is not None:
                block.after(optimizer.state[block.param], optimizer.trace)
        if step in wanted:
            points.append({"step": step, "loss": value, "blocks": _measure(blocks, optimizer)})
        watch(step, value, None)
    return {
        "key": key(task, name, seed, steps),
        "task": task.name,
        "size": task.size,
        "title": task.title,
        "optimizer": name,
        "label": contender.label,
        "method": optimizer.param_groups[0]["method"],
        "seed": seed,
        "steps": steps,
        "diverged_at": diverged_at,
        "blocks": [block.described for block in blocks],
        "points": points,
        "settings": chosen,
        "environment": environment(device),
    }


def _measure(blocks: Sequence[Followed], optimizer: Jorge) -> list[dict[str, list[float] | None] | None]:
    """Of each block what it measures, to six digits; None before its first refresh."""

    def rounded(found: dict[str, list[float] | None]) -> dict[str, list[float] | None]:
        return {name: pair and [float(f"{value:.6g}") for value in pair] for name, pair in found.items()}

    return [
        rounded(block.measure(optimizer.state[block.param])) if block.oracle.refreshes else None for block in blocks
    ]
