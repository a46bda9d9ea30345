"""The optimizers of a comparison, by name: each is built from a task's first-order recipe and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from jorge import Jorge
from jorge.lab.task import Task
from jorge.transfer import lr_factor

Built = tuple[torch.optim.Optimizer, LambdaLR]


@dataclass(frozen=True)
class Contender:
    """An optimizer of a comparison: its name, its label in tables, and how it is built for a task."""

    name: str
    label: str
    build: Callable[[Task, nn.Module, int], Built]


def _warmup(task: Task, steps: int) -> int:
    return round(task.recipe.warmup * steps)


def _first_order(kind: type[torch.optim.Optimizer], options: str) -> Callable[[Task, nn.Module, int], Built]:
    def build(task: Task, model: nn.Module, steps: int) -> Built:
        optimizer = kind(model.named_parameters(), **getattr(task.recipe, options))
        factor = lr_factor(task.recipe.schedule, total_steps=steps, warmup_steps=_warmup(task, steps))
        return optimizer, LambdaLR(optimizer, factor)

    return build


def transferred(**overrides: Any) -> Callable[[Task, nn.Module, int], Built]:
    """Build Jorge from the task's first-order baseline by the transfer rule alone, but for `overrides`."""

    def build(task: Task, model: nn.Module, steps: int) -> Built:
        recipe = task.recipe
        schedule: dict[str, Any] = {
            "total_steps": steps,
            "warmup_steps": _warmup(task, steps),
            "schedule": recipe.schedule,
        }
        if recipe.baseline == "sgd":
            return Jorge.from_sgd(torch.optim.SGD(model.named_parameters(), **recipe.sgd), **schedule, **overrides)
        return Jorge.from_adamw(torch.optim.AdamW(model.named_parameters(), **recipe.adamw), **schedule, **overrides)

    return build


CONTENDERS: dict[str, Contender] = {
    c.name: c
    for c in (
        Contender("jorge", "Jorge", transferred()),
        Contender("sgd", "SGD", _first_order(torch.optim.SGD, "sgd")),
        Contender("adamw", "AdamW", _first_order(torch.optim.AdamW, "adamw")),
        Contender("shampoo", "Shampoo", transferred(method="exact")),
        Contender("jorge-congruence", "Jorge, congruence", transferred(method="congruence")),
        Contender("jorge-binomial", "Jorge, binomial (paper)", transferred(method="binomial")),
    )
}


def settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every option of the first param group in plain values, as the optimizer was built."""
    hidden = {"params", "param_names", "initial_lr", "state_version"}
    group = dict(optimizer.param_groups[0])
    group["lr"] = group.get("initial_lr", group["lr"])
    return {
        name: value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
        for name, value in sorted(group.items())
        if name not in hidden
    }
