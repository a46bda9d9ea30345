"""SOAP, KL-SOAP, KL-Shampoo, PSGD-Kron and PSGD PRO of heavyball."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jorge_lab.contenders.contender import Built, Contender, Make, Options, arguments, by_setting, load, scheduled
from jorge_lab.contenders.first_order import adamw_options
from jorge_lab.contenders.parts import Parts, the_rest
from jorge_lab.tasks.task import Task

_REQUIRES = "heavyball>=3,<4"
#: The longest side that the package preconditions. KL-Shampoo's step along a matrix of which it leaves a side of n out
#: is √n times too short.
_LONGEST = 2048
#: Options that the KL methods have in common with the AdamW that takes the vectors.
_OF_ADAMW = ("lr", "betas", "weight_decay")


def _follow_schedule(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """What heavyball does itself at the next step, where it warns that lr was changed."""
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]


def _optimizer(kind: str, params: Sequence[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    """An optimizer of the package for some parameters."""
    package = load("heavyball")
    load("heavyball.utils").compile_mode = None  # as nothing else here is compiled
    # By default the gradients are gone after a step, unlike in torch.
    optimizer: torch.optim.Optimizer = getattr(package, kind)(params, consume_grad=False, **arguments(options))
    optimizer.register_step_pre_hook(_follow_schedule)
    return optimizer


def _whole(kind: str, **fixed: Any) -> Make:
    """An optimizer that takes all parameters; `fixed` are options that are no plain values."""

    def make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        return scheduled(_optimizer(kind, list(model.parameters()), options | fixed), task, steps)

    return make


def _matrices(kind: str, longest: float = math.inf) -> Make:
    """An optimizer that takes the parameters with two dims above 1, as the authors' does; AdamW takes the rest.

    Given the rest too, the package's KL-Shampoo steps along their plain momentum, at a length that no lr for the
    matrices suits.

    Args:
        kind: the optimizer.
        longest: side of a matrix, or of a kernel read as one, that it takes.
    """

    def takes(p: nn.Parameter) -> bool:
        return sum(size > 1 for size in p.shape) > 1 and max(p.shape[0], p[0].numel()) <= longest

    def make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        matrices = [p for p in model.parameters() if takes(p)]
        rest = the_rest(model, matrices)
        parts = [_optimizer(kind, matrices, options)] if matrices else []
        if rest:
            shared = {name: value for name, value in options.items() if name in _OF_ADAMW}
            parts.append(torch.optim.AdamW(rest, **arguments(shared)))
        return scheduled(Parts(parts), task, steps)

    return make


def soap_options(task: Task) -> Options:
    """AdamW's lr and decay, with the betas and the interval that the authors use and advise (arXiv 2409.11321)."""
    adamw = adamw_options(task)
    own = {"lr": adamw["lr"], "weight_decay": adamw["weight_decay"]}
    return {**own, "betas": [0.95, 0.95], "precondition_frequency": 10}


def _kl_soap(task: Task) -> Options:
    """AdamW's lr and decay, with the betas, the memory and the interval of the authors' code.

    Lin et al., arXiv 2509.03378; github.com/yorkerlin/KL-Methods. The memory is Adam's second beta there.
    """
    adamw = adamw_options(task)
    own = {"lr": adamw["lr"], "weight_decay": adamw["weight_decay"]}
    return {**own, "betas": [0.9, 0.98], "shampoo_beta": 0.98, "precondition_frequency": 10}


def _kl_shampoo(task: Task) -> Options:
    """As KL-SOAP's: the preconditioner whitens, so that a step is as long as Adam's without a graft.

    The authors' factors start at 0.1, as do the package's. That is far above what the gradients of these tasks make of
    them, and the steps are too short for a hundred steps or more; 1e-4 ends lower on mnist, vit and the autoencoder.
    """
    return _kl_soap(task) | {"init_factor": 1e-4}


def _psgd(task: Task) -> Options:
    """AdamW's lr and decay: "learning rate acts similarly to Adam's" (README of kron_torch 0.1, heavyball's source).

    Later READMEs of kron_torch start three times lower; with heavyball's that is worse on the mnist and shakespeare
    tasks. How often the preconditioner is updated follows the package's schedule, at every step at first.
    """
    adamw = adamw_options(task)
    return {"lr": adamw["lr"], "weight_decay": adamw["weight_decay"]}


def _psgd_pro(task: Task) -> Options:
    """AdamW's lr times √((1−μ)/(1+μ)), as the momentum is what is whitened, and a decay that keeps lr·decay.

    Both are the author's advice (Li, github.com/lixilinx/psgd_torch, README and `KWNS4`). So is :func:`_clip`, which
    the package leaves out: without it the autoencoder task diverges at step 63. How often the preconditioner is updated
    follows the package's schedule, at every step at first.
    """
    adamw, momentum = adamw_options(task), 0.9
    shorter = ((1 - momentum) / (1 + momentum)) ** 0.5
    return {"lr": adamw["lr"] * shorter, "weight_decay": adamw["weight_decay"] / shorter, "betas": [momentum, 0.999]}


def _clip(updates: list[Tensor]) -> list[Tensor]:
    """Shorten the step of each parameter to the root mean square 2, and its entries to 10, in place."""
    for update in updates:
        update.mul_(2 / update.square().mean().sqrt().clamp(min=2)).clamp_(-10, 10)
    return updates


def _contender(name: str, label: str, options: Callable[[Task], Options], make: Make) -> Contender:
    return Contender(name, label, by_setting(name, options), make, requires=_REQUIRES)


SOAP = _contender("soap", "SOAP", soap_options, _whole("SOAP"))
KL_SOAP = _contender("kl-soap", "KL-SOAP", _kl_soap, _matrices("KLSOAP"))
KL_SHAMPOO = _contender("kl-shampoo", "KL-Shampoo", _kl_shampoo, _matrices("KLShampoo", _LONGEST))
PSGD = _contender("psgd", "PSGD-Kron", _psgd, _whole("PSGDKron"))
PSGD_PRO = _contender("psgd-pro", "PSGD PRO", _psgd_pro, _whole("PSGDPRO", update_clipping=_clip))
