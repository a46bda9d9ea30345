"""The doctor with several processes: all are told what one process is told, and nothing is changed afterwards."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from jorge import Jorge, cli, doctor, findings
from jorge.exchange.domains import local
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_diagnostics import STRATEGIES, held, off
from tests.test_diagnostics import same

pytestmark = pytest.mark.slow


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = model(batch)
    return found


def examined(net: nn.Module, optimizer: Jorge, part: int, parts: int) -> list[Any]:
    """What is told after four steps, and whether all is as it was."""
    jobs.train(net, optimizer, range(4), part, parts)
    before = held(net, optimizer), torch.get_rng_state()
    found = doctor(net, loss, jobs.batch(4, part, parts), optimizer)
    as_it_was = same(before, (held(net, optimizer), torch.get_rng_state()))
    assert found.diagnostics is not None
    flat = {name.removeprefix("module."): value for name, value in found.diagnostics.flat("").items()}
    told = [(each.level, each.what.replace("module.", "")) for each in found.findings]
    return [told, {str(i): value for i, value in enumerate(found.losses)} | flat, as_it_was]


def in_process(rank: int, world: int, strategy: str, options: dict[str, Any]) -> list[Any]:
    net = jobs.built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | options)
    return examined(net, optimizer, *jobs.share(strategy, rank, world))


@pytest.mark.parametrize(("strategy", "world", "how"), STRATEGIES, ids=str)
def test_all_are_told_what_one_process_is(pool: Pool, strategy: str, world: int, how: dict[str, Any]) -> None:
    options = {"lr": 0.3}
    net = jobs.built("alone", 1)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | options, distributed=None)
    told, numbers, as_it_was = examined(net, optimizer, 0, 1)
    assert as_it_was
    assert any("lr=0.3 with a step of Adam's length" in what for _, what in told)
    assert any("the loss of one batch rises" in what for _, what in told)
    processes = pool.run(world, in_process, strategy, how | options)
    for mine, found, is_as_it_was in processes:
        assert is_as_it_was
        assert mine == told
        assert off(found, numbers) == {}
        assert str(found) == str(processes[0][1]), "to the bit"


def of_torch(rank: int, world: int) -> list[Any]:
    """A model with buffers and random numbers, another optimizer, gradients that were there before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.2), nn.Linear(9, 3))
    fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(rank))
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    def everything() -> Any:
        state = [local(value) for entry in optimizer.state.values() for value in entry.values()]
        params = [local(t) for p in net.parameters() for t in (p.detach(), p.grad) if t is not None]
        return copy.deepcopy([state, params, dict(net.named_buffers()), torch.get_rng_state()])

    before, buffers = everything(), list(net.buffers())
    found = doctor(net, lambda model, batch: model(batch).square().mean(), x, optimizer)
    kept = all(now is then for now, then in zip(net.buffers(), buffers, strict=True))
    return [str(found), found.healthy, kept and same(before, everything())]


def test_any_optimizer_may_be_asked_about(pool: Pool) -> None:
    (text, healthy, as_it_was), other = pool.run(2, of_torch)
    assert healthy, text
    assert as_it_was
    assert other == [text, healthy, as_it_was]


def one_is_sick(rank: int, world: int, strategy: str, sickness: str) -> list[Any]:
    net = jobs.built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | {"distributed": "shard"}, nonfinite="raise")

    def its_loss(model: nn.Module, batch: Tensor) -> Tensor:
        found = loss(model, batch)
        if rank == 1 and sickness == "loss":
            return found * torch.nan
        if rank == 1 and sickness == "gradient":
            found.register_hook(lambda grad: grad * torch.nan)  # type: ignore[no-untyped-call]
        return found

    with pytest.MonkeyPatch.context() as patch:
        if sickness == "memory":
            patch.setattr(findings, "_free", lambda device: 1000 if rank else 10**12)
        found = doctor(net, its_loss, jobs.batch(0, rank, world), optimizer)
    jobs.train(net, optimizer, range(2), rank, world)  # it still can
    return [(each.level, each.what) for each in found.findings]


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.parametrize(
    ("sickness", "says"),
    [
        ("loss", "the loss is nan"),
        ("gradient", "a step cannot be taken: not finite"),
        ("memory", "the optimizer's state takes 0.0 GB, and 0.0 GB are free"),
    ],
)
def test_what_one_process_has_all_are_told(pool: Pool, strategy: str, sickness: str, says: str) -> None:
    first, second = pool.run(2, one_is_sick, strategy, sickness)
    assert first == second
    assert any(level == "error" and says in what for level, what in first), first


def shares(rank: int, world: int, strategy: str, how: dict[str, Any]) -> tuple[int, int]:
    """Bytes that are expected here before the first step, and those that are there after it."""
    net = jobs.built(strategy, world)
    optimizer = Jorge([p for p in net.parameters() if p.requires_grad], **jobs.OPTIONS | how)
    expected, _ = findings.memory(optimizer)
    jobs.train(net, optimizer, range(1), rank, world)
    entries = (value for entry in optimizer.state.values() for value in entry.values())
    return expected, sum(value.nbytes for value in entries if isinstance(value, Tensor))


@pytest.mark.parametrize(
    ("strategy", "world", "how"),
    [("ddp", 2, {}), ("ddp", 2, {"distributed": "shard"}), ("fsdp", 2, {}), ("hsdp", 4, {})],
    ids=str,
)
def test_memory_is_that_of_a_process(pool: Pool, strategy: str, world: int, how: dict[str, Any]) -> None:
    for expected, there in pool.run(world, shares, strategy, how):
        assert expected == pytest.approx(there, rel=0.1 if how or strategy != "ddp" else 0)


TRAINING = """
import torch
from torch import nn

def broken():
    return nn.Linear(6, 3), lambda model, batch: model(batch).square().mean() * torch.nan, torch.randn(8, 6)
"""


def on_the_command_line(rank: int, world: int, folder: str) -> tuple[int, str]:
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = cli.main(["doctor", "a_training_of_two:broken"])
    finally:
        sys.path.remove(folder)
    return status, out.getvalue()


def test_on_the_command_line_the_first_prints(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "a_training_of_two.py").write_text(TRAINING)
    first, second = pool.run(2, on_the_command_line, str(tmp_path))
    assert first[0] == second[0] == 1
    assert "error: the loss is nan" in first[1]
    assert second[1] == ""
