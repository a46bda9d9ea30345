"""Processes decide alike, whatever one of them sees."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from jorge import Jorge, graphs, param_groups
from jorge.cost.distributed import automatic
from jorge.exchange import domains
from jorge.exchange.rates import CPU, rates
from jorge.options import Options
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.recorded import Recorder

pytestmark = pytest.mark.slow


def one_is_not_finite(rank: int, world: int, strategy: str, how: dict[str, Any]) -> list[Any]:
    net = jobs.built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    jobs.train(net, optimizer, range(3), rank, world)
    before = jobs.weights(net)
    net(jobs.batch(3, rank, world)).backward()
    if rank == 1:
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        local = [g.to_local() if isinstance(g, DTensor) else g for g in grads]
        next(g for g in local if g.numel()).fill_(torch.inf)
    optimizer.step()
    after = jobs.weights(net)
    still = all(torch.equal(before[name], value) for name, value in after.items())
    jobs.train(net, optimizer, range(4, 6), rank, world)
    return [still, optimizer.skipped_steps(), jobs.weights(net)]


@pytest.mark.parametrize(
    ("strategy", "how"), [("fsdp", {}), ("ddp", {}), ("ddp", {"distributed": "shard"})], ids=lambda value: str(value)
)
def test_a_gradient_that_is_not_finite_in_one_process_moves_none(
    pool: Pool, strategy: str, how: dict[str, Any]
) -> None:
    found = pool.run(2, one_is_not_finite, strategy, how)
    for still, skips, weights in found:
        assert still
        assert (skips.total, skips.in_a_row) == (1, 0)
        assert all(torch.equal(found[0][2][name], value) for name, value in weights.items())


class Branches(nn.Module):
    """One of two layers is used, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, first: bool) -> Tensor:
        loss: Tensor = (self.first if first else self.second)(x).square().mean()
        return loss


def branches(rank: int, world: int, how: dict[str, Any]) -> list[Any]:
    torch.manual_seed(0)
    net = DistributedDataParallel(Branches().double(), find_unused_parameters=True)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    for step in range(8):
        optimizer.zero_grad()
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2 * step + rank), dtype=torch.float64)
        with net.no_sync():
            net(x, True).backward()
        net(x, rank == 0 or step % 2 == 0).backward()
        optimizer.step()
    steps = [optimizer.state[p]["step"] if p in optimizer.state else 0 for p in net.parameters()]
    return [jobs.weights(net), steps]


@pytest.mark.parametrize("how", [{}, {"distributed": "shard"}], ids=str)
def test_branches_that_one_process_takes_and_another_does_not(pool: Pool, how: dict[str, Any]) -> None:
    (weights, steps), (others, other_steps) = pool.run(2, branches, how)
    assert steps == other_steps == [8, 8, 4, 4, 0, 0]
    assert all(torch.equal(others[name], value) for name, value in weights.items())
    torch.manual_seed(0)
    net = Branches().double()
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS)
    for step in range(8):
        optimizer.zero_grad()
        for rank in range(2):
            generator = torch.Generator().manual_seed(2 * step + rank)
            x = torch.randn(4, 8, generator=generator, dtype=torch.float64)
            ((net(x, True) + net(x, rank == 0 or step % 2 == 0)) / 2).backward()
        optimizer.step()
    assert all(torch.allclose(value, weights[name], rtol=1e-9) for name, value in jobs.weights(net).items())


def lacks_a_gradient(rank: int, world: int, strategy: str) -> Any:
    net = jobs.built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS)
    jobs.train(net, optimizer, range(3), rank, world)
    net(jobs.batch(3, rank, world)).backward()
    name, p = next((name, p) for name, p in net.named_parameters() if "up.weight" in name)
    if rank == 1:
        p.grad = None
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return [optimizer.state[p]["step"], p.grad is None, jobs.weights(net)[name.removeprefix("module.")]]


def test_a_shard_without_a_gradient_is_one_of_zeros(pool: Pool) -> None:
    (step, lacks, weight), (other_step, other_lacks, other_weight) = pool.run(2, lacks_a_gradient, "fsdp")
    assert step == other_step == 4
    assert (lacks, other_lacks) == (False, True), "nobody's gradients are left changed"
    assert torch.equal(weight, other_weight)


