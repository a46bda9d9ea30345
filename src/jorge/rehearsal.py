"""A step and a refresh of a work set, rehearsed on copies, and what is measured of them, on its device.

Where state lies in several processes each measures the blocks that it keeps and the parts of parameters that it holds;
the exchange of a step brings gradients and directions, so all processes have to ask, in the same order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jorge import grafting
from jorge.allocation import SetState
from jorge.arrange import Stack, WorkSet
from jorge.exchange import Alone, Exchange
from jorge.inputs import StepInputs, inputs_of
from jorge.methods import METHODS, State
from jorge.methods.products import largest_entries
from jorge.options import Options, Scalar
from jorge.schedule import Schedule, Scheduled
from jorge.spectrum import extreme_eigenvalues, residual
from jorge.stacking import stacked
from jorge.step import gathered, step_work_set
from jorge.store import GroupState
from jorge.trace import Trace

#: Sums of squares and products over a parameter's elements: of gradients g, weights w and updates u.
SUMS = ("gg", "ww", "uu", "gu")


@dataclass(frozen=True)
class Column:
    """Numbers on a device, one for each of some parameters.

    Args:
        key: of :data:`jorge.diagnostics.MEASURES`, or of :data:`SUMS`.
        params: the parameters; one may be there more than once.
        values: float64, `[params]`. Of what is known of blocks the mean, or the extreme.
        known: of means, how many blocks are known, float64, `[params]`; else `None`.
    """

    key: str
    params: list[Tensor]
    values: Tensor
    known: Tensor | None = None


class _Watcher(Trace):
    """Takes in what a rehearsed step sees, of a work set."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[Tensor] = []

    def moving(self, updates: Sequence[Tensor]) -> None:
        """Keep the updates: what follows may scale them in place."""
        self.updates = [update.clone() for update in updates]


def measured(state: GroupState, number: int, options: Options, finite: Tensor) -> Iterator[Column]:
    """What is known of the parameters of a work set that have a gradient.

    Args:
        state: as a step has it when it begins.
        number: of the work set.
        options: of the param group.
        finite: whether all gradients are, 0-dim.
    """
    work, tensors = state.work_sets[number], state.tensors[number]
    exchange = state.exchange if state.is_apart else Alone()  # what replicas refresh is rehearsed here too
    schedule = Schedule(options.interval, options.warmup_refreshes, options.stagger)
    watcher = _Watcher()
    inputs = inputs_of(state, number, schedule, options, watcher, None, exchange)
    if not any(inputs.grads):
        return
    grads, _ = gathered(work, inputs, finite, options)
    cut = exchange.to_owners(work, grads[len(work.groups) - len(work.matrices) :])
    exchange.arrived(work)
    _rehearse(work, tensors, inputs, finite, options, exchange, watcher)
    for i, group in enumerate(work.groups):
        rows = _known(state, group.places)
        if rows:
            size = group.parts * math.prod(group.local)
            both = [t.view(len(group.places), size) for t in (grads[i], watcher.updates[i])]
            grad, update = (_some_rows(t, rows, state) for t in both)
            owners = [state.params[group.places[row]] for row in rows]
            given = torch.stack(torch._foreach_norm(inputs.grads[i], 2, dtype=torch.float64))
            yield Column("gg", owners, given.square())  # of the gradients as they are, finite or not
            yield from _of_steps(owners, grad, update, inputs.params[i], options.lr)
    if watcher.steps:
        yield from _of_lengths(state, work, watcher, options)
    for stack, kept in zip(work.stacks, tensors.stacks, strict=True):
        if stack.count:
            blocks = stacked(stack, work, cut)
            yield from _of_stack(state, stack, work, kept, blocks, options, schedule)


def _known(state: GroupState, places: Sequence[int]) -> list[int]:
    """Which of some parameters have a gradient, by their number among these."""
    return [row for row, place in enumerate(places) if state.steps[place] is not None]


def _rehearse(
    work: WorkSet,
    tensors: SetState[Tensor],
    inputs: StepInputs,
    finite: Tensor,
    options: Options,
    exchange: Exchange,
    trace: Trace,
) -> None:
    """Take the step on copies."""

    def copied(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in named.items()}

    copies = SetState(
        [copied(each) for each in tensors.buffers], copied(tensors.scalars), [copied(each) for each in tensors.stacks]
    )
    weights = [[p.detach().clone() for p in mine] for mine in inputs.params]
    step_work_set(work, copies, replace(inputs, params=weights), finite, options, exchange, trace)


def _of_steps(
    owners: list[Tensor], grad: Tensor, update: Tensor, params: Sequence[Tensor], rate: Scalar
) -> Iterator[Column]:
    """Squared norms of weights and steps, and products of gradients and steps, of each parameter."""
    update = update * grafting.scalar(rate, update)
    weight = torch.stack([p.detach().reshape(-1).to(grad.dtype) for p in params])
    for key, first, second in (
        ("ww", weight, weight),
        ("uu", update, update),
        ("gu", grad, update),
    ):
        yield Column(key, owners, (first.double() * second.double()).sum(1))


