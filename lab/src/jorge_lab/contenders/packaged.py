"""SOAP, PSGD-Kron and Shampoo as other packages have them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import nn

from jorge_lab.contenders.contender import Built, Contender, Make, Options, arguments, by_setting, scheduled
from jorge_lab.contenders.first_order import adamw_options
from jorge_lab.tasks.task import Task

#: Whose step length ScalableShampoo takes, `pytorch_optimizer.optimizer.utils.graft.LayerWiseGrafting`.
_GRAFT_RMSPROP = 3
_HEAVYBALL, _PYTORCH_OPTIMIZER = "heavyball>=3,<4", "pytorch-optimizer>=4,<5"


def _load(module: str) -> Any:
    with warnings.catch_warnings():  # importing heavyball adds to the program's warning filters
        return importlib.import_module(module)


def _follow_schedule(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """What heavyball does itself at the next step, where it warns that lr was changed."""
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]


def _heavyball(kind: str) -> Make:
    def make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        package = _load("heavyball")
        _load("heavyball.utils").compile_mode = None  # as nothing else here is compiled
        # By default the gradients are gone after a step, unlike in torch.
        optimizer = getattr(package, kind)(model.parameters(), consume_grad=False, **arguments(options))
        optimizer.register_step_pre_hook(_follow_schedule)
        return scheduled(optimizer, task, steps)

    return make


def _pytorch_optimizer(kind: str) -> Make:
    def make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        package = _load("pytorch_optimizer")
        return scheduled(getattr(package, kind)(model.parameters(), **arguments(options)), task, steps)

    return make


def _soap(task: Task) -> Options:
    """AdamW's lr and decay, with the betas and the interval that the authors use and advise (arXiv 2409.11321)."""
    adamw = adamw_options(task)
    own = {"lr": adamw["lr"], "weight_decay": adamw["weight_decay"]}
    return {**own, "betas": [0.95, 0.95], "precondition_frequency": 10}


def _psgd(task: Task) -> Options:
    """AdamW's lr and decay: "learning rate acts similarly to Adam's" (README of kron_torch 0.1, heavyball's source).

    Later READMEs of kron_torch start three times lower; with heavyball's that is worse on the mnist and shakespeare
    tasks. How often the preconditioner is updated follows the package's schedule, at every step at first.
    """
    adamw = adamw_options(task)
    return {"lr": adamw["lr"], "weight_decay": adamw["weight_decay"]}


def _scalable_shampoo(task: Task) -> Options:
    """AdamW's lr and decay, by grafting the step length (Anil et al., arXiv 2002.09018).

    RMSProp's step length with the memory of SOAP stands for Adam's: the package does not correct the bias, and with
    beta2 = 0.999 the first steps are so much too long that the mnist task does not train. The interval is everyone's;
    the package's is 1,000.
    """
    adamw = adamw_options(task)
    return {
        "lr": adamw["lr"],
        "weight_decay": adamw["weight_decay"],
        "decoupled_weight_decay": True,
        "betas": [adamw["betas"][0], 0.95],
        "moving_average_for_momentum": True,
        "nesterov": False,
        "graft_type": _GRAFT_RMSPROP,
        "preconditioning_compute_steps": 10,
    }


SOAP = Contender("soap", "SOAP", by_setting("soap", _soap), _heavyball("SOAP"), requires=_HEAVYBALL)
SOAP_AGAIN = Contender(
    "soap-pytorch_optimizer",
    "SOAP (pytorch_optimizer)",
    by_setting("soap-pytorch_optimizer", _soap),
    _pytorch_optimizer("SOAP"),
    requires=_PYTORCH_OPTIMIZER,
)
PSGD = Contender("psgd", "PSGD-Kron", by_setting("psgd", _psgd), _heavyball("PSGDKron"), requires=_HEAVYBALL)
SCALABLE_SHAMPOO = Contender(
    "shampoo-pytorch_optimizer",
    "Shampoo (pytorch_optimizer)",
    by_setting("shampoo-pytorch_optimizer", _scalable_shampoo),
    _pytorch_optimizer("ScalableShampoo"),
    requires=_PYTORCH_OPTIMIZER,
)
