"""What an optimizer is doing, in numbers: asked for now and then, and never paid for otherwise.

The next step is rehearsed on copies of the state and of the weights, a work set at a time, with a trace that looks on
(:mod:`jorge.trace`), and so is a refresh. Nothing that is there changes. All numbers come to the host at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jorge import grafting
from jorge.allocation import SetState
from jorge.arrange import Stack, WorkSet
from jorge.exchange import Alone
from jorge.inputs import StepInputs, inputs_of
from jorge.methods import METHODS, State
from jorge.methods.products import largest_entry
from jorge.options import Group, Options, Scalar
from jorge.parameters import BITS, gather_gradients
from jorge.routing import COMPUTE_DTYPES, route_by
from jorge.schedule import Schedule, Scheduled
from jorge.spectrum import extreme_eigenvalues, residual
from jorge.stacking import stacked
from jorge.step import step_work_set
from jorge.store import GroupState
from jorge.trace import Trace
from jorge.validation import names

#: What is told of a parameter, in the order of the table; how the numbers of its blocks become one, and those of all
#: parameters; and what it is.
MEASURES: dict[str, tuple[str, str]] = {
    "grad_norm": ("norm", "norm of the gradient"),
    "weight_norm": ("norm", "norm of the weights"),
    "update_norm": ("norm", "norm of the step, with the learning rate and without weight decay"),
    "update_to_weight": ("ratio", "norm of the step over that of the weights"),
    "cosine": ("ratio", "cosine between the step and the descent along the gradient"),
    "graft_ratio": ("mean", "what the direction is multiplied by to be as long as Adam's step, or SGD's"),
    "limited": ("mean", "share of its matrices whose length the limit on sudden growth cuts"),
    "gradient_residual": ("mean", "how far the gradient is from white: 0 where all its singular values are equal"),
    "whitening_residual": ("mean", "the same of the preconditioned gradient"),
    "smallest_eigenvalue": ("min", "of its preconditioners; with whitening their mean diagonal is 1"),
    "largest_eigenvalue": ("max", "likewise"),
    "memory": ("mean", "steps that the preconditioners remember: the gap between refreshes over a new one's weight"),
    "capped": ("mean", "share of its blocks whose refresh is capped: the gradient has grown faster than it follows"),
    "staleness": ("mean", "by how much a refresh now would change the preconditioners, over their norm"),
    "steps_since_refresh": ("max", "steps since they were refreshed"),
}
#: Those of every parameter.
_OF_STEPS = ("grad_norm", "weight_norm", "update_norm", "update_to_weight", "cosine")
#: Those of the printed table, and its headings.
_COLUMNS = {
    "grad_norm": "grad_norm",
    "update_to_weight": "update÷weight",
    "cosine": "cosine",
    "graft_ratio": "graft_ratio",
    "gradient_residual": "gradient_res.",
    "whitening_residual": "whitening_res.",
    "smallest_eigenvalue": "smallest_eig.",
    "largest_eigenvalue": "largest_eig.",
    "memory": "memory",
    "staleness": "staleness",
}


@dataclass(frozen=True)
class Diagnostics:
    """What :meth:`jorge.Jorge.diagnostics` returns: plain floats, by parameter and for all of them.

    Args:
        parameters: by name, then by measure (:data:`MEASURES`); a vector has those of steps alone. What is not known,
            such as of a parameter without a gradient, is NaN: keys stay the same from call to call.
        overall: by measure: norms of all, means, the smallest and the largest; and `skipped_steps`,
            `skipped_in_a_row`, and `tiny_gradients`: how many are below :func:`least_gradient`.
    """

    parameters: Mapping[str, Mapping[str, float]]
    overall: Mapping[str, float]

    def flat(self, prefix: str = "jorge/") -> dict[str, float]:
        """All numbers by one key each, as loggers take them: `jorge/cosine`, `jorge/0.weight/cosine`."""
        found = {f"{prefix}{key}": value for key, value in self.overall.items()}
        for name, values in self.parameters.items():
            found |= {f"{prefix}{name}/{key}": value for key, value in values.items()}
        return found

    def __str__(self) -> str:
        table = [["parameter", *_COLUMNS.values()]]
        for name, values in [*self.parameters.items(), ("all", self.overall)]:
            table.append([name, *(_shown(key, values.get(key, math.nan)) for key in _COLUMNS)])
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
        lines.insert(1, "─" * len(lines[0]))
        if self.parameters and all(math.isnan(each["weight_norm"]) for each in self.parameters.values()):
            lines.append("no gradient is there: ask after backward() and before zero_grad(), from the first step on")
        total, last = (self.overall[key] for key in ("skipped_steps", "skipped_in_a_row"))
        lines.append(f"{total:.0f} steps skipped, {last:.0f} in a row at the end")
        if tiny := self.overall["tiny_gradients"]:
            lines.append(f"{tiny:.0f} gradients below eps, or so small that their squares underflow: multiply the loss")
        return "\n".join(lines)


def _shown(key: str, value: float) -> str:
    """Three digits; what is not known is a dash, and a gradient that is not finite is shown."""
    return "–" if math.isnan(value) and key != "grad_norm" else f"{value:.3g}"


def least_gradient(shape: Sequence[int], dtype: torch.dtype, options: Options) -> float:
    """The norm of a parameter's gradient below which its step is shorter than the step length says.

    There it falls with the gradient: its root mean square is below Adam's eps, or its squares underflow.
    """
    underflow = math.sqrt(torch.finfo(COMPUTE_DTYPES[dtype]).tiny)
    least = max(options.eps, underflow) if options.grafting == "adam" else underflow
    return least * math.sqrt(math.prod(shape))


class _Column:
    """Numbers on a device, one for each of some parameters, and how many blocks each stands for."""

    def __init__(self, key: str, params: Sequence[Tensor], values: Tensor, weight: int) -> None:
        self.key, self.params, self.values, self.weight = key, list(params), values.to(torch.float64), weight


class _Watcher(Trace):
    """Takes in what a rehearsed step sees, of a work set."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[Tensor] = []

    def moving(self, updates: Sequence[Tensor]) -> None:
        """Keep the updates: what follows may scale them in place."""
        self.updates = [update.clone() for update in updates]


