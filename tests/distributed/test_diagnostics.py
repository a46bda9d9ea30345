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
from tests.distributed import jobs, test_fused
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
    {"grafting": "sgd", "method": "congruence", "graft_limit": 1.01},
    {"method": "exact", "stagger": True, "maximize": True},
]


def held(net: nn.Module, optimizer: Jorge) -> Any:
    """Copies of all that is here: weights, state, gradients."""
    params = list(net.parameters())
    grads = [None if p.grad is None else local(p.grad).nan_to_num() for p in params]
    state = [dict(optimizer.state[p]) for p in params if p in optimizer.state]
    return copy.deepcopy([[local(p).detach() for p in params], state, grads, optimizer.skipped_steps()])


def told(net: nn.Module, optimizer: Jorge, part: int, parts: int, *, sick: bool = True) -> list[dict[str, float]]:
    """What is told in each case, after steps of which one was left out: in `sick` a gradient is not finite then."""

    def backward(step: int, *, bad: bool = False) -> None:
        optimizer.zero_grad()
        net(jobs.batch(step, part, parts)).backward()
        for name, p in net.named_parameters():
            if bad and sick and name.endswith("up.weight") and p.grad is not None:
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
        assert same(before, held(net, optimizer))
        flat = seen.flat("")
        found.append({name.removeprefix("module."): value for name, value in flat.items()})
    return found


def in_process(rank: int, world: int, strategy: str, options: dict[str, Any]) -> list[dict[str, float]]:
    net = jobs.built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | options)
    # Replicas have the same gradients; of what is sharded one process may have one that is not finite.
    sick = strategy not in ("fsdp", "hsdp") or rank % 2 == 1
    return told(net, optimizer, *jobs.share(strategy, rank, world), sick=sick)


