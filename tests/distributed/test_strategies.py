"""Each strategy of torch's, with real processes: what they end with is what one process ends with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from jorge import Jorge
from jorge.methods import METHODS
from tests.distributed import jobs
from tests.distributed.pool import Pool

pytestmark = pytest.mark.slow
STEPS = 12


def off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of weights, over the largest of each parameter."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)) for name, value in expected.items()
    )


@pytest.mark.parametrize(("strategy", "world", "how"), jobs.STRATEGIES, ids=lambda value: str(value))
@pytest.mark.parametrize("method", METHODS)
def test_processes_end_where_one_ends(pool: Pool, strategy: str, world: int, how: dict[str, Any], method: str) -> None:
    options: dict[str, Any] = {"method": method, "grafting": "sgd" if method == "binomial" else "adam"}
    options["stagger"] = method == "exact"
    found = pool.run(world, jobs.trained, strategy, how | options, STEPS)
    expected = jobs.alone(options, STEPS)
    # Averages over three processes are rounded otherwise than those of all.
    assert off(found[0]["weights"], expected) < (1e-12 if world != 3 and method != "exact" else 1e-6)
    for other in found[1:]:
        assert all(torch.equal(other["weights"][name], value) for name, value in found[0]["weights"].items())
    if strategy == "ddp":
        assert all(torch.equal(found[1]["held"][name], value) for name, value in found[0]["held"].items())


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 3), ("fsdp+tp", 4)])
def test_directions_are_sent_in_a_lower_precision_and_replicas_stay_alike(
    pool: Pool, strategy: str, world: int
) -> None:
    how: dict[str, Any] = {"distributed": "shard", "communication_dtype": torch.bfloat16}
    found = pool.run(world, jobs.trained, strategy, how, STEPS)
    wide = pool.run(world, jobs.trained, strategy, {"distributed": "shard"}, STEPS)
    assert 1e-6 < off(found[0]["weights"], wide[0]["weights"]) < 0.08
    for other in found[1:]:
        assert all(torch.equal(other["weights"][name], value) for name, value in found[0]["weights"].items())
    assert sum(each["sent"] for each in found) < 0.95 * sum(each["sent"] for each in wide)


def test_owners_keep_a_share_each(pool: Pool) -> None:
    net = jobs.built("alone", 1)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS)
    jobs.train(net, optimizer, range(1))
    whole = jobs.kept(optimizer, "left", "right")
    for strategy, world, how in [("ddp", 2, {"distributed": "shard"}), ("fsdp", 3, {}), ("hsdp", 4, {})]:
        mine = [each["roots"] for each in pool.run(world, jobs.trained, strategy, how, 1)]
        assert sum(mine) == whole, "each is kept once"
        assert max(mine) <= 1.1 * whole / world


def test_messages_do_not_grow_with_depth(pool: Pool) -> None:
    for strategy, world, how in [
        ("ddp", 2, {"distributed": "replicate"}),
        ("ddp", 2, {"distributed": "shard"}),
        ("fsdp", 2, {}),
    ]:
        calls = [pool.run(world, deep, strategy, how, depth)[0] for depth in (2, 8)]
        assert calls[0] == calls[1] > 0


def deep(rank: int, world: int, strategy: str, how: dict[str, Any], depth: int) -> int:
    """Collectives of six steps of a perceptron."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(20, 20) for _ in range(depth)))
    if strategy == "ddp":
        net = torch.nn.parallel.DistributedDataParallel(net)  # type: ignore[assignment]
    else:
        fully_shard(net)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    for step in range(6):
        optimizer.zero_grad()
        net(torch.randn(4, 20, generator=torch.Generator().manual_seed(world * step + rank))).square().mean().backward()
        optimizer.step()
    return sum(each.calls for each in optimizer.distribution.transports())
