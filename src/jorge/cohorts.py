"""The step on the parameters of one group and device that have had a gradient.

Each parameter counts the steps in which it had a gradient, so a layer that is unfrozen late, or is trained every other
step, has its own warm-up and interval.

A :class:`Cohort` is worked on bucket by bucket (:mod:`jorge.buckets`): gradients, directions and updates live for one
bucket at a time, which bounds the temporary memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jorge.blocks import Blocking
from jorge.buckets import Bucket
from jorge.bundles import Bundle, Constants
from jorge.routing import compute_dtype, route
from jorge.schedule import Schedule
from jorge.stacks import Due, RootStack

Group = dict[str, Any]

#: Options that shape the state: they cannot change once it exists.
STRUCTURAL = ("method", "grafting", "beta2_decay", "block_size", "max_dim", "preconditioner_dtype")

#: Of the temporary memory that a step may take: the gradients of a bucket, which are there up to four times (gathered,
#: cut into blocks, preconditioned on one side and on both), and what a refresh takes.
_BUCKET_SHARE, _REFRESH_SHARE = 1 / 5, 1 / 2
#: A refresh is cut into about so many pieces at most, so that launches do not grow with the blocks' size.
_PIECES = 24
#: What schedules change.
_SCALARS = ("lr", "momentum", "weight_decay", "beta1", "beta2")
#: Temporary memory that is never worth more launches, in bytes.
_SMALL = 2**25


def layout(group: Group) -> tuple[Any, ...]:
    """The options of a group by which a cohort is arranged: when they change, it is arranged anew."""
    return group["workspace"], group["fused"]


def structure(group: Group) -> tuple[Any, ...]:
    """The options of a group that shape its state."""
    return tuple(group[name] for name in STRUCTURAL)


class Cohort:
    """Parameters of one group and device, in its order: their buckets and their step.

    How they are arranged depends on them and the group's options alone, not on what happened before, so a training that
    is resumed goes on as it would have.
    """

    def __init__(self, index: int, group: Group, params: Sequence[Tensor]) -> None:
        self.group_index = index
        self.structure = structure(group)
        self.layout = layout(group)
        self.params = list(params)
        self.device = self.params[0].device
        total = sum(p.numel() * compute_dtype(p.dtype).itemsize for p in self.params)
        budget = max(_SMALL, group["workspace"] * total) if group["workspace"] else float("inf")
        if group["fused"]:
            budget = float("inf")  # one graph a group and dtype; the compiler plans the memory
        wide = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        self._scalars = {name: torch.zeros((), dtype=wide, device=self.device) for name in _SCALARS}
        self._values: dict[str, float] = {}
        self._weights = Constants(self.device, wide)
        most = budget * _BUCKET_SHARE
        filled = _filled(_bundles(self.params, group, most), most)
        self.buckets = [Bucket(bundles, group) for bundles in filled]
        temporary = max(budget * _REFRESH_SHARE, sum(stack.temporary for stack in self.stacks) / _PIECES)
        for stack in self.stacks:
            stack.limit(temporary)
        work = sum(stack.flops for stack in self.stacks)
        done = 0
        for stack in self.stacks:
            stack.span = (done / work, (done + stack.flops) / work)
            done += stack.flops

    @property
    def bundles(self) -> list[Bundle]:
        """Of all buckets."""
        return [bundle for bucket in self.buckets for bundle in bucket.bundles]

    @property
    def stacks(self) -> list[RootStack]:
        """Of all buckets."""
        return [stack for bucket in self.buckets for stack in bucket.stacks]

    def steps(self) -> dict[Tensor, int]:
        """How many steps each parameter has taken part in."""
        return {p: step for bundle in self.bundles for p, step in zip(bundle.params, bundle.steps, strict=True)}

    def set_steps(self, steps: dict[Tensor, int]) -> None:
        """Set the counters, after loading."""
        for bundle in self.bundles:
            bundle.steps = [steps[p] for p in bundle.params]

    def views(self) -> dict[Tensor, dict[str, Any]]:
        """State of each parameter: its step and named views into bundles and stacks.

        `left.i` and `right.i` (and, by method, `left_factor.i`, `left_moment.i`, …) belong to block i, row by row.
        """
        found: dict[Tensor, dict[str, Any]] = {p: {"step": step} for p, step in self.steps().items()}
        for bundle in self.bundles:
            for name, buffer in bundle.buffers.items():
                for p, view in zip(bundle.params, buffer.unbind(0), strict=True):
                    found[p][name] = view
        for stack in self.stacks:
            for p, name, view in stack.views():
                found[p][name] = view
        return found

    def finite(self) -> Tensor | None:
        """A 0-dim boolean, whether all gradients are finite, or `None` where there is no gradient."""
        by_dtype: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
        for p in self.params:
            if p.grad is not None:
                by_dtype[p.grad.dtype].append(p.grad)
        if not by_dtype:
            return None
        largest = [
            torch.stack(torch._foreach_norm(grads, 2, dtype=compute_dtype(dtype))).amax()
            for dtype, grads in by_dtype.items()
        ]
        flags = [(length - length).eq(0) for length in largest]  # the difference is NaN where it is not finite
        return flags[0] if len(flags) == 1 else torch.stack(flags).all()

    def step(self, group: Group, finite: Tensor) -> None:
        """One step of the parameters that have a gradient; none of them moves where `finite` is false."""
        schedule = Schedule(group["interval"], group["warmup_refreshes"], group["stagger"])
        options = self._without_numbers(group) if group["fused"] else group
        for bucket in self.buckets:
            grads = [bundle.look() for bundle in bucket.bundles]
            masks = [bundle.mask() for bundle in bucket.bundles]
            due = [stack.due(schedule, group) for stack in bucket.stacks]
            if any(grads) and group["fused"]:
                bucket.compiled()(grads, masks, [self._weighed(pieces) for pieces in due], finite, options)
            elif any(grads):
                bucket.step(grads, masks, due, finite, options)

    def _weighed(self, due: Sequence[Due]) -> list[Due]:
        """What is due with tensors for the weights, which grow with the gap between refreshes."""
        return [replace(d, pace=replace(d.pace, weight=self._weights.get((d.pace.weight,)).view(()))) for d in due]

    def _without_numbers(self, group: Group) -> Group:
        """The group's options with tensors for the numbers that schedules change: no graph then holds their values."""
        options = dict(group)
        given = {"lr": group["lr"], "momentum": group["momentum"], "weight_decay": group["weight_decay"]}
        given |= {f"beta{i}": beta for i, beta in enumerate(group.get("betas", ()), start=1)}
        for name, value in given.items():
            if isinstance(value, Tensor):
                self._scalars[name].copy_(value.reshape(()))
                self._values.pop(name, None)
            elif self._values.get(name) != value:
                self._scalars[name].fill_(value)
                self._values[name] = value
        options |= {name: self._scalars[name] for name in ("lr", "momentum")}
        if group["weight_decay"] != 0:
            options["weight_decay"] = self._scalars["weight_decay"]
        if "betas" in group:
            options["betas"] = (self._scalars["beta1"], self._scalars["beta2"])
        return options


