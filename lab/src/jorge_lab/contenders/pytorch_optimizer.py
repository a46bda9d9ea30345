"""SOAP, Shampoo and NorMuon of pytorch_optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from jorge.cost.muon_partition import hidden
from jorge_lab.contenders.contender import Built, Contender, Make, Options, arguments, by_setting, load, scheduled
from jorge_lab.contenders.first_order import adamw_options
from jorge_lab.contenders.heavyball import soap_options
from jorge_lab.contenders.parts import the_rest
from jorge_lab.tasks.task import Task

_REQUIRES = "pytorch-optimizer>=4,<5"
#: Whose step length ScalableShampoo takes, `pytorch_optimizer.optimizer.utils.graft.LayerWiseGrafting`.
_GRAFT_RMSPROP = 3
#: Options of NorMuon's groups that are AdamW alone.
_ADAMW_ALONE = ("betas",)


def _whole(kind: str) -> Make:
    """An optimizer that takes all parameters."""

    def make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        optimizer = getattr(load("pytorch_optimizer"), kind)
        return scheduled(optimizer(model.parameters(), **arguments(options)), task, steps)

    return make


def _normuon(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
    """Its own AdamW takes what Muon leaves (:mod:`jorge.cost.muon_partition`); it reads kernels as matrices itself."""
    matrices = hidden(model)
    rest = the_rest(model, matrices)
    given = arguments(options)
    groups: list[dict[str, Any]] = []
    if matrices:
        own = {name: value for name, value in given.items() if name not in _ADAMW_ALONE}
        groups.append({"params": matrices, "use_muon": True, **own})
    if rest:
        shared = {name: value for name, value in given.items() if name in ("lr", "weight_decay", *_ADAMW_ALONE)}
        groups.append({"params": rest, "use_muon": False, **shared})
    return scheduled(load("pytorch_optimizer").NorMuon(groups), task, steps)


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


def _normuon_options(task: Task) -> Options:
    """AdamW's lr and decay for both kinds of parameters: an update has the root mean square 0.2, as AdamW's typically.

    That is algorithm 1 of Li et al., arXiv 2510.05491; the package's default has Muon's length instead.
    """
    adamw = adamw_options(task)
    return {name: adamw[name] for name in ("lr", "betas", "weight_decay")} | {"update_scale": "match_rms"}


def _contender(name: str, label: str, options: Callable[[Task], Options], make: Make) -> Contender:
    return Contender(name, label, by_setting(name, options), make, requires=_REQUIRES)


SOAP = _contender("soap-pytorch_optimizer", "SOAP (pytorch_optimizer)", soap_options, _whole("SOAP"))
SHAMPOO = _contender(
    "shampoo-pytorch_optimizer", "Shampoo (pytorch_optimizer)", _scalable_shampoo, _whole("ScalableShampoo")
)
NORMUON = _contender("normuon", "NorMuon", _normuon_options, _normuon)
