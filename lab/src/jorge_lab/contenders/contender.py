"""What an opponent is: an optimizer with a name, its options for a task in three settings, and how it is built."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from jorge.transfer import lr_factor
from jorge_lab.contenders.tuned import tuned_options
from jorge_lab.tasks.task import Task

#: From the task's first-order recipe by a stated rule; that, with what `jorge tune` found; the package's own defaults.
Setting = Literal["transferred", "tuned", "default"]
SETTINGS: tuple[Setting, ...] = ("transferred", "tuned", "default")

#: Jorge's options that came after records were made, or went since then, at the values where they change nothing: no
#: layer of a task has a side above 8,192.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "fused": (False,),
    "compile_step": (False,),
    "cuda_graphs": (False,),
    "nonfinite": ("skip",),
    "max_consecutive_skips": (100,),
    "max_dim": (None, 8192),
    "batch_dims": (0,),
    "splits": (1,),
}

Options = dict[str, Any]
Built = tuple[torch.optim.Optimizer, LambdaLR]
Make = Callable[[Task, nn.Module, int, Options], Built]


@dataclass(frozen=True)
class Average:
    """An average of the weights that a run ends with: over its last part, a share, or with a decay a step."""

    kind: Literal["tail", "ema"]
    value: float


class UnsuitableError(Exception):
    """An optimizer cannot train a task's model; the message says which optimizer and why, in a line."""


@dataclass(frozen=True)
class Contender:
    """An optimizer of a comparison.

    Args:
        name: its name on the command line.
        label: its name in tables.
        options: its options for a task in a setting, in plain JSON values; raises `LookupError` where a task was not
            tuned, with a message that says how to.
        make: the optimizer and its schedule from a task, a model, the number of steps and such options; raises
            :class:`UnsuitableError` where it cannot train the model.
        space: the options that `jorge tune` searches.
        requires: the pip requirement of the package that it comes from.
        average: of the weights, whose loss and metric count at the end; None: the last ones.
    """

    name: str
    label: str
    options: Callable[[Task, Setting], Options]
    make: Make
    space: tuple[str, ...] = ("lr", "weight_decay")
    requires: str | None = None
    average: Average | None = None

    def build(self, task: Task, model: nn.Module, steps: int, setting: Setting = "transferred") -> Built:
        """The optimizer of `model` and its schedule over `steps` steps.

        Raises:
            ModuleNotFoundError: its package is not installed.
            LookupError: the setting is `"tuned"` and the task was not.
            UnsuitableError: it cannot train this model.
        """
        if missing := self.missing():
            raise ModuleNotFoundError(missing)
        return self.make(task, model, steps, self.options(task, setting))

    def missing(self) -> str | None:
        """A line that says how to install the package, None where it is there. Nothing is imported."""
        if self.requires is None or find_spec(module_name(self.requires)):
            return None
        return (
            f"{self.name} comes from a package that is not installed: pip install '{self.requires}', "
            "or all of them: pip install 'jorge-lab[opponents]', in a checkout './lab[opponents]'"
        )


def module_name(requirement: str) -> str:
    """The module that a pip requirement installs.

    >>> module_name("pytorch-optimizer>=4,<5")
    'pytorch_optimizer'
    """
    return re.split(r"[^\w-]", requirement)[0].replace("-", "_")


def load(module: str) -> Any:
    """A module of a package, imported without what that does to the program's warning filters."""
    with warnings.catch_warnings():
        return importlib.import_module(module)


def module_version(requirement: str | None) -> dict[str, str]:
    """Name and installed version of a required package; empty where none is required."""
    if requirement is None:
        return {}
    name = re.split(r"[^\w-]", requirement)[0]
    return {name: version(name)}


def by_setting(
    name: str, transferred: Callable[[Task], Options], default: Callable[[Task], Options] = lambda _: {}
) -> Callable[[Task, Setting], Options]:
    """The options of a contender: tuned ones are the transferred ones updated with what tuning found."""

    def options(task: Task, setting: Setting) -> Options:
        if setting == "default":
            return default(task)
        chosen = transferred(task)
        return chosen | tuned_options(task, name) if setting == "tuned" else chosen

    return options


def scheduled(optimizer: torch.optim.Optimizer, task: Task, steps: int) -> Built:
    """The optimizer with the task's schedule, which all share."""
    return optimizer, LambdaLR(
        optimizer, lr_factor(task.recipe.schedule, total_steps=steps, warmup_steps=warmup_steps(task, steps))
    )


def warmup_steps(task: Task, steps: int) -> int:
    """Steps of warm-up in a run of `steps`."""
    return round(task.recipe.warmup * steps)


def arguments(options: Options) -> Options:
    """Options as constructors want them: lists, which JSON has for tuples, as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every option of the first param group in plain values, as the optimizer was built."""
    hidden = {"params", "param_names", "initial_lr", "state_version"}
    group = dict(optimizer.param_groups[0])
    group["lr"] = group.get("initial_lr", group["lr"])
    return {name: _plain(value) for name, value in sorted(group.items()) if name not in hidden}


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by which runs are the same or not: without options at the value where they change nothing."""
    return {name: value for name, value in settings.items() if value not in NEUTRAL.get(name, ())}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
