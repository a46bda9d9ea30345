"""What else torch's wrappers can do, with Jorge in them: as in one process, or an error that says what to do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _world
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from jorge import Jorge
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_strategies import off

pytestmark = pytest.mark.slow
STEPS = 6


def small() -> nn.Module:
    """Two matrices, which are fewer than five processes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def inputs(step: int, rank: int, world: int) -> Tensor:
    """A process's part of a batch of 60."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(60, 6, generator=generator, dtype=torch.float64).chunk(world)[rank]


def take(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0, world: int = 1, steps: int = STEPS) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        net(inputs(step, rank, world)).square().mean().backward()
        optimizer.step()


def one_process(steps: int = STEPS) -> dict[str, Tensor]:
    net = small()
    take(net, Jorge(net.named_parameters(), **jobs.OPTIONS, distributed=None), steps=steps)
    return jobs.weights(net)


def few_blocks(rank: int, world: int, strategy: str, how: dict[str, Any]) -> dict[str, Tensor]:
    net = small()
    if strategy == "ddp":
        net = DistributedDataParallel(net)
    else:
        fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    take(net, optimizer, rank, world)
    optimizer.check_replicas()
    return jobs.weights(net)


@pytest.mark.parametrize("world", [3, 5])
@pytest.mark.parametrize(
    ("strategy", "how"), [("ddp", {}), ("ddp", {"distributed": "shard"}), ("fsdp", {})], ids=lambda value: str(value)
)
def test_more_processes_than_blocks_and_odd_numbers(pool: Pool, strategy: str, how: dict[str, Any], world: int) -> None:
    for found in pool.run(world, few_blocks, strategy, how):
        assert off(found, one_process()) < 1e-6  # averages over three and five are rounded otherwise


def static(rank: int, world: int, how: dict[str, Any]) -> dict[str, Tensor]:
    net = DistributedDataParallel(small(), static_graph=True, gradient_as_bucket_view=True)
    take(net, Jorge(net.named_parameters(), **jobs.OPTIONS | how), rank, world)
    return jobs.weights(net)


@pytest.mark.parametrize("how", [{}, {"distributed": "shard"}], ids=str)
def test_static_graphs_and_gradients_that_are_views_of_buckets(pool: Pool, how: dict[str, Any]) -> None:
    for found in pool.run(2, static, how):
        assert off(found, one_process()) < 1e-12


def joining(rank: int, world: int) -> dict[str, Tensor]:
    net = DistributedDataParallel(small())
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS, distributed=None)
    with net.join(divide_by_initial_world_size=False):
        take(net, optimizer, rank, world, STEPS if rank == 0 else 3)
    return jobs.weights(net)


def test_a_process_that_has_no_more_batches_joins(pool: Pool) -> None:
    found, other = pool.run(2, joining)
    assert all(torch.equal(other[name], value) for name, value in found.items())
    net = small()
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS, distributed=None)
    for step in range(STEPS):
        optimizer.zero_grad()
        net(inputs(step, 0, 1 if step < 3 else 2)).square().mean().backward()
        optimizer.step()
    assert off(found, jobs.weights(net)) < 1e-12


def offloaded(rank: int, world: int) -> dict[str, Tensor]:
    net = small()
    fully_shard(net, mesh=init_device_mesh("cpu", (world,)), offload_policy=CPUOffloadPolicy(pin_memory=False))
    take(net, Jorge(net.named_parameters(), **jobs.OPTIONS), rank, world)
    return jobs.weights(net)


def test_weights_that_are_offloaded(pool: Pool) -> None:
    for found in pool.run(2, offloaded):
        assert off(found, one_process()) < 1e-12


def redundancy(rank: int, world: int, how: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    net = DistributedDataParallel(small())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns of torch.jit

        optimizer = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=Jorge, **jobs.OPTIONS, **how)
        take(net, optimizer, rank, world)
    return jobs.weights(net), [str(warning.message) for warning in seen]


def test_torchs_zero_redundancy_optimizer(pool: Pool) -> None:
    for found, said in pool.run(2, redundancy, {"distributed": None}):
        assert off(found, one_process()) < 1e-12
        assert not any("works alone" in text for text in said)
    for found, said in pool.run(2, redundancy, {}):
        assert off(found, one_process()) < 1e-12
        assert any("distributed=None says so without a warning" in text for text in said)


def flattened(rank: int, world: int) -> list[str]:
    found = []
    for whole in (False, True):
        net = FullyShardedDataParallel(small(), use_orig_params=whole, device_id=torch.device("cpu"))
        try:
            Jorge(net.named_parameters(), **jobs.OPTIONS)
        except TypeError as error:
            found.append(str(error))
    return found


def test_fsdp1_is_told_what_to_use_instead(pool: Pool) -> None:
    for first, second in pool.run(2, flattened):
        assert "FSDP1 has flattened _fsdp_wrapped_module._flat_param" in first
        assert "FSDP1 has flattened _fsdp_wrapped_module.0.weight" in second
        assert "with fully_shard (FSDP2) instead" in first


def unsharded(rank: int, world: int) -> dict[str, Tensor]:
    strategy = ShardingStrategy.NO_SHARD
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which torch deprecates
        net = FullyShardedDataParallel(
            small(), sharding_strategy=strategy, use_orig_params=True, device_id=torch.device("cpu")
        )
    take(net, Jorge(net.named_parameters(), **jobs.OPTIONS), rank, world)
    return {name.removeprefix("_fsdp_wrapped_module."): value for name, value in jobs.weights(net).items()}


def test_fsdp1_that_does_not_shard_is_as_ddp(pool: Pool) -> None:
    for found in pool.run(2, unsharded):
        assert off(found, one_process()) < 1e-12


def stages(rank: int, world: int) -> tuple[int, dict[str, Tensor]]:
    """A pipeline of two stages, each HSDP over two processes: the first takes a step, the second none."""
    mesh = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("stage", "replicate", "shard"))
    net = small()
    fully_shard(net, mesh=mesh["replicate", "shard"])
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS)
    before = _world.group_count
    if rank < 2:
        take(net, optimizer, rank, 2)
    return _world.group_count - before, jobs.weights(net)


def test_a_stage_of_a_pipeline_makes_no_group_that_others_must_make(pool: Pool) -> None:
    assert [made for made, _ in pool.run(4, stages)] == [0] * 4


def test_each_stage_of_a_pipeline_trains(pool: Pool) -> None:
    found = pool.run(4, stages)
    for _, weights in found[:2]:
        assert off(weights, one_process()) < 1e-12
