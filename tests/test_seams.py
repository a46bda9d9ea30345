"""The two seams: who works on which blocks, and what a step saw. Both cost nothing where they are not used."""

import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, arrange
from jorge.cost.counter import Meter
from jorge.exchange.domains import Distribution, Domain
from jorge.exchange.transport import Coming, Transport
from jorge.options import Group, Options
from jorge.trace import Trace

SHAPES = [(12, 20), (20, 12), (7,), (30, 18), (12, 20), (4, 3, 3, 3), (5, 5)]  # the last has one block for three


def parameters(dtype: torch.dtype = torch.float64, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def give(params: list[nn.Parameter], step: int) -> None:
    for i, p in enumerate(params):
        generator = torch.Generator().manual_seed(100 * step + i)
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


class Board:
    """What threads that stand for processes lay down for each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.laid: list[Any] = [None] * size

    def all(self, rank: int, value: Any) -> list[Any]:
        """What each has laid down."""
        self.laid[rank] = value
        self.barrier.wait(20)
        found = list(self.laid)
        self.barrier.wait(20)
        return found


class Threads(Transport):
    """A transport between threads."""

    def __init__(self, rank: int, size: int, board: Board) -> None:
        self.rank, self.size, self.board = rank, size, board
        self.calls = self.sent = 0

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self.board.all(self.rank, tensor.clone())).sum(0))

    def least(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self.board.all(self.rank, tensor.clone())).amin(0))

    def gather(self, mine: Tensor) -> Coming:
        self.calls += 1
        return Coming(torch.stack(self.board.all(self.rank, mine.clone())))

    def swap(self, sent: Tensor, sizes: Sequence[int], coming: Sequence[int]) -> Coming:
        parts = self.board.all(self.rank, torch.split(sent.clone(), list(sizes)))
        found = torch.cat([part[self.rank] for part in parts])
        assert len(found) == sum(coming)
        return Coming(found)


class Among(Distribution):
    """All parameters are of all threads."""

    def __init__(self, mode: Any, transport: Transport) -> None:
        super().__init__(mode)
        self._transport = transport

    def domain(self, p: Tensor, name: str, options: Options) -> Domain:
        return Domain(self.mode or "alone", tuple(range(self._transport.size)))  # type: ignore[arg-type]

    def transport(self, domain: Domain) -> Transport:
        return self._transport

    def check_replicas(self, groups: Sequence[Group], options: Sequence[Options]) -> None:
        pass


@pytest.mark.parametrize("mode", ["replicate", "shard"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stagger": True},
        {"grafting": "sgd", "method": "binomial"},
        {"method": "exact", "preconditioner_dtype": torch.float32},
        {"splits": 2, "stagger": True},
        {"method": "congruence", "max_dim": 19, "workspace": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("absent", [False, True])
def test_processes_that_share_the_work_are_as_one(
    mode: str, options: dict[str, Any], absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    options = {"lr": 0.05, "block_size": 8, "interval": 3, "warmup_refreshes": 4, **options}
    world, steps = 3, 14
    shapes = [shape for shape in SHAPES if shape[0] % options.get("splits", 1) == 0]
    board = Board(world)
    ranks = [parameters(shapes=shapes) for _ in range(world)]
    optimizers = [Jorge(params, **options) for params in ranks]
    for rank, optimizer in enumerate(optimizers):
        optimizer.distribution = Among(mode, Threads(rank, world, board))
    flops = [0] * world
    alone = parameters(shapes=shapes)
    single = Jorge(alone, **options)

    def give_some(params: list[nn.Parameter], step: int) -> None:
        give(params, step)
        if absent and step % 4 == 1:
            params[step % 3].grad = None

    def train(rank: int) -> None:
        for step in range(steps):
            give_some(ranks[rank], step)
            with Meter() as meter:
                optimizers[rank].step()
            flops[rank] += meter.flops

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    total = 0
    for step in range(steps):
        give_some(alone, step)
        with Meter() as meter:
            single.step()
        total += meter.flops
    for thread in threads:
        thread.join(60)
    for params in ranks:
        assert all(torch.allclose(p, q, rtol=1e-9, atol=1e-11) for p, q in zip(params, alone, strict=True))
    for p, q in zip(ranks[0], ranks[1], strict=True):
        assert torch.equal(p, q)
    assert max(flops) < 0.85 * total, "each works on its own part alone"
    held = [roots(optimizer) for optimizer in optimizers]
    assert sum(held) == roots(single) * (world if mode == "replicate" else 1)


def roots(optimizer: Jorge) -> int:
    """Elements of the preconditioners that are kept here."""
    entries = (entry.items() for entry in optimizer.state.values())
    return sum(v.numel() for k, v in chain.from_iterable(entries) if k.startswith(("left", "right")))


def test_alone_nobody_is_asked() -> None:
    params = parameters()
    optimizer = Jorge(params, lr=0.05)
    transport = Threads(0, 1, Board(1))
    optimizer.distribution = Among(None, transport)
    for step in range(3):
        give(params, step)
        optimizer.step()
    assert transport.calls == 0
    assert all(float(optimizer.state[p]["refreshes.0"].min()) == 3 for p in params if p.dim() > 1)


def test_another_distribution_in_the_middle_arranges_anew_and_loses_nothing() -> None:
    params, plain = parameters(), parameters()
    optimizer, other = Jorge(params, lr=0.05), Jorge(plain, lr=0.05)
    for step in range(9):
        if step in (3, 6):
            optimizer.distribution = Among("shard" if step == 3 else "replicate", Threads(0, 1, Board(1)))
        give(params, step)
        give(plain, step)
        optimizer.step()
        other.step()
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(params, plain, strict=True))


@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_a_trace_sees_the_step_and_changes_nothing(grafting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params, plain = parameters(), parameters()
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)  # so that refreshes are cut into pieces
    options: dict[str, Any] = {"lr": 0.05, "grafting": grafting, "weight_decay": 0, "block_size": 8}
    options |= {"interval": 2, "warmup_refreshes": 2}
    optimizer, other = Jorge(params, **options), Jorge(plain, **options)
    for step in range(9):
        give(params, step)
        give(plain, step)
        if step == 5:
            for some in (params, plain):
                assert some[0].grad is not None
                some[0].grad *= 1e3
        if step == 7:
            for some in (params, plain):
                assert some[2].grad is not None
                some[2].grad[0] = torch.nan
        before = [p.detach().clone() for p in params]
        optimizer.trace = trace = Trace()
        optimizer.step()
        other.step()
        matrices = [p for p in params if p.dim() > 1]
        assert sorted(id(p) for seen in trace.steps for p in seen.params) == sorted(map(id, matrices))
        assert all(bool(seen.finite) == (step != 7) for seen in trace.steps)
        rows = (zip(seen.params, seen.lengths, seen.ratios, seen.limited, strict=True) for seen in trace.steps)
        for p, length, ratio, limited in chain.from_iterable(rows):
            i = next(i for i, q in enumerate(params) if q is p)
            moved = (p.detach() - before[i]).norm() / 0.05
            assert torch.allclose(moved, length if step != 7 else length * 0, rtol=1e-6, atol=1e-9)
            assert float(ratio) > 0 or step == 7
            assert not limited or (step > 4 and i == 0 and grafting == "sgd")
            assert limited or step != 5 or i or grafting == "adam"
        blocks = {(id(p), grid, block) for event in trace.refreshes for p, grid, block in event.blocks}
        refreshing = step in (0, 1, 3, 5, 7)
        expected = {
            (id(p), int(key.rpartition(".")[2]), block)
            for p in matrices
            for key, value in optimizer.state[p].items()
            if key.startswith("refreshes.")
            for block in range(len(value))
        }
        assert blocks == (expected if refreshing else set())
        assert len(blocks) == sum(len(event.blocks) for event in trace.refreshes), "none of them twice"
        for event in trace.refreshes:
            assert all(len(share) == len(event.blocks) for share in event.shares.values())
            assert event.row(*event.blocks[-1]) == len(event.blocks) - 1
            assert event.row(params[2], 0, 0) is None
            assert set(event.shares) == set(event.capped) == {"left", "right"}
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


def test_a_trace_finds_the_blocks_that_are_refreshed_out_of_a_row() -> None:
    params = [nn.Parameter(torch.randn(6, 8)) for _ in range(4)]
    optimizer = Jorge(params, lr=0.05, interval=2, warmup_refreshes=0)
    for step in range(6):
        for i, p in enumerate(params):
            p.grad = torch.randn(6, 8) if step or i % 2 else None  # the first and third are a step behind
        counts = [float(optimizer.state[p]["refreshes.0"]) if p in optimizer.state else 0.0 for p in params]
        optimizer.trace = trace = Trace()
        with Meter() as meter:
            optimizer.step()
        assert meter.waits == 0, "a trace waits for the device only where it is read"
        seen = {id(p) for event in trace.refreshes for p, _, _ in event.blocks}
        now = [float(optimizer.state[p]["refreshes.0"]) if p in optimizer.state else 0.0 for p in params]
        assert seen == {id(p) for p, a, b in zip(params, counts, now, strict=True) if b > a}
        (stepped,) = trace.steps
        ratios = dict(zip(map(id, stepped.params), stepped.ratios.tolist(), strict=True))
        assert [ratios.get(id(p), 0.0) > 0 for p in params] == [p.grad is not None for p in params]


def test_without_a_trace_nothing_is_computed_for_it() -> None:
    counts = []
    for traced in (False, True, False):
        params = parameters(torch.float32)
        optimizer = Jorge(params, lr=0.05)
        optimizer.trace = Trace() if traced else None
        give(params, 0)
        optimizer.step()
        give(params, 1)
        with Meter() as meter:
            optimizer.step()
        counts.append((meter.total, meter.launches))
    assert counts[0] == counts[2] < counts[1]
