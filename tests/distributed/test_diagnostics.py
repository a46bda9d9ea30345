"""Diagnostics where state lies in several processes: all are told what one process is told."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from jorge import Jorge
from jorge.diagnostics import MEASURES
from jorge.exchange.domains import local
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.test_diagnostics import same

pytestmark = pytest.mark.slow
STEPS = 7
CASES = ("all have gradients", "two have none", "one is not finite")
STRATEGIES: list[tuple[str, int, dict[str, Any]]] = [
    ("ddp", 2, {"distributed": "replicate"}),
    ("ddp", 2, {"distributed": "shard"}),
    ("ddp", 4, {"distributed": "shard"}),
    ("fsdp", 2, {}),
    ("fsdp", 4, {}),  # of some layers not all hold rows
    ("hsdp", 4, {}),
    ("tp", 2, {}),
    ("fsdp+tp", 4, {}),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"grafting": "sgd", "method": "congruence", "graft_limit": 1.01},
    {"method": "exact", "stagger": True, "maximize": True},
]


def held(net: nn.Module, optimizer: Jorge) -> Any:
    """Copies of all that is here: weights, state, gradients."""
    params = list(net.parameters())
    grads = [None if p.grad is None else local(p.grad) for p in params]
    state = [dict(optimizer.state[p]) for p in params if p in optimizer.state]
    return copy.deepcopy([[local(p).detach() for p in params], state, grads, optimizer.skipped_steps()])


def told(net: nn.Module, optimizer: Jorge, part: int, parts: int, ranks: tuple[int, ...]) -> list[dict[str, float]]:
    """What is told in each case, after steps of which one was left out."""

    def backward(step: int, *, bad: bool = False) -> None:
        optimizer.zero_grad()
        net(jobs.batch(step, part, parts)).backward()
        for name, p in net.named_parameters():
            if bad and name.endswith("up.weight") and p.grad is not None and 1 in ranks:
                local(p.grad).fill_(torch.nan)

    for step in range(STEPS):
        backward(step, bad=step == 2)
        optimizer.step()
    found = []
    for case in CASES:
        backward(STEPS, bad=case == CASES[2])
        for name, p in net.named_parameters():
            if case == CASES[1] and name.endswith(("down.weight", "up.bias")):
                p.grad = None
        before = held(net, optimizer)
        seen = optimizer.diagnostics()
        assert same(torch.nan_to_num(torch.zeros(1)), torch.zeros(1))
        after = held(net, optimizer)
        if case != CASES[2]:  # which is not equal to itself
            assert same(before, after)
        flat = seen.flat("")
        found.append({name.removeprefix("module."): value for name, value in flat.items()})
    return found


def in_process(rank: int, world: int, strategy: str, options: dict[str, Any]) -> list[dict[str, float]]:
    net = jobs.built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | options)
    # Replicas have the same gradients; of what is sharded one process alone has one that is not finite.
    ranks = (1,) if strategy == "ddp" or "tp" in strategy else (rank,)
    return told(net, optimizer, *jobs.share(strategy, rank, world), ranks)


def off(found: dict[str, float], expected: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What differs by more than rounding."""
    assert found.keys() == expected.keys()
    return {
        key: (found[key], value)
        for key, value in expected.items()
        if not (math.isnan(found[key]) and math.isnan(value))
        and not math.isclose(found[key], value, rel_tol=1e-9, abs_tol=1e-9)
    }


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("strategy", "world", "how"), STRATEGIES, ids=str)
def test_all_are_told_what_one_process_is(
    pool: Pool, strategy: str, world: int, how: dict[str, Any], options: dict[str, Any]
) -> None:
    own = {name: value for name, value in options.items() if name != "stagger" or "tp" not in strategy}
    net = jobs.built("alone", 1)
    expected = told(net, Jorge(net.named_parameters(), **jobs.OPTIONS | own, distributed=None), 0, 1, (1,))
    assert {key.rpartition("/")[2] for key in expected[0]} >= set(MEASURES) - {"limited"}
    assert expected[0]["skipped_steps"] == 1
    processes = pool.run(world, in_process, strategy, how | own)
    for number, case in enumerate(CASES):
        for found in processes:
            assert off(found[number], expected[number]) == {}, case
            assert str(found[number]) == str(processes[0][number]), "to the bit"
