"""Optimizers that wrap another one take Jorge, and go on from what they have saved, to the bit."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge
from jorge_lab.contenders.contender import load

Wrap = Callable[[nn.Module], Any]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def loss(net: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(32, n, generator=generator) for n in (8, 4))
    return torch.square(net(x) - y).mean()


def sam(net: nn.Module) -> Any:
    return load("pytorch_optimizer").SAM(list(net.parameters()), Jorge, rho=0.05, lr=1e-2)


def lookahead(net: nn.Module) -> Any:
    return load("pytorch_optimizer").Lookahead(Jorge(net.parameters(), lr=1e-2), k=5, alpha=0.5)


def schedule_free(net: nn.Module) -> Any:
    optimizer = load("schedulefree").ScheduleFreeWrapper(Jorge(net.parameters(), lr=1e-2), momentum=0.9)
    optimizer.train()
    return optimizer


def train(net: nn.Module, optimizer: Any, steps: int) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net).backward()  # type: ignore[no-untyped-call]
        if hasattr(optimizer, "first_step"):
            optimizer.first_step(zero_grad=True)
            loss(net).backward()  # type: ignore[no-untyped-call]
            optimizer.second_step()
        else:
            optimizer.step()
    return loss(net).item()


@pytest.mark.parametrize("early", [False, True])
def test_schedule_free_resumes_where_it_is_put_into_training_after_the_load(early: bool) -> None:
    """Before it that only sets a flag: the weights stay the averaged ones that were saved."""
    whole = model()
    optimizer = schedule_free(whole)
    train(whole, optimizer, 11)
    optimizer.eval()
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    optimizer.train()
    train(whole, optimizer, 12)
    second = model()
    resumed = load("schedulefree").ScheduleFreeWrapper(Jorge(second.parameters(), lr=1e-2), momentum=0.9)
    if early:
        resumed.train()
    second.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    resumed.train()
    train(second, resumed, 12)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True)) != early


@pytest.mark.parametrize("wrap", [sam, lookahead, schedule_free])
def test_a_wrapper_trains_and_resumes(wrap: Wrap) -> None:
    whole = model()
    start = loss(whole).item()
    end = train(whole, wrap(whole), 23)
    assert end < 0.9 * start

    first = model()
    optimizer = wrap(first)
    train(first, optimizer, 11)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    second = model()
    second.load_state_dict(saved["model"])
    resumed = wrap(second)
    resumed.load_state_dict(copy.deepcopy(saved["optimizer"]))
    train(second, resumed, 12)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
