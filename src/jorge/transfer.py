"""From a first-order recipe to Jorge's options: nothing is tuned, each value follows from one by a stated rule.

Pure functions: a built `torch.optim.SGD` or `AdamW` in, options and an explanation out. The rules for SGD are the
paper's single-shot transfer (arXiv 2310.12298, as reconstructed): the same lr, momentum and warm-up, weight decay
divided by `1 − momentum`, step decay at one and two thirds. Those for AdamW are this package's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from jorge.options import DEFAULTS

Schedule = Literal["step", "cosine", "keep"]
SCHEDULES: tuple[Schedule, ...] = ("step", "cosine", "keep")

#: Options of torch's optimizers that choose an implementation, not a result.
IMPLEMENTATION = ("foreach", "fused", "differentiable")
#: Options that are checked to be at their neutral value before a transfer, or that a subclass relation brings along.
_ELSEWHERE = ("dampening", "amsgrad", "decoupled_weight_decay", "capturable")
#: Options of Jorge's that say what a model's parameters are: :func:`jorge.param_groups` sets them for any optimizer.
_OF_MODELS = {
    "batch_dims": "same: leading dims that count matrices",
    "splits": "same: matrices that lie one below the other",
    "max_dim": "same: the longest side that is not diagonal",
}


@dataclass(frozen=True)
class Line:
    """One value of a recipe: what it was, what it became, and by which rule."""

    group: int
    option: str
    was: str
    became: str
    rule: str


@dataclass(frozen=True)
class Recipe:
    """Param groups for :class:`jorge.Jorge` and how each value came about; `str()` is an aligned table."""

    groups: list[dict[str, Any]]
    lines: list[Line] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("group", "option", "was", "became", "rule")]
        rows += [(str(x.group), x.option, x.was, x.became, x.rule) for x in self.lines]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4]]).rstrip() for row in rows
        )


def recipe_from_sgd(sgd: torch.optim.SGD) -> Recipe:
    """Options that follow from a built `torch.optim.SGD`, for each of its groups.

    Raises:
        TypeError: not exactly `torch.optim.SGD`.
        ValueError: dampening, which has no counterpart.
    """
    _require(sgd, torch.optim.SGD)
    recipe = Recipe([])
    for index, group in enumerate(sgd.param_groups):
        if group["dampening"] != 0:
            raise ValueError(
                f"group {index} has dampening={group['dampening']}, which Jorge has no counterpart for: "
                "build the SGD with dampening=0 and the lr that was tuned for that"
            )
        momentum, decay = float(group["momentum"]), float(group["weight_decay"])
        if not 0 <= momentum < 1:
            raise ValueError(f"group {index} has momentum={momentum}: Jorge needs one in [0, 1)")
        options = {
            "grafting": "sgd",
            "momentum": momentum,
            "nesterov": group["nesterov"],
            "weight_decay": decay / (1 - momentum),
            "maximize": group["maximize"],
        }
        rules = {
            "momentum": "same",
            "nesterov": "same, for the direction and for the step length",
            "weight_decay": "λ/(1−μ): heavy ball's coupled decay takes λ·W/(1−μ), decoupled decay must match it",
            "maximize": "same",
        }
        lines = [Line(index, name, str(group[name]), _show(options[name]), rule) for name, rule in rules.items()]
        lines.append(Line(index, "grafting", "–", "sgd", "the step is as long as SGD's"))
        _finish(recipe, index, group, options, lines, dropped=IMPLEMENTATION)
    return recipe


def recipe_from_adamw(adamw: torch.optim.AdamW) -> Recipe:
    """Options that follow from a built `torch.optim.AdamW`, for each of its groups.

    Raises:
        TypeError: not exactly `torch.optim.AdamW`.
        ValueError: `amsgrad`, which has no counterpart.
    """
    _require(adamw, torch.optim.AdamW)
    recipe = Recipe([])
    for index, group in enumerate(adamw.param_groups):
        if group["amsgrad"]:
            raise ValueError(f"group {index} has amsgrad=True, which Jorge has no counterpart for: build it without")
        beta1, beta2 = (float(beta) for beta in group["betas"])
        options = {
            "grafting": "adam",
            "momentum": None,  # the first of betas, also while a scheduler cycles it
            "nesterov": True,
            "betas": (beta1, beta2),
            "eps": float(group["eps"]),
            "beta2_decay": DEFAULTS["beta2_decay"],
            "graft_memory": DEFAULTS["graft_memory"],
            "graft_norm": DEFAULTS["graft_norm"],
            "adapt_variance": DEFAULTS["adapt_variance"],
            "weight_decay": float(group["weight_decay"]),
            "maximize": group["maximize"],
            "capturable": group["capturable"],
        }
        rules = {
            "betas": "same; the first average is what is preconditioned",
            "eps": "same",
            "weight_decay": "same: decoupled in both",
            "maximize": "same",
            "capturable": "same",
        }
        lines = [Line(index, name, str(group[name]), _show(options[name]), rule) for name, rule in rules.items()]
        lines.append(Line(index, "momentum", "–", _show(beta1), "the first of betas"))
        lines.append(
            Line(index, "nesterov", "–", "True", "the average looks ahead, for direction and length, as NAdam's")
        )
        lines.append(Line(index, "grafting", "–", "adam", "the step is as long as Adam's"))
        lines.append(Line(index, "adapt_variance", "–", "True", "linear maps: rows and columns levelled by half"))
        lines.append(
            Line(index, "graft_norm", "–", DEFAULTS["graft_norm"], "linear maps: in the Schatten norm of order 4")
        )
        lines.append(
            Line(index, "beta2_decay", "–", _show(DEFAULTS["beta2_decay"]), "the length forgets as Adafactor's does")
        )
        lines.append(Line(index, "graft_memory", "–", _show(DEFAULTS["graft_memory"]), "and remembers so many steps"))
        _finish(recipe, index, group, options, lines, dropped=IMPLEMENTATION)
    return recipe


Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def build(
    kind: Callable[..., Optimizer],
    recipe: Recipe,
    total_steps: int | None,
    warmup_steps: int,
    schedule: Schedule,
    explain: bool,
    overrides: dict[str, Any],
) -> tuple[Optimizer, LambdaLR]:
    """The optimizer of a recipe, with some options given by the caller for every group, and its schedule.

    Raises:
        TypeError: parameters among the options.
        ValueError: as :func:`lr_factor`.
    """
    factor = lr_factor(schedule, total_steps=total_steps, warmup_steps=warmup_steps)
    if "params" in overrides:
        raise TypeError("params come from the optimizer that is transferred: use add_param_group() for more")
    groups = [{**group, **overrides} for group in recipe.groups]
    first = {
        name: value for name, value in groups[0].items() if name in DEFAULTS and name not in ("lr", *_OF_MODELS)
    } | overrides
    optimizer = kind(groups, **{"lr": groups[0]["lr"], **first})
    if explain:
        print(recipe)
        print(explain_schedule(schedule, total_steps, warmup_steps))
        if overrides:
            print("given by the caller:", ", ".join(f"{name}={value!r}" for name, value in overrides.items()))
    return optimizer, LambdaLR(optimizer, factor)


def _require(optimizer: Any, kind: type[torch.optim.Optimizer]) -> None:
    if type(optimizer) is not kind:
        raise TypeError(
            f"expected a built torch.optim.{kind.__name__}, got {type(optimizer).__name__}: the rules hold for "
            f"torch's own {kind.__name__} alone, as a subclass may do something else with the same options. "
            f"Build a torch.optim.{kind.__name__} with the recipe's values and pass that"
        )


def _finish(
    recipe: Recipe,
    index: int,
    group: dict[str, Any],
    options: dict[str, Any],
    lines: list[Line],
    *,
    dropped: tuple[str, ...],
) -> None:
    """Add the lr, the parameters and what was left behind; the group's lr before its scheduler touched it."""
    if cycled := [key for key in ("max_lr", "base_momentum", "max_momentum") if key in group]:
        raise ValueError(
            f"group {index} has {', '.join(cycled)}: a scheduler that cycles lr or momentum has changed the recipe's "
            "values; transfer first, and attach the scheduler to the optimizer that comes out"
        )
    if "initial_lr" in group and index == 0:
        warnings.warn(
            "a scheduler is attached to the optimizer that is transferred, and would go on with that one: build it "
            "anew on the optimizer that comes out. The lr that is taken is the recipe's, before a scheduler changed it",
            stacklevel=4,  # of who calls `from_sgd` or `from_adamw`
        )
    lr = group.get("initial_lr", group["lr"])
    options["lr"] = lr.detach().clone() if isinstance(lr, Tensor) else lr
    rule = "same" if "initial_lr" not in group else "same: the recipe's, before its scheduler changed it"
    lines.insert(0, Line(index, "lr", _show(lr), _show(lr), rule))
    rule = "left out: it chooses torch's implementation, not a result"
    lines += [Line(index, name, str(group[name]), "–", rule) for name in dropped if group.get(name)]
    seen = {line.option for line in lines} | {"params", "param_names", "initial_lr", *_ELSEWHERE, *dropped}
    for key in [key for key in group if key not in seen]:  # of the training program, such as `lr_scale`
        if key in DEFAULTS and key not in _OF_MODELS:
            lines.append(Line(index, key, str(group[key]), "–", "left out: an option of Jorge's has this name"))
            continue
        options[key] = group[key]
        rule = _OF_MODELS.get(key, "same: kept for the program that set it")
        lines.append(Line(index, key, str(group[key]), str(group[key]), rule))
    names = group.get("param_names")
    params = list(zip(names, group["params"], strict=True)) if names else list(group["params"])
    recipe.groups.append({"params": params, **options})
    recipe.lines.extend(lines)


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def lr_factor(schedule: Schedule, *, total_steps: int | None, warmup_steps: int = 0) -> Callable[[int], float]:
    """The schedule as a factor on lr at step t (from 0): linear warm-up, then `step`, `cosine` or no change.

    `step` is the paper's: ×0.1 at one third and again at two thirds of `total_steps`.

    Raises:
        ValueError: unknown schedule, no total for a schedule that needs one, or a warm-up that does not fit it.

    >>> factor = lr_factor("step", total_steps=90, warmup_steps=10)
    >>> [round(factor(t), 3) for t in (0, 9, 10, 29, 30, 60)]
    [0.1, 1.0, 1.0, 1.0, 0.1, 0.01]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")
    for name, value, least in (("total_steps", total_steps, 1), ("warmup_steps", warmup_steps, 0)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if total_steps is None and schedule != "keep":
        raise ValueError(
            f"schedule={schedule!r} needs total_steps, the number of optimizer steps of the whole training; with "
            "schedule='keep' you bring a scheduler of your own"
        )
    if total_steps is not None and warmup_steps > total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} is more than total_steps={total_steps}")
    return _Factor(schedule, total_steps or 0, warmup_steps)


@dataclass(frozen=True)
class _Factor:
    """A class, not a closure, so that a scheduler that holds it can be pickled."""

    schedule: Schedule
    total_steps: int
    warmup_steps: int

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "step":
            return 0.1 ** min(2, 3 * step // self.total_steps)
        if self.schedule == "cosine":
            done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 1.0


def explain_schedule(schedule: Schedule, total_steps: int | None, warmup_steps: int) -> str:
    """The schedule in words, for the explanation of a transfer."""
    ramp = f"linear warm-up over {warmup_steps} steps, then " if warmup_steps else ""
    words = {
        "step": f"lr × 0.1 at one third and two thirds of {total_steps} steps (the paper's)",
        "cosine": f"cosine to zero at {total_steps} steps",
        "keep": "lr unchanged: attach the schedule of the recipe",
    }
    return f"schedule: {ramp}{words[schedule]}"