def diagnose(
    taking_part: Sequence[GroupState],
    options: Sequence[Options],
    finite: Mapping[torch.device, Tensor],
    groups: Sequence[Group],
    skipped: Mapping[torch.device, Tensor],
) -> Diagnostics:
    """The numbers of all parameters that have a gradient.

    Args:
        taking_part: their state, as a step has it when it begins.
        options: of each param group.
        finite: for each device whether the gradients are.
        groups: the optimizer's.
        skipped: on each device the steps that were left out there, in all and in a row, `[2]`.
    """
    columns: list[_Column] = []
    for state in taking_part:
        chosen = options[state.index]
        for number, work in enumerate(state.work_sets):
            columns += _of_work_set(state, number, work, chosen, finite[state.device])
    return _collected(columns, taking_part, options, groups, skipped)


# --- on the devices ---------------------------------------------------------------------------------------------------


def _of_work_set(state: GroupState, number: int, work: WorkSet, options: Options, finite: Tensor) -> Iterator[_Column]:
    schedule = Schedule(options.interval, options.warmup_refreshes, options.stagger)
    watcher = _Watcher()
    inputs = inputs_of(state, number, schedule, options, watcher, None, Alone())  # what others refresh is rehearsed too
    if not any(inputs.grads):
        return
    tensors = state.tensors[number]
    grads = gather_gradients(
        work, inputs.grads, inputs.present, finite.to(BITS[work.compute]), maximize=options.maximize
    )
    _rehearse(work, tensors, inputs, finite, options, watcher)
    having: list[list[int]] = []
    for group, mine in zip(work.groups, inputs.present, strict=True):
        having.append([i for i in range(len(group.places)) if mine is None or mine[i]])
    for i, (group, rows) in enumerate(zip(work.groups, having, strict=True)):
        if rows:
            both = [t.view(len(group.places), -1) for t in (grads[i], watcher.updates[i])]
            grad, update = (_some_rows(t, rows, state) for t in both)
            owners = [state.params[group.places[row]] for row in rows]
            given = torch.stack(torch._foreach_norm(inputs.grads[i], 2, dtype=torch.float64))
            yield _Column("gg", owners, given.square(), 1)  # of the gradients as they are, finite or not
            yield from _of_steps(owners, grad, update, inputs.params[i], options.lr)
    vectors = len(work.groups) - len(work.matrices)
    if watcher.steps:
        yield from _of_lengths(state, work, watcher, having[vectors:], options)
    for stack, kept in zip(work.stacks, tensors.stacks, strict=True):
        blocks = stacked(stack, work, grads[vectors:])
        yield from _of_stack(state, stack, work, kept, blocks, having[vectors:], options, schedule)


