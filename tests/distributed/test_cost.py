"""What is counted by the assignment alone is what real processes hold and send."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jorge import Jorge
from jorge.cost import distributed
from jorge.cost.distributed import Strategy
from jorge.exchange import domains
from jorge.exchange.rates import Rates
from jorge.schedule import Schedule
from jorge_lab.cost.shapes import MODELS
from tests.distributed import jobs
from tests.distributed.pool import Pool

STEPS = 9
Shapes = dict[str, tuple[int, ...]]


def sent(rank: int, world: int, strategy: str, how: dict[str, Any]) -> tuple[int, int, int]:
    """Bytes and messages after the first look, and bytes of the state."""
    patch = pytest.MonkeyPatch()
    if strategy == "ddp-alone":  # as where links are slow
        patch.setattr(domains, "rates", lambda kind, near: Rates(1e30, 1.0, 1.0))
        strategy = "ddp"
    net = jobs.built(strategy, world, torch.float32)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    jobs.train(net, optimizer, range(STEPS), rank, world)
    patch.undo()
    transports = optimizer.distribution.transports()
    entries = (item for entry in optimizer.state.values() for item in entry.items())
    state = sum(value.nbytes for key, value in entries if isinstance(value, torch.Tensor))
    return sum(each.sent for each in transports), sum(each.calls for each in transports), state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "world", "how"),
    [
        ("ddp", 2, {"distributed": "replicate"}),
        ("ddp", 4, {"distributed": "replicate"}),
        ("ddp-alone", 2, {}),
        ("ddp-shard", 2, {"distributed": "shard"}),
        ("fsdp", 2, {}),
        ("fsdp", 4, {}),
        ("hsdp", 4, {}),
        ("ddp-shard", 2, {"distributed": "shard", "communication_dtype": torch.bfloat16}),
        ("fsdp", 3, {"communication_dtype": torch.float16}),
    ],
    ids=str,
)
def test_what_is_counted_is_what_is_held_and_sent(
    pool: Pool, strategy: Strategy, world: int, how: dict[str, Any]
) -> None:
    found = pool.run(world, sent, strategy.removesuffix("-shard"), how)
    net = jobs.built("alone", 1, torch.float32)
    given = {name: tuple(p.shape) for name, p in net.named_parameters() if p.requires_grad}
    count = len(list(net.parameters()))
    dtype = how.get("communication_dtype")
    cost = distributed(given, world_size=world, strategy=strategy, communication_dtype=dtype, **jobs.OPTIONS)
    if dtype is not None:
        wide = distributed(given, world_size=world, strategy=strategy, **jobs.OPTIONS)
        assert max(cost.step_bytes) < 0.9 * max(wide.step_bytes)
    schedule = Schedule(jobs.OPTIONS["interval"], jobs.OPTIONS["warmup_refreshes"])
    refreshes = sum(schedule.at(step) is not None for step in range(1, STEPS + 1))
    plain = strategy.startswith("ddp")  # whose processes look once whether they are alike, by four numbers
    said = 2 * 2 * 4 * count * (world - 1) // world  # of who has a gradient, as all are on CPUs
    heard = STEPS - plain
    for rank, (nbytes, calls, state) in enumerate(found):
        assert state == cost.state_bytes[rank]
        expected = STEPS * cost.step_bytes[rank] + refreshes * cost.refresh_bytes[rank]
        assert nbytes == expected + heard * said + plain * 32 * (world - 1)
        assert calls == STEPS * cost.step_messages + refreshes * cost.refresh_messages + heard + plain


def gpt2_xl() -> Shapes:
    shapes: Shapes = {"wte": (50257, 1600), "wpe": (1024, 1600)}
    for i in range(48):
        shapes |= {f"{i}.qkv": (4800, 1600), f"{i}.proj": (1600, 1600), f"{i}.up": (6400, 1600)}
        shapes |= {f"{i}.down": (1600, 6400), f"{i}.norm": (1600,)}
    return shapes


@pytest.mark.parametrize("strategy", ["ddp", "ddp-shard", "fsdp"])
def test_the_work_is_even(strategy: Strategy) -> None:
    resnet = dict(MODELS["resnet50"]())
    assert distributed(resnet, world_size=8, strategy=strategy).imbalance <= 1.1
    whole = distributed(gpt2_xl(), world_size=1, strategy=strategy)
    for size in (8, 64):
        cost = distributed(gpt2_xl(), world_size=size, strategy=strategy)
        assert sum(cost.refresh_flops) == whole.refresh_flops[0]
        assert max(cost.refresh_flops) <= 1.1 / size * whole.refresh_flops[0]


def test_owners_hold_their_share_of_the_roots() -> None:
    whole = distributed(gpt2_xl(), world_size=1, strategy="ddp-shard").state_bytes[0]
    for size in (8, 64):
        held = distributed(gpt2_xl(), world_size=size, strategy="ddp-shard").state_bytes
        roots = (size * whole - sum(held)) / (size - 1)  # the rest is there in each
        assert max(held) - (whole - roots) <= 1.1 / size * roots
        assert roots > whole / 3


@pytest.mark.parametrize(("strategy", "size"), [("pipeline", 4), ("hsdp", 3), ("ddp", 0)])
def test_what_cannot_be_is_refused(strategy: Any, size: int) -> None:
    with pytest.raises(ValueError, match=r"strategy must be one of|cannot have world_size"):
        distributed({"weight": (4, 4)}, world_size=size, strategy=strategy)
