"""What the processes of the tests do: train one small model under each strategy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from jorge import Jorge

#: Strategy, processes, and options of the optimizer.
STRATEGIES: list[tuple[str, int, dict[str, Any]]] = [
    ("ddp", 3, {"distributed": "replicate"}),
    ("ddp", 2, {"distributed": "shard"}),
    ("fsdp", 3, {}),
    ("hsdp", 4, {}),
    ("tp", 2, {}),
    ("fsdp+tp", 4, {}),
]
OPTIONS: dict[str, Any] = {"lr": 0.01, "interval": 3, "warmup_refreshes": 3, "weight_decay": 0.1, "block_size": 16}


class Net(nn.Module):
    """A convolution, linear maps, an embedding tied to the output, a norm, and a layer that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(37, 24)
        self.conv = nn.Conv1d(24, 30, 3, padding=1)
        self.norm = nn.LayerNorm(30)
        self.up, self.down = nn.Linear(30, 70), nn.Linear(70, 30)
        self.frozen = nn.Linear(30, 30).requires_grad_(False)
        self.mix, self.head = nn.Linear(30, 24), nn.Linear(30, 1)
        self.output = nn.Linear(24, 37, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.embedding(x).transpose(1, 2)).transpose(1, 2)
        h = self.norm(torch.relu(h))
        h = h + self.down(torch.relu(self.up(h))) + self.frozen(h)
        loss: Tensor = self.output(self.mix(h)).logsumexp(-1).mean() + self.head(h).square().mean()
        return loss


def batch(step: int, part: int, parts: int) -> Tensor:
    """A process' part of a batch."""
    x = torch.randint(0, 37, (12, 6), generator=torch.Generator().manual_seed(step))
    return x.chunk(parts)[part]


def share(strategy: str, rank: int, world: int) -> tuple[int, int]:
    """Which part of a batch a process gets, of how many: those that share a layer's columns get the same."""
    return (rank // 2, world // 2) if "tp" in strategy else (rank, world)


def built(strategy: str, world: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model under a strategy."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    if strategy == "ddp":
        return DistributedDataParallel(net)
    if strategy == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        for layer in (net.conv, net.up, net.down):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    if strategy == "hsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard")))
    if "tp" in strategy:
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "model"))
        parallelize_module(net, mesh["model"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if strategy == "fsdp+tp":
            for layer in (net.up, net.down):
                fully_shard(layer, mesh=mesh["data"])
            fully_shard(net, mesh=mesh["data"])
    return net


def weights(net: nn.Module) -> dict[str, Tensor]:
    """All of them, whole."""
    found = {name.removeprefix("module."): p.detach() for name, p in net.named_parameters()}
    return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in found.items()}


def train(net: nn.Module, optimizer: Jorge, steps: range, part: int = 0, parts: int = 1) -> None:
    """Take steps."""
    for step in steps:
        optimizer.zero_grad()
        net(batch(step, part, parts)).backward()
        optimizer.step()


def alone(options: dict[str, Any], steps: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The weights that one process ends with."""
    net = built("alone", 1, dtype)
    own = {name: value for name, value in options.items() if name != "distributed"}
    optimizer = Jorge(net.named_parameters(), **OPTIONS | own, distributed=None)
    train(net, optimizer, range(steps))
    return weights(net)


def kept(optimizer: Jorge, *keys: str) -> int:
    """Elements of the state that are kept here, under keys that begin so."""
    entries = (item for entry in optimizer.state.values() for item in entry.items())
    return sum(value.numel() for key, value in entries if key.startswith(keys))


def trained(rank: int, world: int, strategy: str, options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Weights, local weights, and what was kept and sent."""
    net = built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **OPTIONS | options)
    train(net, optimizer, range(steps), *share(strategy, rank, world))
    transports = optimizer.distribution.transports()
    held = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in net.named_parameters()}
    return {
        "weights": weights(net),
        "held": {name: p.detach() for name, p in held.items()},
        "roots": kept(optimizer, "left", "right"),
        "calls": sum(each.calls for each in transports),
        "sent": sum(each.sent for each in transports),
    }


def leg(
    rank: int,
    world: int,
    strategy: str,
    options: dict[str, Any],
    steps: range,
    load: str | None,
    save: str,
    flatten: bool,
) -> dict[str, Tensor]:
    """One leg of a walk: load what the last one saved, train, save."""
    net = built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **OPTIONS | options)
    how = StateDictOptions(flatten_optimizer_state_dict=flatten)
    if load is not None:
        state: dict[str, Any] = {"model": get_model_state_dict(net)}
        state["optimizer"] = get_optimizer_state_dict(net, optimizer, options=how)
        state_dict_loader.load(state, checkpoint_id=load)
        set_model_state_dict(net, state["model"])
        set_optimizer_state_dict(net, optimizer, state["optimizer"], options=how)
        assert {entry["step"] for entry in optimizer.state.values()} == {steps.start}
    train(net, optimizer, steps, *share(strategy, rank, world))
    state = {"model": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, optimizer, options=how)}
    state_dict_saver.save(state, checkpoint_id=save)
    return weights(net)