def test_a_replica_without_a_gradient_is_refused_in_all_processes(pool: Pool) -> None:
    for text in pool.run(2, lacks_a_gradient, "ddp"):
        assert "module.up.weight has a gradient in some processes and none in others" in text


def apart(rank: int, world: int, how: dict[str, Any], what: str) -> list[Any]:
    torch.manual_seed(rank if what == "weights" else 0)
    net = nn.Linear(6, 5 + (rank if what == "parameters or options" else 0))
    optimizer = Jorge(net.named_parameters(), **how)
    found: list[Any] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(3):
            generator = torch.Generator().manual_seed(2 * step + (rank if what != "nothing" else 0))
            net(torch.randn(4, 6, generator=generator)).square().mean().backward()
            try:
                optimizer.step()
            except ValueError as error:
                return [str(error)]
        found = [str(w.message) for w in seen if "processes" in str(w.message)]
    return [*found, sum(each.calls for each in optimizer.distribution.transports())]


@pytest.mark.parametrize("what", ["weights", "gradients", "parameters or options"])
def test_processes_that_train_for_themselves_are_left_alone(pool: Pool, what: str) -> None:
    for warned, calls in pool.run(2, apart, {}, what):
        assert what in warned
        assert "Each process works alone" in warned
        assert calls == 1, "the look"
    for found in pool.run(2, apart, {"distributed": None}, what):
        assert found == [0]
    for (error,) in pool.run(2, apart, {"distributed": "replicate"}, what):
        assert what in error


def placements(rank: int, world: int) -> list[str]:
    mesh = init_device_mesh("cpu", (world,))
    found = []
    whole = torch.ones(6, 4, 3)
    for placement, shape in ((Partial(), (6, 4)), (Shard(2), (6, 4, 3))):
        local = whole[..., 0] if shape == (6, 4) else whole
        p = (
            DTensor.from_local(local, mesh, [placement], run_check=False)
            if isinstance(placement, Partial)
            else distribute_tensor(local, mesh, [placement])
        )
        try:
            Jorge([("layer", nn.Parameter(p))])
        except TypeError as error:
            found.append(str(error))
    good = nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)]))
    refused: list[dict[str, Any]] = [{"compile_step": True}, {"capturable": True}, {"cuda_graphs": True}]
    for options in refused:
        try:
            optimizer = Jorge([("layer", good)], **options)
            good.grad = torch.ones_like(good)
            optimizer.step()
        except (TypeError, ValueError) as error:
            found.append(str(error))
    return found


def test_what_is_not_supported_says_so_by_name(pool: Pool) -> None:
    partial, inner, compiled, captured, replayed = pool.run(2, placements)[0]
    assert all(word in partial for word in ("'layer'", "Partial", "DeviceMesh", "replicate it"))
    assert all(word in inner for word in ("'layer'", "cut along dim 2", "DeviceMesh"))
    assert "compile_step" in compiled
    assert "capturable" in captured
    assert "cuda_graphs" in replayed


def with_graphs(rank: int, world: int, compiled: bool) -> tuple[dict[str, Tensor], int]:
    net = jobs.built("ddp", world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS, cuda_graphs=True)
    run = torch.compile(net, backend="eager") if compiled else net
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(graphs.RECORDERS, "cpu", Recorder)
        Recorder.forget()
        jobs.train(run, optimizer, range(30), rank, world)  # type: ignore[arg-type]
    assert not optimizer.distribution.transports()
    return jobs.weights(net), Recorder.replayed


@pytest.mark.parametrize("compiled", [False, True])
def test_under_ddp_each_process_replays_its_own_graphs(pool: Pool, compiled: bool) -> None:
    found = pool.run(2, with_graphs, compiled)
    wanted = jobs.alone({}, 30)
    for weights, replayed in found:
        assert replayed > 10
        assert all(torch.equal(found[0][0][name], value) for name, value in weights.items())
        assert all(torch.allclose(wanted[name], value, rtol=1e-6, atol=1e-8) for name, value in weights.items())


