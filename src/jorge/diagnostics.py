"""What an optimizer is doing, in numbers: asked for now and then, and never paid for otherwise.

The next step is rehearsed on copies of the state and of the weights, a work set at a time, with a trace that looks on
(:mod:`jorge.rehearsal`), and so is a refresh. Nothing that is there changes. All numbers come to the host at once, and
where state lies in several processes each tells the others its part of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.options import Group, Options
from jorge.rehearsal import SUMS, Column, measured
from jorge.routing import COMPUTE_DTYPES, route_by
from jorge.schedule import Schedule
from jorge.store import GroupState
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
#: What is known of a parameter, by measure: values, each with how many blocks it stands for.
_Values = dict[str, list[tuple[float, float]]]
#: Measures of every parameter.
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
        finite: for each device whether the gradients are, in all processes that work together.
        groups: the optimizer's.
        skipped: on each device the steps that were left out there, in all and in a row, `[2]`.
    """
    columns: list[Column] = []
    for state in taking_part:
        for number in range(len(state.work_sets)):
            columns += measured(state, number, options[state.index], finite[state.device])
    values, skips = _read(columns, taking_part, skipped)
    _exchange(values, taking_part)
    return _collected(values, skips, taking_part, options, groups)


def _read(
    columns: Sequence[Column], taking_part: Sequence[GroupState], skipped: Mapping[torch.device, Tensor]
) -> tuple[dict[Tensor, _Values], list[float]]:
    """All columns, and the counts of skipped steps, brought to the host, once for each device."""
    values: dict[Tensor, _Values] = {}
    skips = [0.0, 0.0]
    for device in {state.device for state in taking_part} | set(skipped):
        mine = [column for column in columns if column.values.device == device]
        told = [skipped[device].double()] if device in skipped else []
        flat = [tensor for column in mine for tensor in (column.values, column.known) if tensor is not None]
        numbers = iter(torch.cat([*told, *flat]).tolist())
        for i in range(2 * len(told)):
            skips[i] = max(skips[i], next(numbers))
        for column in mine:
            found = [next(numbers) for _ in column.params]
            known = [1.0 if column.known is None else next(numbers) for _ in column.params]
            for p, value, weight in zip(column.params, found, known, strict=True):
                values.setdefault(p, {}).setdefault(column.key, []).append((value, weight))
    return values, skips


def _exchange(values: dict[Tensor, _Values], taking_part: Sequence[GroupState]) -> None:
    """Bring in what other processes know of parameters whose state is in several, in the same order everywhere."""
    for domain in dict.fromkeys(state.domain for state in taking_part if state.is_apart):
        states = [state for state in taking_part if state.domain == domain]
        for state in states:
            for p in state.params:
                if p in values and not state.distribution.speaks(p, domain):
                    values[p] = {key: each for key, each in values[p].items() if key not in SUMS}
        params = [p for state in states for p in state.params]
        transport = states[0].distribution.transport(domain)
        for p, *told in zip(params, *transport.objects([values.get(p, {}) for p in params]), strict=True):
            keys = dict.fromkeys(key for each in told for key in each)
            if keys:
                values[p] = {key: [pair for each in told for pair in each.get(key, ())] for key in keys}


def _collected(
    values: Mapping[Tensor, _Values],
    skips: Sequence[float],
    taking_part: Sequence[GroupState],
    options: Sequence[Options],
    groups: Sequence[Group],
) -> Diagnostics:
    found: dict[str, dict[str, float]] = {}
    sums: defaultdict[str, float] = defaultdict(float)
    ages, tiny = _ages(taking_part, options), 0
    for index, group in enumerate(groups):
        for p, name in zip(group["params"], names(group, index), strict=True):
            keys = _keys(p, options[index])
            measures = dict.fromkeys(keys, math.nan)
            if p in values:
                own = {key: _reduced(key, each) for key, each in values[p].items()}
                for key in SUMS:
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


def _mean(each: Sequence[tuple[float, float]]) -> float:
    known = [(value, weight) for value, weight in each if not math.isnan(value)]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else math.nan


def _extreme(each: Sequence[tuple[float, float]], choose: Callable[[list[float]], float]) -> float:
    values = [value for value, _ in each]
    return math.nan if any(map(math.isnan, values)) else choose(values)


_HOW: dict[str, Callable[[Sequence[tuple[float, float]]], float]] = {
    "mean": _mean,
    "min": lambda each: _extreme(each, min),
    "max": lambda each: _extreme(each, max),
    "sum": lambda each: sum(value for value, _ in each),
}


def _reduced(key: str, each: Sequence[tuple[float, float]]) -> float:
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