def off(found: dict[str, float], expected: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What differs by more than rounding."""
    assert found.keys() == expected.keys()
    return {
        key: (found[key], value)
        for key, value in expected.items()
        if not (math.isnan(found[key]) and math.isnan(value))
        and not math.isclose(found[key], value, rel_tol=1e-9, abs_tol=1e-9)
    }


@pytest.mark.parametrize(
    ("strategy", "world", "how", "options"),
    [(*each, {}) for each in STRATEGIES] + [(*STRATEGIES[i], options) for i in (0, 1, 5, 7) for options in OPTIONS],
    ids=str,
)
def test_all_are_told_what_one_process_is(
    pool: Pool, strategy: str, world: int, how: dict[str, Any], options: dict[str, Any]
) -> None:
    net = jobs.built("alone", 1)
    expected = told(net, Jorge(net.named_parameters(), **jobs.OPTIONS | options, distributed=None), 0, 1)
    assert {key.rpartition("/")[2] for key in expected[0]} >= set(MEASURES) - {"limited"}
    assert [each["skipped_steps"] for each in expected] == [1, 1, 1]
    assert not math.isnan(expected[1]["up.weight/cosine"])
    assert math.isnan(expected[1]["down.weight/cosine"])
    assert math.isnan(expected[2]["up.weight/grad_norm"])
    processes = pool.run(world, in_process, strategy, how | options)
    for number, case in enumerate(CASES):
        for found in processes:
            assert off(found[number], expected[number]) == {}, case
            assert str(found[number]) == str(processes[0][number]), "to the bit"


def experts(rank: int, world: int) -> list[dict[str, float]]:
    """Of experts of which each process has some, twice, and of one process that has all."""
    torch.manual_seed(0)
    whole = torch.randn(4, 20, 12, dtype=torch.float64)
    mesh = init_device_mesh("cpu", (2, world // 2))
    sharded, plain = nn.Parameter(distribute_tensor(whole, mesh, [Replicate(), Shard(0)])), nn.Parameter(whole.clone())
    options = {**jobs.OPTIONS, "batch_dims": 1}
    both = [Jorge([("up", sharded)], **options), Jorge([("up", plain)], **options, distributed=None)]
    for _ in range(4):
        grad = torch.randn_like(whole)
        grad[1] = 0  # of which there is no angle
        sharded.grad, plain.grad = distribute_tensor(grad, mesh, [Replicate(), Shard(0)]), grad
        for optimizer in both:
            optimizer.step()
    return [optimizer.diagnostics().flat("") for optimizer in both]


def test_experts_are_counted_once(pool: Pool) -> None:
    for found, expected in pool.run(4, experts):
        assert expected["up/gradient_residual"] > 0
        assert off(found, expected) == {}


def of_fused(rank: int, world: int, how: str) -> list[dict[str, float]]:
    """Of fused weights and experts that do not divide, with gradients and without some."""
    net = test_fused.built() if how == "alone" else test_fused.sharded(test_fused.built(), how, world)
    optimizer = test_fused.optimizer_of(net, {"distributed": None} if how == "alone" else {})
    found = []
    for step in range(6):
        test_fused.give(net, step, True)
        if step:
            found.append(optimizer.diagnostics().flat(""))
        optimizer.step()
    return found


@pytest.mark.parametrize(("how", "world"), [("fsdp", 2), ("fsdp", 4), ("hsdp", 4), ("tp", 4)])
def test_several_matrices_in_a_sharded_parameter(pool: Pool, how: str, world: int) -> None:
    expected = of_fused(0, 1, "alone")
    assert math.isnan(expected[0]["w1/cosine"])
    assert expected[1]["first.qkv.weight/whitening_residual"] > 0
    for processes, wanted in zip(zip(*pool.run(world, of_fused, how), strict=True), expected, strict=True):
        assert len({str(each) for each in processes}) == 1, "the same, to the bit"
        assert off(processes[0], wanted) == {}


def lacks_a_gradient(rank: int, world: int) -> list[Any]:
    net = jobs.built("fsdp", world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS)
    jobs.train(net, optimizer, range(3), rank, world)
    net.zero_grad()
    net(jobs.batch(3, rank, world)).backward()
    p = net.get_parameter("up.weight")
    if rank == 1:
        p.grad = None
    told = optimizer.diagnostics()
    return [str(told.flat()), told.parameters["up.weight"]["cosine"] > 0, p.grad is None]


def test_a_shard_without_a_gradient_is_one_of_zeros(pool: Pool) -> None:
    (first, known, lacks), (second, _, other_lacks) = pool.run(2, lacks_a_gradient)
    assert first == second
    assert known
    assert (lacks, other_lacks) == (False, True)


def counted(rank: int, world: int, strategy: str, how: dict[str, Any], depth: int) -> tuple[int, int]:
    """Collectives, and lists of numbers that are waited for."""
    net: nn.Module = nn.Sequential(*(nn.Linear(20, 20) for _ in range(depth)))
    if strategy == "ddp":
        net = DistributedDataParallel(net)
    else:
        fully_shard(net)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    for step in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 20, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    before, real = sum(each.calls for each in optimizer.distribution.transports()), Tensor.tolist
    waits = 0

    def tolist(self: Tensor) -> Any:
        nonlocal waits
        waits += self.is_floating_point()  # the numbers of processes and of parameters lie on the host
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "tolist", tolist)
        optimizer.diagnostics()
    return sum(each.calls for each in optimizer.distribution.transports()) - before, waits


@pytest.mark.parametrize(
    ("strategy", "how", "talks"),
    [("ddp", {}, False), ("ddp", {"distributed": "shard"}, True), ("fsdp", {}, True)],
    ids=str,
)
def test_it_waits_once_and_messages_do_not_grow_with_depth(
    pool: Pool, strategy: str, how: dict[str, Any], talks: bool
) -> None:
    (calls, waits), (more_calls, more_waits) = (pool.run(2, counted, strategy, how, depth)[0] for depth in (2, 8))
    assert calls == more_calls
    assert (calls > 0) == talks, "replicas may ask alone"
    assert waits == more_waits == 1