def experts(rank: int, world: int, stagger: bool) -> list[Any]:
    torch.manual_seed(0)
    whole = torch.randn(4, 20, 12, dtype=torch.float64)
    bias = torch.randn(12, dtype=torch.float64)
    mesh = init_device_mesh("cpu", (world,))
    sharded = [nn.Parameter(distribute_tensor(w, mesh, [Shard(0)])) for w in (whole, bias)]
    plain = [nn.Parameter(w.clone()) for w in (whole, bias)]
    options = {**jobs.OPTIONS, "batch_dims": 1, "stagger": stagger, "block_size": 8}
    optimizer, single = Jorge(sharded, **options), Jorge(plain, **options, distributed=None)

    def step(one: Jorge, other: Jorge) -> float:
        grads = [torch.randn_like(w) for w in (whole, bias)]
        for p, q, g in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], grads, strict=True):
            p.grad, q.grad = distribute_tensor(g, mesh, [Shard(0)]), g.clone()
        one.step()
        other.step()
        return max(float((p.full_tensor() - q).abs().max()) for p, q in zip(sharded, plain, strict=True))  # type: ignore[attr-defined]

    found = [step(optimizer, single) for _ in range(5)]
    sent = sum(each.sent for each in optimizer.distribution.transports())
    saved = optimizer.state_dict()
    shapes = [
        tuple(saved["state"][0][key].shape) == tuple(value.shape)
        for key, value in single.state_dict()["state"][0].items()
        if key != "step"
    ]
    fresh = Jorge(sharded, **options)
    fresh.load_state_dict(saved if rank >= 0 else {})
    found += [step(fresh, single) for _ in range(5)]
    fresh = Jorge(sharded, **options)
    fresh.load_state_dict(single.state_dict())
    found += [step(fresh, single) for _ in range(3)]
    return [max(found), all(shapes), sent]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("stagger", [False, True])
def test_experts_are_worked_on_where_they_are(pool: Pool, world: int, stagger: bool) -> None:
    for off, same_shapes, sent in pool.run(world, experts, stagger):
        assert off < 1e-12
        assert same_shapes
        assert sent < 2000, "flags, and who has a gradient"


def copied(rank: int, world: int, strategy: str, how: dict[str, Any]) -> list[Any]:
    net = jobs.built(strategy, world, torch.float32)
    options = jobs.OPTIONS | {"preconditioner_dtype": torch.bfloat16} | how
    optimizer = Jorge(net.named_parameters(), **options)
    jobs.train(net, optimizer, range(4), rank, world)
    if strategy == "ddp":
        both: Any = copy.deepcopy([net, optimizer])
        jobs.train(net, optimizer, range(4, 8), rank, world)
    else:  # torch copies no such model
        kept = [p.detach().clone() for p in net.parameters()]
        saved = optimizer.state_dict()
        jobs.train(net, optimizer, range(4, 8), rank, world)
    first = jobs.weights(net)
    if strategy == "fsdp":
        for p, value in zip(net.parameters(), kept, strict=True):
            p.detach().copy_(value)
        both = net, Jorge(net.named_parameters(), **options)
        both[1].load_state_dict(saved)
    jobs.train(both[0], both[1], range(4, 8), rank, world)
    return [first, jobs.weights(both[0])]


@pytest.mark.parametrize(("strategy", "how"), [("fsdp", {}), ("ddp", {}), ("ddp", {"distributed": "shard"})], ids=str)
def test_a_copy_goes_on_to_the_bit(pool: Pool, strategy: str, how: dict[str, Any]) -> None:
    for weights, copies in pool.run(2, copied, strategy, how):
        assert all(torch.equal(copies[name], value) for name, value in weights.items())