def _order(blocking: Blocking | None, members: list[Tensor]) -> tuple[int, list[int]]:
    """Sorts what shares a bucket next to each other: one arithmetic dtype, and blocks that are alike."""
    return compute_dtype(members[0].dtype).itemsize, sorted(blocking.tiles[0].shape) if blocking else []


def _bundles(params: Sequence[Tensor], group: Group, limit: float) -> Iterator[Bundle]:
    """Bundles of at most `limit` bytes, or of one parameter; those whose blocks are alike follow each other."""
    alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        alike[p.shape, p.dtype, torch.empty_like(p, device="meta").stride()].append(p)
    routed: list[tuple[Blocking | None, list[Tensor]]] = []
    for members in alike.values():
        decision = route(tuple(members[0].shape), block_size=group["block_size"], max_dim=group["max_dim"])
        routed.append((decision.blocking, members))
    routed.sort(key=lambda pair: _order(*pair))
    for blocking, members in routed:
        each = members[0].numel() * compute_dtype(members[0].dtype).itemsize
        count = max(1, int(min(len(members), limit // each)))
        for start in range(0, len(members), count):
            yield Bundle(members[start : start + count], blocking, group)


def _filled(bundles: Iterator[Bundle], limit: float) -> Iterator[list[Bundle]]:
    """Consecutive bundles of one arithmetic dtype in lists of at most `limit` bytes, or of one bundle."""
    bucket: list[Bundle] = []
    for bundle in bundles:
        full = sum(b.bytes for b in bucket) + bundle.bytes > limit
        if bucket and (full or bundle.compute != bucket[0].compute):
            yield bucket
            bucket = []
        bucket.append(bundle)
    if bucket:
        yield bucket
