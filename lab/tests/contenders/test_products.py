"""What README says that heavyball's optimizers cost, by torch's counter and by the size of their state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jorge_lab.contenders import CONTENDERS, state_bytes
from jorge_lab.contenders.contender import load

README = Path(__file__).parents[3] / "README.md"
SIDE = 128
#: Of each name there: the class, the options without a refresh, and those with one at every step.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "KL-Shampoo": ("KLShampoo", {"precondition_frequency": 100}, {"precondition_frequency": 1}),
    "PSGD-Kron": ("PSGDKron", {"preconditioner_update_probability": 0.0}, {"preconditioner_update_probability": 1.0}),
    "PSGD PRO": ("PSGDPRO", {"preconditioner_update_probability": 0.0}, {"preconditioner_update_probability": 1.0}),
}


def cost(kind: str, options: dict[str, Any]) -> tuple[float, float]:
    """Operations of the third step over m³, and entries of state beside the momentum over m²."""
    load("heavyball.utils").compile_mode = None
    p = nn.Parameter(torch.randn(SIDE, SIDE))
    optimizer = getattr(load("heavyball"), kind)([p], consume_grad=False, **options)
    for _ in range(3):
        p.grad = torch.randn(SIDE, SIDE)
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
    return counter.get_total_flops() / SIDE**3, state_bytes(optimizer) / 4 / SIDE**2 - 1


@pytest.mark.parametrize("name", KINDS)
def test_the_costs_of_heavyballs_are_those_that_are_counted(name: str) -> None:
    if missing := CONTENDERS["kl-shampoo"].missing():
        pytest.skip(missing)
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name}"))
    each, refresh, memory = (cell.strip().split()[0] for cell in row.split("|")[3:6])
    kind, without, always = KINDS[name]
    (plain, entries), (refreshed, _) = cost(kind, without), cost(kind, always)
    assert plain == pytest.approx(int(each), abs=0.5)  # products with vectors are counted, too
    assert refreshed - plain == pytest.approx(int(refresh), abs=0.5)
    assert entries == pytest.approx(1 if memory == "m²" else int(memory), abs=0.1)
