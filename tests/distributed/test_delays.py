"""A process that is late, or stops, at every message changes nothing but time, or ends the others with an error."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from jorge import Jorge
from jorge.exchange.transport import Coming, Transport
from tests.distributed import jobs
from tests.distributed.pool import Pool

pytestmark = pytest.mark.slow


def late(rank: int, world: int, strategy: str, how: dict[str, Any], delayed: int | None) -> list[Any]:
    """The weights after each step, and how often this process was delayed: before it sends, and before it takes."""
    waits, draw = [0], random.Random(rank)

    def after_a_while(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            waits[0] += 1
            time.sleep(0.01 * draw.random())
            return method(*args, **options)

        return call

    trajectory: list[dict[str, Tensor]] = []
    with ExitStack() as stack:
        if rank == delayed:
            places: list[tuple[Any, str]] = [(Transport, name) for name in ("sum", "least", "gather", "swap")]
            places += [(Coming, "wait"), (dist, "all_reduce"), (dist, "all_to_all_single")]
            for place, name in places:
                stack.enter_context(mock.patch.object(place, name, after_a_while(getattr(place, name))))
        net = jobs.built(strategy, world, torch.float32)
        optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
        for step in range(5):
            jobs.train(net, optimizer, range(step, step + 1), *jobs.share(strategy, rank, world))
            trajectory.append(jobs.weights(net))
    return [trajectory, waits[0]]


@pytest.mark.parametrize(
    ("strategy", "world", "how"),
    [("ddp", 2, {"stagger": True}), ("ddp", 3, {"distributed": "shard"}), ("fsdp", 2, {}), ("fsdp+tp", 4, {})],
    ids=lambda value: str(value),
)
def test_a_late_process_changes_nothing_but_time(pool: Pool, strategy: str, world: int, how: dict[str, Any]) -> None:
    undisturbed = pool.run(world, late, strategy, how, None)
    for delayed in (0, world - 1):
        found = pool.run(world, late, strategy, how, delayed)
        assert found[delayed][1] > 10
        for (trajectory, _), (expected, _) in zip(found, undisturbed, strict=True):
            for weights, others in zip(trajectory, expected, strict=True):
                assert all(torch.equal(others[name], value) for name, value in weights.items())


STOPS = """
import datetime, sys, time, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from jorge import Jorge
rank, strategy = int(sys.argv[1]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=10))
net = torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(30, 30))
net = fully_shard(net) if strategy == "fsdp" else DistributedDataParallel(net)
optimizer = Jorge(net.parameters())
for step in range(6):
    net(torch.ones(2, 30)).sum().backward()
    if rank == 1 and step == 3:
        transport = optimizer.distribution.transports()[0]
        transport.swap = transport.gather = lambda *_: time.sleep(600)  # in the middle of the step
    optimizer.step()
"""


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_when_a_process_stops_the_others_end_with_torchs_timeout(tmp_path: Path, strategy: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", STOPS, str(rank), str(tmp_path / "rendezvous"), strategy],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, error = processes[0].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
        processes[1].communicate()
    assert processes[0].returncode not in (0, -9)
    assert "Timed out waiting" in error
