"""What several processes cost each: state, operations and bytes, by the assignment alone, without a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch

from jorge import schatten
from jorge.arrange import ParamSpec, WorkSet, arrange, refresh_flops
from jorge.cost.estimating import checked, positive
from jorge.cost.table import aligned, si
from jorge.cost.weights import weights_of
from jorge.exchange.rates import FAR, Rates
from jorge.exchange.replicated import gathered_bytes, load, spans
from jorge.exchange.routes import pieces
from jorge.exchange.segments import held, segmented, sharded
from jorge.exchange.strips import Run, assign, runs, strips
from jorge.exchange.transport import sent_dtype, summed_bytes
from jorge.methods import METHODS, Refresh
from jorge.options import Options
from jorge.routing import has_schatten_length, layout
from jorge.shards import Shards, boxes

Strategy = Literal["ddp", "ddp-shard", "ddp-alone", "fsdp", "hsdp"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "ddp-shard", "ddp-alone", "fsdp", "hsdp")


@dataclass(frozen=True)
class Distributed:
    """The cost of each process of a job; every list has an entry for each.

    Args:
        strategy: how parameters and state lie: `"ddp"` with all of the state in each process and each preconditioner
            refreshed in one, `"ddp-shard"` with preconditioners in one, `"ddp-alone"` with all refreshed in each,
            `"fsdp"` with parameters sharded along dim 0, `"hsdp"` with two replicas of that.
        interval: steps between refreshes.
        state_bytes: of optimizer state.
        refresh_flops: of a refresh of all preconditioners.
        direction_flops: of the directions in each step.
        step_bytes: sent to others in a step without a refresh.
        refresh_bytes: sent besides where one refreshes.
        step_messages: collectives in a step without a refresh.
        refresh_messages: collectives besides where one refreshes.
    """

    strategy: Strategy
    interval: int
    state_bytes: tuple[int, ...]
    refresh_flops: tuple[int, ...]
    direction_flops: tuple[int, ...]
    step_bytes: tuple[int, ...]
    refresh_bytes: tuple[int, ...]
    step_messages: int
    refresh_messages: int

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return len(self.state_bytes)

    @property
    def imbalance(self) -> float:
        """Operations of a refresh in the process that has most, over the mean."""
        return max(self.refresh_flops) * self.world_size / max(1, sum(self.refresh_flops))

    def seconds(
        self, *, flops: float = FAR.flops, bandwidth: float = FAR.bandwidth, latency: float = FAR.latency
    ) -> float:
        """A model of the time that the optimizer's products and messages take in a step, a mean over the interval.

        Nothing overlaps in it, and nothing elementwise is in it.

        Args:
            flops: that a device does in a second.
            bandwidth: bytes that it sends in a second.
            latency: seconds that a message takes besides.
        """
        for name, value in (("flops", flops), ("bandwidth", bandwidth)):
            positive(name, value)
        work = max(self.direction_flops) + max(self.refresh_flops) / self.interval
        sent = max(self.step_bytes) + max(self.refresh_bytes) / self.interval
        messages = self.step_messages + self.refresh_messages / self.interval
        return Rates(flops, bandwidth, latency).seconds(work, sent, messages)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**self.__dict__, "world_size": self.world_size, "imbalance": self.imbalance, "seconds": self.seconds()}

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [("a process", "most", "mean", "all")]
        for name, values, unit in (
            ("state", self.state_bytes, "B"),
            ("refresh", self.refresh_flops, "FLOPs"),
            ("directions, a step", self.direction_flops, "FLOPs"),
            ("sent, a step", self.step_bytes, "B"),
            ("sent, a refresh besides", self.refresh_bytes, "B"),
        ):
            figures = (max(values), sum(values) / len(values), sum(values))
            lines.append((name, *(f"{si(value)}{unit}" for value in figures)))
        return "\n".join(
            (
                f"{self.world_size} processes, {self.strategy}, interval {self.interval}",
                aligned(lines, left=1),
                f"imbalance of refreshes {self.imbalance:.3f}; {self.step_messages} messages a step, "
                f"{self.refresh_messages} more where it refreshes",
            )
        )


def distributed(
    model_or_shapes: Any,
    *,
    world_size: int,
    strategy: Strategy = "ddp",
    communication_dtype: torch.dtype | None = None,
    **options: Any,
) -> Distributed:
    """Count what each process of a job will hold, compute and send.

    Bytes are those given to others, to each what it gets; of a sum what a ring sends. They are equal to what the
    optimizer counts at its collectives (:attr:`jorge.exchange.transport.Transport.sent`), but for what processes on
    CPUs say of who has a gradient.

    Args:
        model_or_shapes: as for :func:`jorge.cost.estimate`.
        world_size: the number of processes.
        strategy: how parameters and state lie (:class:`Distributed`).
        communication_dtype: as of :class:`jorge.Jorge`.
        options: of :class:`jorge.Jorge`.

    Raises:
        TypeError: unknown options.
        ValueError: an unknown strategy, or a number of processes that it cannot have.

    >>> cost = distributed({"weight": (512, 512), "bias": (512,)}, world_size=4)
    >>> cost.imbalance, cost.refresh_flops[0] == cost.refresh_flops[3]
    (1.0, True)
    """
    chosen = checked(options)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if not isinstance(world_size, int) or world_size < 1 or (strategy == "hsdp" and world_size % 2):
        raise ValueError(f"{strategy} cannot have world_size={world_size!r}")
    specs = [
        ParamSpec(weight.shape, weight.dtype, _shards(weight.shape, world_size, strategy))
        for weight in weights_of(model_or_shapes)
    ]
    work_sets = arrange(specs, chosen)
    count = _Count(chosen, specs, work_sets, world_size, communication_dtype)
    if strategy in ("ddp", "ddp-alone"):
        return count.replicated(shares=strategy == "ddp")
    return count.owned(strategy)


def automatic(model_or_shapes: Any, *, world_size: int, rates: Rates = FAR, **options: Any) -> Strategy:
    """What `distributed="auto"` chooses under DDP: to share refreshes, or to do all of them in each process.

    Args:
        model_or_shapes: as for :func:`jorge.cost.estimate`.
        world_size: the number of processes.
        rates: of devices and links.
        options: of :class:`jorge.Jorge`.

    >>> from jorge.exchange.rates import NEAR
    >>> [automatic({"weight": (side, side)}, world_size=4, rates=NEAR) for side in (64, 4096)]
    ['ddp-alone', 'ddp']
    """
    chosen = checked(options)
    specs = [ParamSpec(weight.shape, weight.dtype) for weight in weights_of(model_or_shapes)]
    return "ddp" if load(arrange(specs, chosen), chosen, world_size).pays(rates) else "ddp-alone"


def _shards(shape: tuple[int, ...], size: int, strategy: Strategy) -> Shards | None:
    if strategy.startswith("ddp") or not shape:
        return None
    from torch.distributed.tensor import Replicate, Shard

    mesh = (size,) if strategy == "fsdp" else (2, size // 2)
    return Shards(tuple(boxes(shape, mesh, [*[Replicate()] * (len(mesh) - 1), Shard(0)])), 0)


@dataclass(frozen=True)
class _Count:
    options: Options
    specs: Sequence[ParamSpec]
    work_sets: Sequence[WorkSet]
    size: int
    dtype: torch.dtype | None

    def replicated(self, *, shares: bool) -> Distributed:
        """With all of the state in each process, whether they share refreshes or not."""
        ways = spans(self.work_sets, self.options, self.size)
        refreshed, sent = [0] * self.size, [0] * self.size
        messages = 0
        for work in self.work_sets:
            sizes = [[last - first for first, last in ways[work.number][i]] for i in range(len(work.stacks))]
            if not shares:
                sizes = [[stack.count] * self.size for stack in work.stacks]
            for stack, each in zip(work.stacks, sizes, strict=True):
                flops = self._refresh(stack.shape, stack.sides, bool(stack.measured))
                refreshed = [total + flops * blocks for total, blocks in zip(refreshed, each, strict=True)]
            if work.stacks and shares:
                given = gathered_bytes(work, sizes, self.options) * (self.size - 1)
                measured = sum(last - first for stack in work.stacks for first, last in stack.measured)
                summed = 2 * summed_bytes(measured * work.compute.itemsize, self.size) if measured else 0
                sent = [total + given + summed for total in sent]
                messages += 1 + 2 * bool(measured)
        directions = sum(
            stack.count * METHODS[self.options.method].direction_flops(stack.shape, stack.sides)
            for work in self.work_sets
            for stack in work.stacks
        )
        state = sum(_bytes(layout(s.shape, s.dtype, self.options).tensors(s.shape)) for s in self.specs)
        everywhere = self.size
        return Distributed(
            "ddp" if shares else "ddp-alone",
            self.options.interval,
            (state,) * everywhere,
            tuple(refreshed),
            (directions,) * everywhere,
            (self._flag(),) * everywhere,
            tuple(sent),
            1,
            messages,
        )

    def owned(self, strategy: Strategy) -> Distributed:
        """With each preconditioner in one process."""
        everywhere = [held(segmented(work), self.size) for work in self.work_sets]
        apart = [sharded(work, each) for work, each in zip(self.work_sets, everywhere, strict=True)]
        refreshed, directions = [0] * self.size, [0] * self.size
        state = [self._local(rank) for rank in range(self.size)]
        step, besides = [self._flag()] * self.size, [0] * self.size
        messages, more = 1, 0
        for work, owners, where in zip(
            self.work_sets, assign(self.work_sets, self.options, apart, self.size), everywhere, strict=True
        ):
            found = runs(work)
            every = list(strips(work, found))
            costs = [self._of_run(run, work) for run in found]
            for strip, owner in zip(every, owners, strict=True):
                flops, direction, nbytes = costs[strip.run]
                refreshed[owner] += flops
                directions[owner] += direction
                state[owner] += nbytes
            out, home = Counter[int](), Counter[int]()
            back = sent_dtype(self.dtype, work.compute).itemsize
            for piece, giver, owner, holders in pieces(every, owners, [run.source for run in found], where):
                out[giver] += piece.elements * work.compute.itemsize * (giver != owner)
                home[owner] += piece.elements * back * sum(other != owner for other in holders)
            measures = any(stack.measured for stack in work.stacks)
            sums, extra = self._sums(work, measures)
            for rank in range(self.size):
                step[rank] += out[rank] + home[rank] + sum(sums)
                besides[rank] += (1 + 2 * measures) * out[rank] + sum(extra)  # gradients, and what is measured of two
            messages += any(out.values()) + any(home.values()) + len(sums)
            more += (1 + 2 * measures) * any(out.values()) + len(extra)
        counts = (tuple(state), tuple(refreshed), tuple(directions), tuple(step), tuple(besides))
        return Distributed(strategy, self.options.interval, *counts, messages, more)

    def _sums(self, work: WorkSet, measures: bool) -> tuple[list[int], list[int]]:
        """Bytes of the sums over processes in a step, and of those besides where it refreshes."""
        if not work.matrices:
            return [], []
        total = sum(group.count for group in work.sources)
        found: list[int] = []
        besides: list[int] = []
        if any(group.spec.shards is not None for group in work.sources):
            found += [summed_bytes(8 * total, self.size)] * 2
            sides = sum(group.count * sum(group.blocking.matrix) for group in _adapted(work, self.options))
            found += [summed_bytes(8 * sides, self.size)] if sides else []
        if measures:
            besides.append(summed_bytes(16 * total, self.size))
        return found, besides

    def _flag(self) -> int:
        return summed_bytes(4, self.size)

    def _refresh(self, shape: tuple[int, int], sides: Any, measured: bool) -> int:
        return refresh_flops(shape, sides, self.options, Refresh()) + measured * schatten.flops(shape)

    def _of_run(self, run: Run, work: WorkSet) -> tuple[int, int, int]:
        """Operations of a refresh and of the directions of a strip, and the bytes of its state."""
        group = work.sources[run.source]
        assert group.blocking is not None
        sides, method = group.blocking.sides, METHODS[self.options.method]
        measured = has_schatten_length(group.part, sides, self.options)
        grids = layout(group.spec.shape, group.spec.dtype, self.options).grids
        flops = direction = nbytes = 0
        for number, grid in run.grids:
            flops += grid.blocks * self._refresh(grid.shape, sides, measured)
            direction += grid.blocks * method.direction_flops(grid.shape, sides)
            nbytes += grid.blocks * _bytes({k: (shape[1:], dtype) for k, (shape, dtype) in grids[number].items()})
        return flops, direction, nbytes

    def _local(self, rank: int) -> int:
        """Bytes of what is like the parameters, and of what each process has."""
        total = 0
        for spec in self.specs:
            found = layout(spec.shape, spec.dtype, self.options)
            box = spec.shape if spec.shards is None else spec.shards.boxes[rank].size
            total += _bytes({name: (tuple(box), dtype) for name, dtype in found.buffers.items()})
            total += _bytes(found.sides) + _bytes(found.scalars)
        return total


def _adapted(work: WorkSet, options: Options) -> Iterator[Any]:
    """The shape groups whose rows and columns have variances."""
    for group in work.sources:
        if layout(group.spec.shape, group.spec.dtype, options).sides:
            yield group


def _bytes(tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> int:
    total = 0
    for shape, dtype in tensors.values():
        *_, elements = accumulate(shape, lambda a, b: a * b, initial=1)
        total += elements * dtype.itemsize
    return total
