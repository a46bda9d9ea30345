"""Sharded parameters that hold several matrices: fused queries, keys and values, and experts that do not divide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from jorge import Jorge, param_groups
from tests.distributed import jobs
from tests.distributed.pool import Pool

STEPS = 12


class Block(nn.Module):
    """An attention-like layer with fused weights, twice, and experts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.ModuleDict({"qkv": nn.Linear(20, 60), "out": nn.Linear(20, 20)}) for _ in "ab")
        self.w1 = nn.Parameter(torch.randn(5, 20, 34) / 5)
        self.w2 = nn.Parameter(torch.randn(5, 34, 20) / 6)

    def forward(self, x: Tensor) -> Tensor:
        for each in (self.first, self.second):
            q, k, v = each["qkv"](x).chunk(3, -1)
            x = x + each["out"](torch.softmax(q @ k.mT, -1) @ v)
        h = torch.relu(torch.einsum("bti,eij->ebtj", x, self.w1))
        loss: Tensor = (x + torch.einsum("ebtj,eji->bti", h, self.w2)).square().mean()
        return loss


def built() -> Block:
    torch.manual_seed(0)
    return Block().double()


def sharded(net: nn.Module, how: str, world: int) -> nn.Module:
    """The model under a strategy; with tensor parallelism its weights alone, whose gradients are put there by hand."""
    if how == "fsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    elif how == "hsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard")))
    else:
        mesh = init_device_mesh("cpu", (2, world // 2))
        for module in list(net.modules()):
            for name, p in list(module.named_parameters(recurse=False)):
                cut = Shard(2 if p.dim() == 3 else 0)
                module.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, [cut, Replicate()])))
    return net


def give(net: nn.Module, step: int, absent: bool) -> None:
    """The gradients of one process, sharded as the parameters are."""
    whole = built()
    with torch.no_grad():
        for p, q in zip(whole.parameters(), net.parameters(), strict=True):
            p.copy_(q.full_tensor() if isinstance(q, DTensor) else q)
    whole(torch.randn(4, 6, 20, generator=torch.Generator().manual_seed(step), dtype=torch.float64)).backward()
    for i, (p, q) in enumerate(zip(whole.parameters(), net.parameters(), strict=True)):
        assert p.grad is not None
        q.grad = distribute_tensor(p.grad, q.device_mesh, q.placements) if isinstance(q, DTensor) else p.grad
        if absent and step % 4 == 1 and i % 3 == 0:
            q.grad = None


def optimizer_of(net: nn.Module, options: dict[str, Any]) -> Jorge:
    return Jorge(param_groups(net, weight_decay=0.1), **{**jobs.OPTIONS, "weight_decay": 0, **options})


def trained(rank: int, world: int, how: str, options: dict[str, Any], absent: bool) -> dict[str, Any]:
    net = built() if how == "alone" else sharded(built(), how, world)
    optimizer = optimizer_of(net, options)
    for step in range(STEPS):
        give(net, step, absent)
        optimizer.step()
    state = optimizer.state_dict()["state"]
    whole = [
        {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in entry.items()} for entry in state.values()
    ]
    return {
        "weights": jobs.weights(net),
        "state": whole,
        "splits": [g.get("splits", 1) for g in optimizer.param_groups],
    }


@pytest.mark.parametrize(
    ("how", "world", "options", "absent"),
    [
        ("fsdp", 2, {}, False),
        ("fsdp", 3, {"stagger": True}, True),
        ("fsdp", 4, {"method": "exact", "grafting": "sgd"}, False),
        ("hsdp", 4, {"method": "congruence", "workspace": 0.01}, True),
        ("tp", 4, {"method": "binomial", "grafting": "sgd"}, False),
    ],
)
def test_they_end_where_one_process_ends(
    pool: Pool, how: str, world: int, options: dict[str, Any], absent: bool
) -> None:
    expected = trained(0, 1, "alone", {**options, "distributed": None}, absent)
    assert max(expected["splits"]) == 3
    for found in pool.run(world, trained, how, options, absent):
        assert found["splits"] == expected["splits"], "groups are those of one process"
        for name, value in expected["weights"].items():
            assert torch.allclose(found["weights"][name], value, rtol=1e-7, atol=1e-9), name
        for mine, entry in zip(found["state"], expected["state"], strict=True):
            assert mine.keys() == entry.keys()
            for key, value in entry.items():
                same = mine[key] == value if key == "step" else torch.allclose(mine[key], value, rtol=1e-6, atol=1e-9)
                assert same, key


def moved(rank: int, world: int, legs: list[str]) -> dict[str, Tensor]:
    """A training that is saved and loaded between strategies."""
    kept: dict[str, Any] = {}
    for leg, how in enumerate(legs):
        net = built() if how == "alone" else sharded(built(), how, world)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if kept:
                    value = kept["weights"][name]
                    p.copy_(distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value)
        optimizer = optimizer_of(net, {"distributed": "auto" if how != "alone" else None})
        if kept:
            optimizer.load_state_dict(kept["optimizer"])
        for step in range(3 * leg, 3 * leg + 3):
            give(net, step, False)
            optimizer.step()
        state = optimizer.state_dict()
        for entry in state["state"].values():
            entry.update({k: v.full_tensor() for k, v in entry.items() if isinstance(v, DTensor)})
        kept = {"weights": jobs.weights(net), "optimizer": state}
    dist.barrier()
    weights: dict[str, Tensor] = kept["weights"]
    return weights


def test_checkpoints_move_between_strategies(pool: Pool) -> None:
    expected = trained(0, 1, "alone", {"distributed": None}, False)["weights"]
    for found in pool.run(4, moved, ["fsdp", "alone", "tp", "hsdp"]):
        assert all(torch.allclose(found[name], value, rtol=1e-7, atol=1e-9) for name, value in expected.items())
