"""The step on the parameters of one group and device that have had a gradient.

Each parameter counts the steps in which it had a gradient, so a layer that is unfrozen late, or is trained every other
step, has its own warm-up and interval.

A :class:`Cohort` is worked on bucket by bucket. A :class:`Bucket` holds bundles of parameters and the stacks of their
blocks; gradients, directions and updates live for one bucket at a time, which bounds the temporary memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from jorge import grafting
from jorge.blocks import Blocking, Side
from jorge.bundles import Bundle
from jorge.methods import METHODS, RootOptions
from jorge.roots import Precision
from jorge.routing import compute_dtype, route
from jorge.schedule import Schedule
from jorge.stacks import Due, Member, RootStack

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


class Bucket:
    """Bundles that are worked on together, and the stacks of their blocks."""

    def __init__(self, bundles: Sequence[Bundle], group: Group) -> None:
        self.bundles = list(bundles)
        found: defaultdict[tuple[tuple[int, int], tuple[Side, Side], torch.dtype], list[Member]] = defaultdict(list)
        for bundle in bundles:
            blocking = bundle.blocking
            for tile in blocking.tiles if blocking else ():
                assert blocking is not None
                found[tile.shape, (blocking.left, blocking.right), bundle.compute].append(Member(bundle, tile, False))
        for (shape, sides, compute), members in list(found.items()):
            turned = (shape[::-1], sides[::-1], compute)
            # Its transposed twin takes it in: L and R change places, and would be transposed were they not symmetric.
            if shape[0] > shape[1] and turned in found and METHODS[group["method"]].symmetric:
                found[turned] += [Member(member.bundle, member.tile, True) for member in members]
                del found[shape, sides, compute]
        self.stacks = [RootStack(members, shape, sides, group) for (shape, sides, _), members in found.items()]
        self.histories = self._histories(group)
        self._compiled: Callable[..., None] | None = None

    def _histories(self, group: Group) -> list[tuple[list[Bundle], Tensor]]:
        """The bundles whose length is SGD's, by dtype, with the lengths of their steps (:func:`grafting.limited`)."""
        found: defaultdict[torch.dtype, list[Bundle]] = defaultdict(list)
        for bundle in self.bundles if group["grafting"] == "sgd" else ():
            if bundle.blocking is not None:
                found[bundle.compute].append(bundle)
        histories = []
        for dtype, bundles in found.items():
            sizes = [len(bundle.params) for bundle in bundles]
            history = torch.zeros(sum(sizes), 2, dtype=dtype, device=bundles[0].params[0].device)
            for bundle, part in zip(bundles, torch.split(history, sizes), strict=True):
                bundle.buffers["graft_length"] = part
            histories.append((bundles, history))
        return histories

    def compiled(self) -> Callable[..., None]:
        """:meth:`step` through `torch.compile`: one graph for each kind of step (see :class:`~jorge.methods.Pace`)."""
        if self._compiled is None:
            plain = Bucket.step  # a code object of its own, as the limit on recompilations counts by code object
            own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
            self._compiled = torch.compile(MethodType(own, self), dynamic=False)
        return self._compiled

    def gather(self, grads: Sequence[Sequence[Tensor]], *, maximize: bool) -> dict[Bundle, Tensor]:
        """The gradients, copied to where they can be worked on."""
        works: dict[Bundle, Tensor] = {}
        rooms: list[Tensor] = []
        sources: list[Tensor] = []
        for bundle, some in zip(self.bundles, grads, strict=True):
            works[bundle], views = bundle.room()
            rooms += views
            sources += some
        torch._foreach_copy_(rooms, sources)
        if maximize:
            torch._foreach_neg_(list(works.values()))
        return works

    def step(
        self,
        grads: Sequence[Sequence[Tensor]],
        masks: Sequence[Tensor | None],
        due: Sequence[Sequence[Due]],
        finite: Tensor,
        group: Group,
    ) -> None:
        """One step of the parameters that have a gradient; none of them moves where `finite` is false.

        Reads nothing that changes from step to step but its arguments, so that it can be compiled.

        Args:
            grads: of each bundle, those that there are.
            masks: of each bundle, who has a gradient; `None` where all have one.
            due: of each stack, what is refreshed.
            finite: 0-dim boolean.
            group: options of the param group; its numbers may be 0-dim tensors.
        """
        works = self.gather(grads, maximize=group["maximize"])
        lengths: dict[Bundle, Tensor] = {}
        actives: dict[Bundle, Tensor] = {}
        for bundle, mask in zip(self.bundles, masks, strict=True):
            work = works[bundle]
            actives[bundle] = active = finite if mask is None else mask & finite
            work.masked_fill_(~finite, 0)
            grafted = bundle.graft(work, active, group)
            if bundle.blocking is None:
                works[bundle] = grafted * active
            else:
                lengths[bundle] = grafting.norms(grafted)
        if group["graft_limit"] is not None:
            self._limit(lengths, actives, group["graft_limit"])
        refresh_precision, direction_precision = precisions(group)
        options = RootOptions(
            group["preconditioner_beta2"],
            group["damping"],
            group["init"],
            group["root_eps"],
            group["degree"],
            refresh_precision,
        )
        for stack, pieces in zip(self.stacks, due, strict=True):
            stack.precondition(works, pieces, group["method"], options, direction_precision)
        for bundle, length in lengths.items():
            works[bundle] = bundle.update(works[bundle], length, actives[bundle], group)
        self._write(works, finite, group)

    def _limit(self, lengths: dict[Bundle, Tensor], actives: dict[Bundle, Tensor], limit: float) -> None:
        """Shorten what is suddenly long; all bundles at once, so that launches do not grow with their number."""
        for bundles, history in self.histories:
            sizes = [len(bundle.params) for bundle in bundles]
            together = torch.cat([lengths[bundle].flatten() for bundle in bundles])
            active = torch.cat(
                [actives[bundle].reshape(-1).expand(size) for bundle, size in zip(bundles, sizes, strict=True)]
            )
            shortened = grafting.limited(together, history, active, limit)
            for bundle, part in zip(bundles, torch.split(shortened, sizes), strict=True):
                lengths[bundle] = part.view_as(lengths[bundle])

    def _write(self, works: dict[Bundle, Tensor], finite: Tensor, group: Group) -> None:
        """`W ← W − lr·λ·W − lr·U`, rounded once where the parameters are of lower precision than the arithmetic."""
        lr, decay = group["lr"], group["weight_decay"]
        params: list[Tensor] = []
        updates: list[Tensor] = []
        scale = 1.0 if isinstance(lr, Tensor) else lr
        for bundle, work in works.items():
            rate = lr
            if isinstance(lr, Tensor):  # alpha= takes no tensor, and reading it back would wait for the device
                rate = grafting.scalar(lr, work)
                work.mul_(rate)
            decays = isinstance(decay, Tensor) or decay != 0
            keep = grafting.fading(finite, 1 - rate * decay, work) if decays else None
            pairs = zip(bundle.params, work.unbind(0), bundle.present, strict=True)
            chosen = [(p, update) for p, update, present in pairs if present]
            some, steps = [p for p, _ in chosen], [update for _, update in chosen]
            if not some:
                continue
            if some[0].dtype != bundle.compute:
                wide = [p.to(bundle.compute) for p in some]
                if keep is not None:
                    torch._foreach_mul_(wide, keep)
                torch._foreach_add_(wide, steps, alpha=-scale)
                torch._foreach_copy_(some, wide)
                continue
            if keep is not None:
                torch._foreach_mul_(some, keep)
            params += some
            updates += steps
        if params:
            torch._foreach_add_(params, updates, alpha=-scale)


