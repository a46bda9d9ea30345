"""Who is measured on the GPU: rivals as fast as torch has them, and Jorge in the forms that the figures are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from jorge import Jorge
from jorge.methods import METHODS
from jorge.schedule import Schedule
from jorge_lab.cost.contenders import LATE
from jorge_lab.cost.muon import with_adamw

#: So small that one model serves all.
LEARNING_RATE = 1e-7
#: What a step may be. One refresh in seven also applies the damping.
KINDS = ("plain", "refresh", "damped")

#: Jorge's options by the name of the contender; those that end in `graph` are replayed from captured graphs.
VARIANTS: dict[str, dict[str, Any]] = {
    "jorge": {},
    "jorge, float32": {"matmul_precision": "float32"},
    "jorge, workspace=None": {"workspace": None},
    "jorge, block_size=256": {"block_size": 256},
    "jorge, Frobenius": {"graft_norm": "frobenius", "adapt_variance": False},
    "jorge, graph": {},
}
RIVALS = ("sgd", "adamw", "muon")


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
        graphs: one for each kind of step, where it replays.
        gradients: at the addresses that the graphs read.
        taken: steps since the beginning, of Jorge.
    """

    optimizer: torch.optim.Optimizer
    graphs: Mapping[str, Any] = field(default_factory=dict)
    gradients: list[torch.Tensor] = field(default_factory=list)
    taken: int = 0

    @property
    def next_kind(self) -> str:
        """Of :data:`KINDS`."""
        return kind_of(self.optimizer, self.taken + 1) if isinstance(self.optimizer, Jorge) else "plain"

    def go_to(self, step: int) -> None:
        """Let a Jorge have taken `step` steps."""
        self.taken = step
        if isinstance(self.optimizer, Jorge) and not self.graphs:
            settle(self.optimizer, step)

    def step(self) -> None:
        """Take a step: eagerly, or by a replay with the gradients copied to where it reads them."""
        kind = self.next_kind
        self.taken += 1
        if not self.graphs:
            self.optimizer.step()
            return
        given = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
        torch._foreach_copy_(self.gradients, given)
        self.graphs[kind].replay()


class Replayed:
    """Stands for a CUDA graph where there is no GPU: a replay takes the step."""

    def __init__(self, optimizer: Jorge, gradients: list[torch.Tensor]) -> None:
        self._optimizer, self._gradients = optimizer, gradients

    def replay(self) -> None:
        """Take the step with the gradients of the graph."""
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        given = [p.grad for p in params]
        for p, gradient in zip(params, self._gradients, strict=True):
            p.grad = gradient
        self._optimizer.step()
        for p, gradient in zip(params, given, strict=True):
            p.grad = gradient


def new_stream() -> torch.cuda.Stream:
    """To capture on."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return stream


def captured(optimizer: Jorge, device: torch.device) -> Stepper:
    """A Jorge with `capturable=True` that has taken a step, as a graph for each kind of step.

    All are captured on a stream of their own: torch keeps the workspace of cuBLAS for a stream, and drops it with the
    first of several graphs that were captured on the stream (pytorch issue 193402).
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    given = [p.grad for p in params]
    gradients = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in params]
    for p, gradient, grad in zip(params, gradients, given, strict=True):
        gradient.copy_(grad)
        p.grad = gradient
    graphs: dict[str, Any] = {}
    settle(optimizer, LATE)
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    stream = new_stream() if device.type == "cuda" else None
    gap = interval(optimizer)
    first = {kind_of(optimizer, step): step for step in range(LATE + 14 * gap, LATE, -1)}
    for kind, step in first.items():
        if stream is None:
            graphs[kind] = Replayed(optimizer, gradients)
            continue
        weights, state = [p.detach().clone() for p in params], optimizer.state_dict()
        settle(optimizer, step - 1)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            optimizer.step()  # what is made at the first step of a kind is there before the capture; undone below
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in params], weights)
        optimizer.load_state_dict(state)
        settle(optimizer, step - 1)
        graphs[kind] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[kind], pool=pool, stream=stream):
            optimizer.step()
    settle(optimizer, LATE)
    for p, grad in zip(params, given, strict=True):
        p.grad = grad
    return Stepper(optimizer, graphs, gradients, LATE)


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
    graph = name.endswith("graph")
    options: dict[str, Any] = {"grafting": "sgd" if baseline == "sgd" else "adam", "weight_decay": 1e-2}
    lr = torch.tensor(LEARNING_RATE, device=device) if graph else LEARNING_RATE
    optimizer = Jorge(model.named_parameters(), lr=lr, capturable=graph, **options, **VARIANTS[name])
    optimizer.step()
    if graph:
        return captured(optimizer, device)
    stepper = Stepper(optimizer)
    stepper.go_to(LATE)
    return stepper