def _rehearse(
    work: WorkSet, tensors: SetState[Tensor], inputs: StepInputs, finite: Tensor, options: Options, trace: Trace
) -> None:
    """Take the step on copies."""

    def copied(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in named.items()}

    copies = SetState(
        [copied(each) for each in tensors.buffers], copied(tensors.scalars), [copied(each) for each in tensors.stacks]
    )
    weights = [[p.detach().clone() for p in mine] for mine in inputs.params]
    step_work_set(work, copies, replace(inputs, params=weights), finite, options, Alone(), trace)


def _of_steps(
    owners: Sequence[Tensor], grad: Tensor, update: Tensor, params: Sequence[Tensor], rate: Scalar
) -> Iterator[_Column]:
    """Squared norms of weights and steps, and products of gradients and steps, of each parameter."""
    update = update * grafting.scalar(rate, update)
    weight = torch.stack([p.detach().reshape(-1).to(grad.dtype) for p in params])
    for key, first, second in (
        ("ww", weight, weight),
        ("uu", update, update),
        ("gu", grad, update),
    ):
        yield _Column(key, owners, (first.double() * second.double()).sum(1), 1)


def _of_lengths(
    state: GroupState, work: WorkSet, watcher: _Watcher, having: Sequence[Sequence[int]], options: Options
) -> Iterator[_Column]:
    (seen,) = watcher.steps
    sizes = [group.count for group in work.matrices]
    measures = [("graft_ratio", seen.ratios)]
    if options.grafting == "sgd" and options.graft_limit is not None:
        measures.append(("limited", seen.limited))
    for key, values in measures:
        for group, mine, rows in zip(work.matrices, torch.split(values, sizes), having, strict=True):
            yield from _by_parameter(key, state, group.places, mine.view(len(group.places), -1), rows)


def _of_stack(
    state: GroupState,
    stack: Stack,
    work: WorkSet,
    mine: State,
    blocks: Tensor,
    having: Sequence[Sequence[int]],
    options: Options,
    schedule: Schedule,
) -> Iterator[_Column]:
    """What is known of each block of a stack."""
    found = _of_blocks(stack, mine, blocks, options, _next(schedule, state))
    for key, values in found:
        parts = torch.split(values, [part.count for part in stack.parts])
        for part, some in zip(stack.parts, parts, strict=True):
            group = work.sources[part.source]
            yield from _by_parameter(key, state, group.places, some.view(len(group.places), -1), having[part.group])


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
            wide, grad, largest_entry(grad), options, method.refresh_at(scheduled.number, scheduled.gap), trace
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


def _by_parameter(
    key: str, state: GroupState, places: Sequence[int], values: Tensor, rows: Sequence[int]
) -> Iterator[_Column]:
    """Values of each parameter's blocks, `[parameters, blocks]`, as one each, for those that have a gradient."""
    how = MEASURES[key][0]
    values = values.to(torch.float64)
    reduced = {"min": values.amin, "max": values.amax, "mean": values.nanmean}[how](1)
    if rows:
        owners = [state.params[places[row]] for row in rows]
        yield _Column(key, owners, _some_rows(reduced, rows, state), values.shape[1])


def _next(schedule: Schedule, state: GroupState) -> Scheduled:
    """The next refresh of those parameters that have taken most steps."""
    step = max(step for step in state.steps if step is not None)
    return next(found for found in map(schedule.at, range(step, step + schedule.interval + 1)) if found)


# --- on the host ------------------------------------------------------------------------------------------------------