def one_alone(rank: int, world: int) -> list[Any]:
    net = jobs.built("ddp", world, torch.float32)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS)
    jobs.train(net, optimizer, range(3), rank, world)
    saved = copy.deepcopy(optimizer.state_dict())
    if rank == 0:  # nobody else is asked
        copy.deepcopy(optimizer)
        Jorge(net.named_parameters(), **jobs.OPTIONS).load_state_dict(saved)
    torch.manual_seed(rank)  # weights differ until the model is wrapped
    other = jobs.Net()
    fresh = Jorge(other.named_parameters(), **jobs.OPTIONS)
    fresh.load_state_dict(saved)
    wrapped = DistributedDataParallel(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        jobs.train(wrapped, fresh, range(3, 6), rank, world)
    return [sum(each.calls for each in fresh.distribution.transports()), jobs.weights(wrapped)]


def test_what_one_process_does_alone_asks_no_other_and_the_look_is_at_the_first_step(pool: Pool) -> None:
    (calls, weights), (other_calls, others) = pool.run(2, one_alone)
    assert calls == other_calls > 3
    assert all(torch.equal(others[name], value) for name, value in weights.items())


def grouped(rank: int, world: int) -> list[Any]:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True, dropout=0.0)
    fully_shard(model)
    optimizer = Jorge(param_groups(model, weight_decay=0.1), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(torch.ones(2, 5, 32)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_param_groups_of_a_sharded_model_train(pool: Pool) -> None:
    first, second = pool.run(2, grouped)
    assert first == second
    assert first[-1] < 0.9 * first[0]


def odd_shapes(rank: int, world: int) -> list[Any]:
    torch.manual_seed(0)
    shapes = [(1, 40), (40, 1), (2, 30), (5, 3, 3, 3), (7,), (1,), (33, 20)]
    weights = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    grads = [[torch.randn_like(w) for w in weights] for _ in range(8)]
    alone = [nn.Parameter(w.clone()) for w in weights]
    single = Jorge(alone, **jobs.OPTIONS, distributed=None)
    mesh = init_device_mesh("cpu", (world,))
    off: list[float] = []
    for dim in (0, 1):
        ways = [[Shard(dim if len(shape) > 1 else 0)] for shape in shapes]
        params = [nn.Parameter(distribute_tensor(w, mesh, way)) for w, way in zip(weights, ways, strict=True)]
        optimizer = Jorge(params, **jobs.OPTIONS)
        for given in grads:
            for p, g, way in zip(params, given, ways, strict=True):
                p.grad = distribute_tensor(g, mesh, way)
            optimizer.step()
        if dim == 0:
            for given in grads:
                for p, g in zip(alone, given, strict=True):
                    p.grad = g.clone()
                single.step()
        off += [
            float((p.full_tensor() - q).abs().max())  # type: ignore[attr-defined]
            for p, q in zip(params, alone, strict=True)
        ]
    return off


def test_uneven_and_empty_shards_are_as_whole_ones(pool: Pool) -> None:
    for found in pool.run(4, odd_shapes):
        assert max(found) < 1e-12


def mixed(rank: int, world: int) -> list[Any]:
    torch.manual_seed(0)
    net = jobs.Net()
    from torch.distributed.fsdp import MixedPrecisionPolicy

    fully_shard(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | {"preconditioner_dtype": torch.bfloat16})
    before = [float(net(jobs.batch(0, rank, world)).detach())]
    jobs.train(net, optimizer, range(10), rank, world)
    dtypes = {str(v.dtype) for e in optimizer.state.values() for k, v in e.items() if k.startswith("left")}
    before.append(float(net(jobs.batch(0, rank, world)).detach()))
    return [before, dtypes]


def test_mixed_precision_trains_and_keeps_its_dtypes(pool: Pool) -> None:
    for (before, after), dtypes in pool.run(2, mixed):
        assert after < before
        assert dtypes == {"torch.bfloat16"}


def replicas(rank: int, world: int, strategy: str, how: dict[str, Any]) -> list[Any]:
    net = jobs.built(strategy, world, torch.float32)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    rooms: list[Tensor] = []
    for step in range(6):
        rooms.append(torch.empty(1 + 997 * (step + rank) % 4096).fill_(torch.nan))  # so that memory differs
        del rooms[: rank % 2]
        jobs.train(net, optimizer, range(step, step + 1), *jobs.share(strategy, rank, world))
        optimizer.check_replicas()
    found = []
    if rank == 1:
        p = dict(net.named_parameters())[("module." if strategy == "ddp" else "") + "norm.bias"]
        (p.to_local() if isinstance(p, DTensor) else p).detach()[-1:] += 1e-6
    try:
        optimizer.check_replicas()
    except RuntimeError as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize(
    ("strategy", "world", "how"),
    [
        ("ddp", 2, {"distributed": "replicate"}),
        ("ddp", 3, {"distributed": "shard"}),
        ("hsdp", 4, {}),
        ("fsdp+tp", 4, {}),
    ],
    ids=str,
)
def test_replicas_are_the_same_to_the_bit_and_those_that_are_not_are_named(
    pool: Pool, strategy: str, world: int, how: dict[str, Any]
) -> None:
    for found in pool.run(world, replicas, strategy, how):
        named = [] if strategy == "fsdp+tp" else ["norm.bias"]  # of which each process of a mesh holds its own part
        assert all(text in each for text, each in zip(named, found, strict=True))


def sharded_too_late(rank: int, world: int) -> list[list[str]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    optimizer = Jorge(net.named_parameters())
    fully_shard(net)
    net(torch.ones(2, 8)).sum().backward()
    found = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            optimizer.step()
        found.append([str(each.message) for each in seen])
        optimizer = Jorge(net.named_parameters())
    return found


def test_a_model_that_was_sharded_after_its_optimizer_was_built_is_told_of_at_the_first_step(pool: Pool) -> None:
    for late, in_time in pool.run(2, sharded_too_late):
        assert len(late) == 1
        assert "build the optimizer after them" in late[0]
        assert in_time == []


DIES = """
import datetime, os, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from jorge import Jorge, param_groups
from jorge.cost.distributed import automatic
from jorge.exchange.rates import CPU, rates
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=8))
net = torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(30, 30))
net = fully_shard(net)
optimizer = Jorge(net.parameters())
for step in range(6):
    net(torch.ones(2, 30)).sum().backward()
    if rank == 1 and step == 3:
        swap = optimizer.distribution.transports()[0]
        swap.swap = lambda *_: os._exit(9)  # in the middle of the step
    optimizer.step()
"""


def test_when_a_process_dies_the_others_end_with_an_error(tmp_path: Any) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DIES, str(rank), str(tmp_path / "rendezvous")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (_, error), _ = (process.communicate(timeout=60) for process in processes)
    assert processes[1].returncode == 9
    assert processes[0].returncode not in (0, 9)
    assert "RuntimeError" in error or "DistBackendError" in error
    assert dist.is_available()


def calls_of(rank: int, world: int, width: int, near: bool) -> tuple[int, list[bool]]:
    """Collectives of four steps with `"auto"` after the first look, and what its exchanges do."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, width, bias=False))
    optimizer = Jorge(net.named_parameters(), interval=2)
    for _ in range(4):
        net[0].weight.grad = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
        optimizer.step()
    states = optimizer._store._groups.values()
    assert optimizer.distribution._near is near
    return sum(each.calls for each in optimizer.distribution.transports()), [s.exchange.shares for s in states]  # type: ignore[attr-defined]


def test_auto_shares_where_the_model_of_time_says_that_it_pays(pool: Pool) -> None:
    small, large = pool.run(2, calls_of, 8, True), pool.run(2, calls_of, 512, True)
    assert automatic({"weight": (8, 8)}, world_size=2, rates=CPU) == "ddp-alone"
    assert automatic({"weight": (512, 512)}, world_size=2, rates=CPU) == "ddp"
    assert small[0] == small[1]
    assert large[0] == large[1]
    assert [small[0][1], large[0][1]] == [[False], [True]]
    assert large[0][0] > small[0][0]
    assert automatic({"weight": (4096, 4096)}, world_size=8, rates=rates("cuda", near=True)) == "ddp"
    assert automatic({"weight": (4096, 4096)}, world_size=8, rates=rates("cuda", near=False)) == "ddp-alone"


def elsewhere(rank: int, world: int) -> bool:
    """Whether processes whose machines have other names are taken to be near each other."""
    platform.node, before = (lambda: f"machine {rank}"), platform.node
    try:
        p = nn.Parameter(torch.ones(4, 4))
        optimizer = Jorge([p])
        p.grad = torch.ones(4, 4)
        optimizer.step()
        return optimizer.distribution._near
    finally:
        platform.node = before


def test_machines_are_told_apart_and_are_no_difference_between_replicas(pool: Pool) -> None:
    assert pool.run(2, elsewhere) == [False, False]


def test_numbers_that_are_tensors_are_compared_by_their_values_wherever_they_lie() -> None:
    """The words for a tensor name its device, which is another one in each process."""

    def told(first: Any, second: Any) -> torch.Tensor:
        return domains._fingerprint([nn.Parameter(torch.ones(2, 2))], [Options(lr=first, betas=(first, second))])

    one = torch.tensor
    wide = one(0.75, dtype=torch.float64)
    assert torch.equal(told(0.5, 0.75), told(one(0.5), wide))
    assert not torch.equal(told(0.5, 0.75), told(one(0.5), one(0.25)))
