"""The two seams: who refreshes which blocks, and what a step saw. Both cost nothing where they are not used."""

import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from jorge import Jorge, arrange
from jorge.arrange import Stack
from jorge.cost.counter import Meter
from jorge.exchange import Alone
from jorge.methods import State
from jorge.schedule import Piece
from jorge.trace import Trace

SHAPES = [(12, 20), (20, 12), (7,), (30, 18), (12, 20), (4, 3, 3, 3), (5, 5)]  # the last has one block for three


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def give(params: list[nn.Parameter], step: int) -> None:
    for i, p in enumerate(params):
        generator = torch.Generator().manual_seed(100 * step + i)
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


class Ranks:
    """An exchange between threads: each owns a part of every stack's blocks, and takes the others' as they are."""

    alone = False

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, board: dict[int, Any]) -> None:
        self.rank, self.world, self.barrier, self.board = rank, world, barrier, board
        self.asked: list[Any] = []

    def owned(self, stack: Stack) -> tuple[int, int]:
        return stack.count * self.rank // self.world, stack.count * (self.rank + 1) // self.world

    def collect(self, stack: Stack, state: State, refreshed: Sequence[Piece]) -> None:
        self.asked.append((stack.shape, tuple(refreshed)))
        self.board[self.rank] = {name: tensor.clone() for name, tensor in state.items()}
        self.barrier.wait(10)
        for rank in range(self.world):
            first, last = stack.count * rank // self.world, stack.count * (rank + 1) // self.world
            for name, tensor in state.items():
                tensor[first:last] = self.board[rank][name][first:last]
        self.barrier.wait(10)


@pytest.mark.parametrize("options", [{}, {"stagger": True}, {"grafting": "adam", "method": "congruence"}], ids=str)
@pytest.mark.parametrize("absent", [False, True])
def test_processes_that_share_the_refreshes_are_as_one(options: dict[str, Any], absent: bool) -> None:
    options = {"lr": 0.05, "block_size": 8, "interval": 3, "warmup_refreshes": 4, **options}
    world, steps = 3, 25
    barrier, board = threading.Barrier(world), dict[int, Any]()
    ranks = [parameters() for _ in range(world)]
    optimizers = [Jorge(params, **options) for params in ranks]
    exchanges = [Ranks(rank, world, barrier, board) for rank in range(world)]
    for optimizer, exchange in zip(optimizers, exchanges, strict=True):
        optimizer.exchange = exchange
    flops = [0] * world
    alone = parameters()
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
    assert exchanges[0].asked == exchanges[1].asked == exchanges[2].asked
    assert all(pieces for _, pieces in exchanges[0].asked), "in steps that refresh something alone"
    assert max(flops) < 0.8 * total, "each refreshes its own part alone"


def test_alone_all_is_refreshed_here_and_nobody_is_asked() -> None:
    class Watching(Alone):
        asked = 0

        def collect(self, stack: Stack, state: State, refreshed: Sequence[Piece]) -> None:
            self.asked += 1

    params = parameters()
    optimizer = Jorge(params, lr=0.05)
    optimizer.exchange = watching = Watching()
    for step in range(3):
        give(params, step)
        optimizer.step()
    assert watching.asked == 0
    assert all(float(optimizer.state[p]["refreshes.0"].min()) == 3 for p in params if p.dim() > 1)


def test_an_exchange_that_is_set_later_is_asked_from_there_on() -> None:
    class Nothing(Alone):
        alone = False
        asked = 0

        def owned(self, stack: Stack) -> tuple[int, int]:
            return 0, 0

        def collect(self, stack: Stack, state: State, refreshed: Sequence[Piece]) -> None:
            self.asked += 1

    params = parameters()
    optimizer, exchange = Jorge(params, lr=0.05), Nothing()
    give(params, 0)
    optimizer.step()
    optimizer.exchange = exchange
    give(params, 1)
    optimizer.step()
    assert exchange.asked > 0
    assert all(float(optimizer.state[p]["refreshes.0"].max()) == 1 for p in params if p.dim() > 1)


def test_another_exchange_in_the_middle_arranges_anew_and_loses_nothing() -> None:
    params, plain = parameters(), parameters()
    optimizer, other = Jorge(params, lr=0.05), Jorge(plain, lr=0.05)
    for step in range(6):
        if step == 3:
            optimizer.exchange = Alone()
        give(params, step)
        give(plain, step)
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


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