def _collected(
    columns: Sequence[_Column],
    taking_part: Sequence[GroupState],
    options: Sequence[Options],
    groups: Sequence[Group],
    skipped: Mapping[torch.device, Tensor],
) -> Diagnostics:
    """All columns brought to the host, once for each device."""
    values: defaultdict[Tensor, defaultdict[str, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    skips = [0.0, 0.0]
    for device in {state.device for state in taking_part} | set(skipped):
        mine = [column for column in columns if column.values.device == device]
        told = [skipped[device].double()] if device in skipped else []
        numbers = iter(torch.cat([*told, *(column.values for column in mine)]).tolist())
        for i in range(2 * len(told)):
            skips[i] = max(skips[i], next(numbers))
        for column in mine:
            for p in column.params:
                values[p][column.key].append((next(numbers), column.weight))
    found: dict[str, dict[str, float]] = {}
    sums: defaultdict[str, float] = defaultdict(float)
    ages, tiny = _ages(taking_part, options), 0
    for index, group in enumerate(groups):
        for p, name in zip(group["params"], names(group, index), strict=True):
            keys = _keys(p, options[index])
            measures = dict.fromkeys(keys, math.nan)
            if p in values:
                own = {key: _reduced(key, each) for key, each in values[p].items()}
                for key in ("gg", "ww", "uu", "gu"):
                    sums[key] += own[key]
                measures |= _of_sums(own) | {key: value for key, value in own.items() if key in keys}
                tiny += 0 < measures["grad_norm"] < least_gradient(p.shape, p.dtype, options[index])
                if "steps_since_refresh" in keys and p in ages:
                    measures["steps_since_refresh"] = ages[p]
            if keys:
                found[f"{name} (group {index})" if name in found else name] = measures
    overall = dict.fromkeys((key for key in MEASURES if any(key in each for each in found.values())), math.nan)
    for key, value in _of_sums(sums).items() if sums else ():
        overall[key] = value
    for key in overall:
        each = [values[key] for values in found.values() if key in values and not math.isnan(values[key])]
        if each and key not in _OF_STEPS:
            overall[key] = _HOW[MEASURES[key][0]]([(value, 1) for value in each])
    counts = {"skipped_steps": skips[0], "skipped_in_a_row": skips[1], "tiny_gradients": float(tiny)}
    return Diagnostics(found, overall | counts)


def _keys(p: Tensor, options: Options) -> tuple[str, ...]:
    """What is told of a parameter: always the same, whether it has a gradient now or not."""
    kind = route_by(tuple(p.shape), options).kind
    if kind != "matrix":
        return _OF_STEPS if kind == "vector" else ()
    limits = options.grafting == "sgd" and options.graft_limit is not None
    return tuple(key for key in MEASURES if key != "limited" or limits)


def _mean(each: Sequence[tuple[float, int]]) -> float:
    known = [(value, weight) for value, weight in each if not math.isnan(value)]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else math.nan


_HOW: dict[str, Callable[[Sequence[tuple[float, int]]], float]] = {
    "mean": _mean,
    "min": lambda each: min(value for value, _ in each),
    "max": lambda each: max(value for value, _ in each),
    "sum": lambda each: sum(value for value, _ in each),
}


def _reduced(key: str, each: Sequence[tuple[float, int]]) -> float:
    return _HOW[MEASURES[key][0] if key in MEASURES else "sum"](each)


def _of_sums(sums: Mapping[str, float]) -> dict[str, float]:
    """Norms, ratio and cosine from squared norms and the product of gradient and step."""
    grad, weight, update = (math.sqrt(sums[key]) for key in ("gg", "ww", "uu"))
    found = {"grad_norm": grad, "weight_norm": weight, "update_norm": update}
    found["update_to_weight"] = update / weight if weight else math.nan
    found["cosine"] = sums["gu"] / (grad * update) if grad * update else math.nan
    return found


def _ages(taking_part: Sequence[GroupState], options: Sequence[Options]) -> dict[Tensor, float]:
    """Steps since each parameter's last refresh; a staggered one has as many as it has parts."""
    found: dict[Tensor, float] = {}
    for state in taking_part:
        chosen = options[state.index]
        if chosen.stagger:
            continue
        schedule = Schedule(chosen.interval, chosen.warmup_refreshes)
        for p, entry in zip(state.params, state.entries, strict=True):
            step = entry["step"]
            ago = next((ago for ago in range(chosen.interval + 1) if schedule.at(step - ago)), None)
            if ago is not None:
                found[p] = float(ago)
    return found
