"""Who is measured on the GPU: rivals as fast as torch has them, and Jorge in the forms that the figures are about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jorge import Jorge
from jorge.methods import METHODS
from jorge.schedule import Schedule
from jorge_lab.cost.contenders import LATE
from jorge_lab.cost.muon import with_adamw
from jorge_lab.cost.rivals import RIVALS as PACKAGES

#: So small that one model serves all.
LEARNING_RATE = 1e-7
#: What a step may be. One refresh in seven also applies the damping.
KINDS = ("plain", "refresh", "damped")

#: Jorge's options by the name of the contender; `exact` is Shampoo, whose `eigh` runs one matrix after the other there.
VARIANTS: dict[str, dict[str, Any]] = {
    "jorge": {},
    "jorge, float32": {"matmul_precision": "float32"},
    "jorge, workspace=None": {"workspace": None},
    "jorge, block_size=128": {"block_size": 128},
    "jorge, Frobenius": {"graft_norm": "frobenius", "adapt_variance": False},
    "jorge, exact": {"method": "exact"},
    "jorge, graph": {"cuda_graphs": True},
}
RIVALS = ("sgd", "adamw", "muon")
#: Those of packages, if they are installed; one step in ten is the dear one of each.
PACKAGED = ("soap-pytorch_optimizer", "shampoo-pytorch_optimizer")


def settle(optimizer: Jorge, step: int) -> None:
    """Let it have taken `step` steps and be past its warm-up: what a step costs depends on the counters alone."""
    for group in optimizer.param_groups:
        group["warmup_refreshes"] = 0
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry["step"] = step
    optimizer.load_state_dict(saved)


def interval(optimizer: Jorge) -> int:
    """Steps between refreshes."""
    steps: int = optimizer.param_groups[0]["interval"]
    return steps


def kind_of(optimizer: Jorge, step: int) -> str:
    """What the `step`-th step does, of a settled optimizer that does not stagger."""
    group = optimizer.param_groups[0]
    scheduled = Schedule(group["interval"], group["warmup_refreshes"]).at(step)
    if scheduled is None:
        return "plain"
    refresh = METHODS[group["method"]].refresh_at(scheduled.number, scheduled.gap)
    return "damped" if refresh.damping else "refresh"


@dataclass
class Stepper:
    """An optimizer that is stepped, and knows what its next step does.

    Args:
        optimizer: any.
        taken: steps since the beginning, of Jorge.
    """

    optimizer: torch.optim.Optimizer
    taken: int = 0

    @property
    def next_kind(self) -> str:
        """Of :data:`KINDS`."""
        return kind_of(self.optimizer, self.taken + 1) if isinstance(self.optimizer, Jorge) else "plain"

    def go_to(self, step: int) -> None:
        """Let a Jorge have taken `step` steps."""
        self.taken = step
        if isinstance(self.optimizer, Jorge):
            settle(self.optimizer, step)

    def step(self) -> None:
        """Take a step."""
        self.taken += 1
        self.optimizer.step()


def new_stream() -> torch.cuda.Stream:
    """To capture on."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return stream


def capture_all(optimizer: Jorge) -> None:
    """Let a Jorge with `cuda_graphs=True`, which has taken a step, capture each kind of step: at the second of it."""
    gap = interval(optimizer)
    for step in {kind_of(optimizer, step): step for step in range(LATE + 14 * gap, LATE, -1)}.values():
        for _ in range(2):
            settle(optimizer, step - 1)
            optimizer.step()
    settle(optimizer, LATE)


def build(name: str, model: nn.Module, baseline: str, device: torch.device) -> Stepper:
    """A contender past its warm-up; the parameters have gradients."""
    params = list(model.parameters())
    fused = device.type == "cuda"
    rivals: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(params, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=fused),
        "adamw": lambda: torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=1e-2, fused=fused),
        "muon": lambda: with_adamw(list(model.named_parameters()), torch.optim.Muon, LEARNING_RATE),
    }
    if name in rivals:
        return Stepper(rivals[name]())
    if name in PACKAGED:
        return Stepper(PACKAGES[name].build(list(model.named_parameters()), LEARNING_RATE))
    options: dict[str, Any] = {"grafting": "sgd" if baseline == "sgd" else "adam", "weight_decay": 1e-2}
    optimizer = Jorge(model.named_parameters(), lr=LEARNING_RATE, **options, **VARIANTS[name])
    optimizer.step()
    if VARIANTS[name].get("cuda_graphs"):
        capture_all(optimizer)
    stepper = Stepper(optimizer)
    stepper.go_to(LATE)
    return stepper
