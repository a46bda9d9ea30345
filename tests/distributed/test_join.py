"""Processes that stop before others, and torch's own debug option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from jorge import Jorge
from tests.distributed import jobs
from tests.distributed.pool import Pool

pytestmark = pytest.mark.slow


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 6)).double()


def inputs(rank: int, step: int) -> Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(100 * step + rank), dtype=torch.float64)


def steps_of(rank: int) -> int:
    """One process stops early, and two go on."""
    return (9, 4, 9)[rank]


def joined(rank: int, world: int, mode: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and preconditioners after uneven inputs and three steps of all."""
    model = DistributedDataParallel(net())
    optimizer = Jorge(model.named_parameters(), distributed=mode, **jobs.OPTIONS)
    with Join([model, optimizer]):
        for step in range(steps_of(rank)):
            optimizer.zero_grad()
            model(inputs(rank, step)).square().mean().backward()
            optimizer.step()
    for step in range(20, 23):
        optimizer.zero_grad()
        model(inputs(rank, step)).square().mean().backward()
        optimizer.step()
    optimizer.check_replicas()
    return [p.detach() for p in model.parameters()], [optimizer.state[p]["exp_avg"] for p in model.parameters()]


@pytest.mark.parametrize("mode", ["auto", "replicate", None])
def test_those_that_stop_early_end_with_the_others(pool: Pool, mode: Any) -> None:
    found = pool.run(3, joined, mode)
    model = net()
    optimizer = Jorge(model.named_parameters(), distributed=None, **jobs.OPTIONS)
    for step in [*range(9), *range(20, 23)]:
        optimizer.zero_grad()
        for rank in range(3):
            if step < steps_of(rank) or step >= 20:
                (model(inputs(rank, step)).square().mean() / 3).backward()
        optimizer.step()
    for weights, averages in found:
        for mine, p in zip(weights, model.parameters(), strict=True):
            assert torch.allclose(mine, p, rtol=1e-7, atol=1e-9)
        for mine, p in zip(averages, model.parameters(), strict=True):
            assert torch.allclose(mine, optimizer.state[p]["exp_avg"], rtol=1e-6, atol=1e-10)


def refused(rank: int, world: int) -> str:
    optimizer = Jorge(net().named_parameters(), distributed="shard")
    try:
        Join([optimizer])
    except RuntimeError as error:
        return str(error)
    return ""


def test_owners_cannot_stop_early(pool: Pool) -> None:
    assert all("distributed='replicate'" in text for text in pool.run(2, refused))


def watched(rank: int, world: int) -> str:
    """A weight that changes in one process alone, under torch's debug option."""
    dist.set_debug_level(dist.DebugLevel.DETAIL)  # type: ignore[attr-defined]
    try:
        model = net()
        optimizer = Jorge(model.named_parameters(), **jobs.OPTIONS)
        for step in range(3):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            if step == 2 and rank == 1:
                with torch.no_grad():
                    list(model.parameters())[2][0, 0] += 1e-9
            optimizer.step()
    except RuntimeError as error:
        return f"{step}: {error}"
    finally:
        dist.set_debug_level(dist.DebugLevel.OFF)  # type: ignore[attr-defined]
    return ""


def test_torchs_debug_option_compares_replicas_after_each_step(pool: Pool) -> None:
    for text in pool.run(2, watched):
        assert text.startswith("2: ")
        assert text.endswith(" 2.weight")
