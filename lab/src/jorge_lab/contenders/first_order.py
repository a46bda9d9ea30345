"""SGD and AdamW, as the task's recipe has them, and schedule-free AdamW."""

from __future__ import annotations

import importlib

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from jorge_lab.contenders.contender import (
    Built,
    Contender,
    Make,
    Options,
    arguments,
    by_setting,
    scheduled,
    warmup_steps,
)
from jorge_lab.tasks.task import Task


def plain(options: Options) -> Options:
    """Options in JSON values: tuples, such as betas, as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def adamw_options(task: Task) -> Options:
    """The options of `torch.optim.AdamW` in the task's recipe, with torch's defaults for what it leaves out."""
    built = torch.optim.AdamW([torch.empty(1, device="meta")], **task.recipe.adamw).param_groups[0]
    return plain({name: built[name] for name in ("lr", "betas", "eps", "weight_decay")})


def sgd_options(task: Task) -> Options:
    """The options of `torch.optim.SGD` in the task's recipe."""
    return plain({"momentum": 0.0, "weight_decay": 0.0, **task.recipe.sgd})


def _torch(kind: type[torch.optim.Optimizer]) -> Make:
    def make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        return scheduled(kind(model.named_parameters(), **arguments(options)), task, steps)

    return make


def _schedule_free(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
    """Its lr is constant after its own warm-up; whoever evaluates switches it with its `eval()` and `train()`."""
    kind = importlib.import_module("schedulefree").AdamWScheduleFree
    optimizer = kind(model.parameters(), warmup_steps=warmup_steps(task, steps), **arguments(options))
    optimizer.train()
    return optimizer, LambdaLR(optimizer, lambda _: 1.0)


SGD = Contender("sgd", "SGD", by_setting("sgd", sgd_options), _torch(torch.optim.SGD))
ADAMW = Contender("adamw", "AdamW", by_setting("adamw", adamw_options), _torch(torch.optim.AdamW))
#: Defazio et al., arXiv 2405.15682: "learning rates in the range 1x-10x larger than with schedule-based approaches
#: seem to work", warm-up recommended. The lower end is AdamW's own lr; betas are the package's.
SCHEDULE_FREE = Contender(
    "schedule-free",
    "Schedule-free AdamW",
    by_setting("schedule-free", lambda task: {n: adamw_options(task)[n] for n in ("lr", "weight_decay")}),
    _schedule_free,
    requires="schedulefree>=1.4,<2",
)
