"""The opponents: how each is built, from which package, and over how many steps its work repeats.

Every package's defaults, but for what the comparison needs: the dear part of SOAP, Shampoo and PSGD runs at every
tenth step, as Jorge's refresh. SOAP and PSGD come from two packages; the faster one is whom we compare with.
`heavyball` compiles its functions by default; that is switched off, as nothing else here is compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jorge_lab.cost.muon import Muon32, with_adamw
from jorge_lab.cost.shapes import Named

#: Steps between two refreshes of those that have them.
PERIOD = 10


@dataclass(frozen=True)
class Rival:
    """An opponent: builds its optimizer, repeats its work every `period` steps, comes from `package`.

    `package` is the module to import and the requirement to install it by; `None` for what torch has.
    """

    build: Callable[[Named, float], torch.optim.Optimizer]
    period: int = 1
    package: tuple[str, str] | None = None

    @property
    def missing(self) -> str | None:
        """What to install, where the package is not there."""
        if self.package is None or importlib.util.find_spec(self.package[0]):
            return None
        return f"not installed: pip install '{self.package[1]}'"


def _tensors(named: Named) -> list[torch.nn.Parameter]:
    return [p for _, p in named]


def _packaged(module: str, requirement: str, name: str, **options: Any) -> Rival:
    def build(named: Named, lr: float) -> torch.optim.Optimizer:
        found = importlib.import_module(module)
        if module == "heavyball":
            importlib.import_module("heavyball.utils").compile_mode = None  # type: ignore[attr-defined]
        made: torch.optim.Optimizer = getattr(found, name)(_tensors(named), lr=lr, weight_decay=0.0, **options)
        return made

    return Rival(build, PERIOD, (module, requirement))


def _heavyball(name: str, **options: Any) -> Rival:
    return _packaged("heavyball", "heavyball>=3,<4", name, **options)


def _pytorch_optimizer(name: str, **options: Any) -> Rival:
    return _packaged("pytorch_optimizer", "pytorch-optimizer>=4,<5", name, **options)


RIVALS: dict[str, Rival] = {
    "sgd": Rival(lambda named, lr: torch.optim.SGD(_tensors(named), lr=lr, momentum=0.9)),
    "adamw": Rival(lambda named, lr: torch.optim.AdamW(_tensors(named), lr=lr)),
    "muon-float32": Rival(lambda named, lr: with_adamw(named, Muon32, lr)),
    "muon-bfloat16": Rival(lambda named, lr: with_adamw(named, torch.optim.Muon, lr)),
    "soap-pytorch_optimizer": _pytorch_optimizer("SOAP", precondition_frequency=PERIOD),
    "soap-heavyball": _heavyball("SOAP", precondition_frequency=PERIOD),
    "shampoo-pytorch_optimizer": _pytorch_optimizer(
        "ScalableShampoo", preconditioning_compute_steps=PERIOD, start_preconditioning_step=1
    ),
    "psgd-pytorch_optimizer": _pytorch_optimizer("Kron", pre_conditioner_update_probability=1 / PERIOD),
    "psgd-heavyball": _heavyball("PSGDKron", preconditioner_update_probability=1 / PERIOD),
}
