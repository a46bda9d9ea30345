"""SINGD and SIRFShampoo, which need the model itself: the one its layers' inputs, the other its batch size.

Neither takes every model. Where one cannot, that is an :class:`UnsuitableError`, at the latest at the first step.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from jorge_lab.contenders.contender import Built, Contender, Options, UnsuitableError, arguments, by_setting, scheduled
from jorge_lab.contenders.first_order import adamw_options, sgd_options
from jorge_lab.contenders.parts import Parts, the_rest
from jorge_lab.tasks.task import Task


def _need_one_process(name: str) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UnsuitableError(f"{name} looks at the examples that one process sees: compare it without torchrun")


def _need_gradients(name: str) -> Any:
    def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if any(p.grad is None for group in optimizer.param_groups for p in group["params"]):
            raise UnsuitableError(f"{name} needs a gradient of every parameter, and some of this model's have none")

    return check


def _singd(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
    _need_one_process("singd")
    # Not their subclasses: that within nn.MultiheadAttention is never called, and its inputs are not seen.
    layers = [m for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    taken = list({id(p): p for m in layers for p in m.parameters() if p.requires_grad}.values())
    if not taken:
        raise UnsuitableError(f"singd takes Linear and Conv2d layers alone, and {task.name}'s model has none")
    if len(taken) < sum(p.requires_grad for m in layers for p in m.parameters()):
        raise UnsuitableError(f"singd cannot take layers that share a weight, and {task.name}'s model has some")
    kind = importlib.import_module("singd.optim.optimizer").SINGD
    given = {name: value for name, value in options.items() if name != "rest"}
    singd = kind(model, taken, loss_average=_loss_average(model), **arguments(given))
    singd.register_step_pre_hook(_need_gradients("singd"))
    rest = the_rest(model, taken)
    adamw = [torch.optim.AdamW(rest, **arguments(options.get("rest", {})))] if rest else []
    return scheduled(Parts([singd, *adamw]), task, steps)


def _loss_average(model: nn.Module) -> str:
    """Over which terms the loss is a mean, which SINGD must know: a model of tokens has a term for each of them."""
    return "batch+sequence" if any(isinstance(m, nn.Embedding) for m in model.modules()) else "batch"


def _sirf(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
    _need_one_process("sirfshampoo")
    kind = importlib.import_module("sirfshampoo").SIRFShampoo
    try:
        optimizer = kind(model, **arguments(options))
    except (NotImplementedError, ValueError) as error:
        raise UnsuitableError(f"sirfshampoo cannot take {task.name}'s model: {error}") from None
    optimizer.register_step_pre_hook(_need_gradients("sirfshampoo"))
    return scheduled(optimizer, task, steps)


def _singd_options(task: Task) -> Options:
    """SGD's options, as it starts as SGD, from identities, and decays as SGD does; AdamW's for the other layers."""
    sgd = sgd_options(task)
    return {name: sgd[name] for name in ("lr", "momentum", "weight_decay")} | {"rest": adamw_options(task)}


def _sirf_options(task: Task) -> Options:
    """SGD's options for the same reason, under the names of its paper (Lin et al., arXiv 2402.03496), every 10 steps.

    At its default interval of 1 it diverges with SGD's lr on the mnist task.
    """
    sgd = sgd_options(task)
    return {"lr": sgd["lr"], "alpha1": sgd["momentum"], "kappa": sgd["weight_decay"], "T": 10}


SINGD = Contender("singd", "SINGD", by_setting("singd", _singd_options), _singd, requires="singd>=0.0.5,<0.1")
SIRF_SHAMPOO = Contender(
    "sirfshampoo",
    "SIRFShampoo",
    by_setting("sirfshampoo", _sirf_options),
    _sirf,
    ("lr", "kappa"),
    requires="sirfshampoo>=0.0.1,<0.1",
)