def precisions(group: Group) -> tuple[Precision, Precision]:
    """Precision of the products of a refresh and of the direction."""
    given = group["matmul_precision"]
    return (given[0], given[1]) if isinstance(given, (tuple, list)) else (given, given)


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
            budget = float("inf")  # one graph a group; the compiler plans the memory
        wide = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        self._scalars = {name: torch.zeros((), dtype=wide, device=self.device) for name in _SCALARS}
        self._values: dict[str, float] = {}
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
        lengths = [
            torch.stack(torch._foreach_norm(grads, 2, dtype=compute_dtype(dtype))) for dtype, grads in by_dtype.items()
        ]
        flags = [torch.isfinite(length).all() for length in lengths]
        return flags[0] if len(flags) == 1 else torch.stack(flags).all()

    def step(self, group: Group, finite: Tensor) -> None:
        """One step of the parameters that have a gradient; none of them moves where `finite` is false."""
        schedule = Schedule(group["interval"], group["warmup_refreshes"], group["stagger"])
        options = self._without_numbers(group) if group["fused"] else group
        for bucket in self.buckets:
            grads = [bundle.look() for bundle in bucket.bundles]
            masks = [bundle.mask() for bundle in bucket.bundles]
            due = [stack.due(schedule, group) for stack in bucket.stacks]
            if any(grads):
                (bucket.compiled() if group["fused"] else bucket.step)(grads, masks, due, finite, options)

    def _without_numbers(self, group: Group) -> Group:
        """The group's options with tensors for the numbers that schedules change: no graph then holds their values."""
        options = dict(group)
        given = {"lr": group["lr"], "momentum": group["momentum"], "weight_decay": group["weight_decay"]}
        given |= {f"beta{i}": beta for i, beta in enumerate(group.get("betas", ()), start=1)}
        for name, value in given.items():
            if isinstance(value, Tensor):
                self._scalars[name].copy_(value.reshape(()))
            elif self._values.get(name) != value:
                self._scalars[name].fill_(value)
                self._values[name] = value
        options |= {name: self._scalars[name] for name in ("lr", "momentum")}
        if group["weight_decay"] != 0:
            options["weight_decay"] = self._scalars["weight_decay"]
        if "betas" in group:
            options["betas"] = (self._scalars["beta1"], self._scalars["beta2"])
        return options


def _bundles(params: Sequence[Tensor], group: Group, limit: float) -> Iterator[Bundle]:
    """Bundles of at most `limit` bytes, or of one parameter; those whose blocks are alike follow each other."""
    alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        alike[p.shape, p.dtype, torch.empty_like(p, device="meta").stride()].append(p)
    routed: list[tuple[Blocking | None, list[Tensor]]] = []
    for members in alike.values():
        decision = route(tuple(members[0].shape), block_size=group["block_size"], max_dim=group["max_dim"])
        routed.append((decision.blocking, members))
    routed.sort(key=lambda pair: sorted(pair[0].tiles[0].shape) if pair[0] else [])
    for blocking, members in routed:
        each = members[0].numel() * compute_dtype(members[0].dtype).itemsize
        count = max(1, int(min(len(members), limit // each)))
        for start in range(0, len(members), count):
            yield Bundle(members[start : start + count], blocking, group)


def _filled(bundles: Iterator[Bundle], limit: float) -> Iterator[list[Bundle]]:
    """Consecutive bundles in lists of at most `limit` bytes, or of one bundle."""
    bucket: list[Bundle] = []
    for bundle in bundles:
        if bucket and sum(b.bytes for b in bucket) + bundle.bytes > limit:
            yield bucket
            bucket = []
        bucket.append(bundle)
    if bucket:
        yield bucket