def _of_lengths(state: GroupState, work: WorkSet, watcher: _Watcher, options: Options) -> Iterator[Column]:
    (seen,) = watcher.steps
    sizes = [group.count for group in work.matrices]
    measures = [("graft_ratio", seen.ratios)]
    if options.grafting == "sgd" and options.graft_limit is not None:
        measures.append(("limited", seen.limited))
    for key, values in measures:
        for group, mine in zip(work.matrices, torch.split(values, sizes), strict=True):
            yield from _by_parameter(key, state, group.places, mine.view(len(group.places), -1))


def _of_stack(
    state: GroupState,
    stack: Stack,
    work: WorkSet,
    mine: State,
    blocks: Tensor,
    options: Options,
    schedule: Schedule,
) -> Iterator[Column]:
    """What is known of each block of a stack that is kept here."""
    found = _of_blocks(stack, mine, blocks, options, _next(schedule, state))
    for key, values in found:
        parts = torch.split(values, [part.count for part in stack.parts])
        for part, some in zip(stack.parts, parts, strict=True):
            places = work.cut[part.group].places
            if places:
                yield from _by_parameter(key, state, places, some.view(len(places), -1))


def _of_blocks(
    stack: Stack, mine: State, blocks: Tensor, options: Options, scheduled: Scheduled
) -> list[tuple[str, Tensor]]:
    method = METHODS[options.method]
    whole: defaultdict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, stack.count, stack.chunk):
        some = slice(start, start + stack.chunk)
        grad = blocks[some]
        wide = {name: value[some].to(grad.dtype) for name, value in mine.items()}
        whole["gradient_residual"].append(residual(grad))
        whole["whitening_residual"].append(residual(method.direction(wide, grad, options.precisions[1])))
        for side, kind in zip(("left", "right"), stack.sides, strict=True):
            if kind == "full":
                root = wide[side] if method.symmetric else (wide[side] + wide[side].mT) / 2
                smallest, largest = extreme_eigenvalues(root)
                whole["smallest_eigenvalue"].append(smallest)
                whole["largest_eigenvalue"].append(largest)
        trace = Trace()
        new = method.refreshed(
            wide, grad, largest_entries([grad]), options, method.refresh_at(scheduled.number, scheduled.gap), trace
        )
        kept = [name for name in ("left", "right") if name in new]
        change = torch.stack([_norm(new[name] - wide[name]) for name in kept]).square().sum(0)
        size = torch.stack([_norm(wide[name]) for name in kept]).square().sum(0)
        whole["staleness"].append((change / size).sqrt())
        for seen in trace.refreshes:
            if seen.shares:
                shares = torch.stack([share.expand(len(grad)) for share in seen.shares.values()])
                whole["memory"].append(scheduled.gap / shares.mean(0))
            if seen.capped:
                whole["capped"].append(torch.stack(list(seen.capped.values())).double().mean(0))
    sides = stack.sides.count("full")
    joined = []
    for key, values in whole.items():
        if key.endswith("eigenvalue"):  # of one side, or of both by turns
            both = [torch.cat(values[side::sides]) for side in range(sides)]
            reduced = torch.stack(both)
            joined.append((key, reduced.amin(0) if key.startswith("smallest") else reduced.amax(0)))
        else:
            joined.append((key, torch.cat(values)))
    return joined


def _norm(tensors: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(tensors.flatten(1), dim=1)
    return found


def _some_rows(tensor: Tensor, rows: Sequence[int], state: GroupState) -> Tensor:
    """Some of a tensor's rows, without waiting for the device."""
    return tensor if len(rows) == len(tensor) else tensor.index_select(0, state.constants.get(tuple(rows)))


def _by_parameter(key: str, state: GroupState, places: Sequence[int], values: Tensor) -> Iterator[Column]:
    """Values of blocks of parameters, `[places, blocks]`, as one for each place, for those that have a gradient."""
    rows = _known(state, places)
    if rows:
        owners = [state.params[places[row]] for row in rows]
        some = _some_rows(values, rows, state).to(torch.float64)
        if key.endswith("eigenvalue"):
            yield Column(key, owners, some.amin(1) if key.startswith("smallest") else some.amax(1))
        else:
            yield Column(key, owners, some.nanmean(1), some.isnan().logical_not().sum(1, dtype=torch.float64))


def _next(schedule: Schedule, state: GroupState) -> Scheduled:
    """The next refresh of those parameters that have taken most steps."""
    step = max(step for step in state.steps if step is not None)
    return next(found for found in map(schedule.at, range(step, step + schedule.interval + 1)) if found)
