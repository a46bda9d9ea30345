"""A program of a user's. Type checkers read it beside an installed jorge, and it runs: what they see is there.

`test_distribution.py` has mypy read it, and `make package` pyright too.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import TYPE_CHECKING, Any, assert_type

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import jorge
from jorge import Jorge, cost, doctor, param_groups
from jorge.checkup import Checkup
from jorge.diagnostics import Diagnostics
from jorge.plan import Plan
from jorge.skips import Skips

model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
groups = assert_type(param_groups(model, weight_decay=0.1), list[dict[str, Any]])
optimizer = Jorge(groups, lr=torch.tensor(0.02), betas=[0.9, 0.99], block_size=8, preconditioner_dtype=torch.bfloat16)
by_recipe, schedule = Jorge.from_sgd(torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9), total_steps=9)
assert_type(by_recipe, Jorge)
assert_type(schedule, LambdaLR)
assert_type(Jorge.from_adamw(torch.optim.AdamW(model.parameters())), tuple[Jorge, LambdaLR])


def loss(net: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The mean square of what a model makes of a batch."""
    made: torch.Tensor = net(batch)
    return made.square().mean()


def closure() -> float:
    """One pass, as a step asks for it."""
    optimizer.zero_grad()
    found = loss(model, torch.ones(2, 8))
    torch.autograd.backward(found)
    return found.item()


assert_type(optimizer.step(closure), float)
assert_type(optimizer.skipped_steps(), Skips)
assert_type(optimizer.diagnostics(), Diagnostics)
assert_type(optimizer.plan(), Plan)
assert_type(doctor(model, loss, torch.ones(2, 8), optimizer), Checkup)
assert_type(cost.estimate(model), cost.Estimate)
assert_type(jorge.__version__, str)

if TYPE_CHECKING:  # what is refused where it runs is refused before
    Jorge(model.parameters(), grafting="rms")  # type: ignore[arg-type]
    Jorge(model.parameters(), lr="0.1")  # type: ignore[arg-type]
    Jorge(model.parameters(), nonfinite=True)  # type: ignore[arg-type]
    Jorge.from_sgd(torch.optim.AdamW(model.parameters()))  # type: ignore[arg-type]
    doctor(model, loss)  # type: ignore[call-arg]
