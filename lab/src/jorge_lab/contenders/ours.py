"""Jorge and its methods; the exact one is Shampoo. All are built by the transfer rule from a recipe of the task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from jorge import Jorge
from jorge.options import Options as JorgeOptions
from jorge.transfer import recipe_from_adamw, recipe_from_sgd
from jorge_lab.contenders.contender import Built, Contender, Options, arguments, by_setting, scheduled
from jorge_lab.contenders.first_order import plain
from jorge_lab.tasks.task import Task


def _transferred(task: Task, grafting: str | None) -> Options:
    """What :meth:`Jorge.from_sgd` or :meth:`Jorge.from_adamw` makes of the task's recipe, or of the one to graft."""
    weight = [torch.empty(1, device="meta")]
    if (grafting or task.recipe.transfer) == "sgd":
        group = recipe_from_sgd(torch.optim.SGD(weight, **task.recipe.sgd)).groups[0]
    else:
        group = recipe_from_adamw(torch.optim.AdamW(weight, **task.recipe.adamw)).groups[0]
    # The momentum in numbers, for those who read the settings: nothing here cycles what it follows.
    group["momentum"] = JorgeOptions.of(group).momentum
    return plain({name: value for name, value in group.items() if name != "params"})


def _make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
    return scheduled(Jorge(model.named_parameters(), **arguments(options)), task, steps)


def variant(name: str, label: str, **overrides: Any) -> Contender:
    """Jorge with some options given, in every setting; the rest is transferred, tuned or default."""
    options = by_setting(
        name,
        lambda task: _transferred(task, overrides.get("grafting")) | overrides,
        lambda _: dict(overrides),
    )
    return Contender(name, label, options, _make)


JORGE = variant("jorge", "Jorge")
#: With Adam's own length, as it was published.
_PUBLISHED = {"graft_norm": "frobenius", "graft_memory": None, "adapt_variance": False}
SHAMPOO = variant("shampoo", "Shampoo", method="exact", **_PUBLISHED)
VARIANTS = (
    variant("jorge-congruence", "Jorge, congruence", method="congruence"),
    variant("jorge-binomial", "Jorge, binomial (paper)", method="binomial"),
    variant("jorge-every-step", "Jorge, refreshed at every step", interval=1),
)
