"""The checks of :mod:`jorge.testing` on optimizers as pip installs them: `python -m jorge_lab.studies.conformance`.

Prints the page `docs/generated/conformance.md`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import torch

import jorge
from jorge import Jorge, testing
from jorge.testing import Factory, Report
from jorge_lab.contenders.contender import load

COMMAND = "python -m jorge_lab.studies.conformance"


def muon(params: Any) -> torch.optim.Optimizer:
    """Muon of torch."""
    return torch.optim.Muon(params)


def _heavyball(kind: str, params: Any) -> torch.optim.Optimizer:
    package = load("heavyball")
    load("heavyball.utils").compile_mode = None  # as nothing else here is compiled
    optimizer: torch.optim.Optimizer = getattr(package, kind)(params)
    return optimizer


def soap(params: Any) -> torch.optim.Optimizer:
    """SOAP of heavyball."""
    return _heavyball("SOAP", params)


def psgd(params: Any) -> torch.optim.Optimizer:
    """PSGD-Kron of heavyball."""
    return _heavyball("PSGDKron", params)


def other_soap(params: Any) -> torch.optim.Optimizer:
    """SOAP of pytorch_optimizer."""
    optimizer: torch.optim.Optimizer = load("pytorch_optimizer").SOAP(params)
    return optimizer


def shampoo(params: Any) -> torch.optim.Optimizer:
    """Shampoo of pytorch_optimizer, in the implementation that scales."""
    optimizer: torch.optim.Optimizer = load("pytorch_optimizer").ScalableShampoo(params)
    return optimizer


def schedule_free(params: Any) -> torch.optim.Optimizer:
    """Schedule-free AdamW, which wants to be told that it trains."""
    optimizer = load("schedulefree").AdamWScheduleFree(params)
    optimizer.train()
    trained: torch.optim.Optimizer = optimizer
    return trained


#: Column, and who fills it.
FACTORIES: Mapping[str, Factory] = MappingProxyType(
    {
        "SGD": torch.optim.SGD,
        "AdamW": torch.optim.AdamW,
        "Muon": muon,
        "SOAP": soap,
        "SOAP (p_o)": other_soap,
        "Shampoo": shampoo,
        "PSGD-Kron": psgd,
        "Schedule-free": schedule_free,
        "Jorge": Jorge,
    }
)
_PACKAGES = ("torch", "heavyball", "pytorch_optimizer", "schedulefree")


def reports() -> list[Report]:
    """Run every check on every optimizer."""
    return [testing.conformance(factory, name) for name, factory in FACTORIES.items()]


def page(found: list[Report]) -> str:
    """The page, in Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    beyond = sum(check.group == testing.BEYOND for check in testing.CHECKS)
    return f"""# What optimizers keep of `torch.optim.Optimizer`

`{COMMAND}` writes this page: [the checks of `jorge.testing`](../guide/testing.md) on
optimizers as pip installs them, each cell from a run on a CPU. {dt.datetime.now(dt.UTC).date().isoformat()};
jorge {jorge.__version__}, {versions}.

Each is built with its defaults. SGD, AdamW and Muon are torch's. SOAP and PSGD-Kron are heavyball's, with
`compile_mode = None`; by its default `consume_grad` gradients are gone after a step. SOAP (p_o) and Shampoo
(`ScalableShampoo`) are pytorch_optimizer's. Schedule-free is `AdamWScheduleFree` of schedulefree, in its training mode.

✓ it has the property; ✗ it lacks it; – the check does not apply. The number leads to the reason below the table.
The checks say how well an optimizer fits into programs that others wrote, and nothing about how well it trains. Some
of what is missing is meant: a schedule-free optimizer averages weights at a learning rate of 0 too. The last {beyond}
properties are lacked by torch's own optimizers, or needed by few programs.

{testing.table(found, markdown=True)}
"""


def main() -> None:
    """Print the page."""
    print(page(reports()), end="")


if __name__ == "__main__":
    main()
