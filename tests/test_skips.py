"""Steps that are left out because a gradient is not finite: nothing changes, and they can be seen."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge
from jorge.methods import METHODS
from jorge.skips import Mirror, Skips


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (6, 4), "bias": (6,), "kernel": (4, 3, 3, 3)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def give(params: dict[str, nn.Parameter], seed: int, **bad: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in params.items():
        p.grad = torch.randn(p.shape, generator=generator)
        if name in bad:
            p.grad.view(-1)[1] = bad[name]


def everything(params: dict[str, nn.Parameter], optimizer: Jorge) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in params.items()}
    for name, p in params.items():
        found |= {f"{name}.{k}": v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)}
    return found


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, others[name]) for name, value in some.items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_skipped_steps_are_counted_and_change_nothing(method: Any, grafting: Any, bad: float) -> None:
    params = parameters()
    optimizer = Jorge(params.items(), method=method, grafting=grafting)
    assert optimizer.skipped_steps() == Skips(0, 0)
    give(params, 0)
    optimizer.step()
    assert optimizer.skipped_steps() == Skips(0, 0)
    before = everything(params, optimizer)
    for number, name in enumerate(params, start=1):
        give(params, number, **{name: bad})
        optimizer.step()
        assert optimizer.skipped_steps() == Skips(number, number)
    assert same(before, everything(params, optimizer))
    give(params, 9)
    optimizer.step()
    assert optimizer.skipped_steps() == Skips(3, 0)
    assert not same(before, everything(params, optimizer))
    assert all(p.isfinite().all() for p in params.values())


@pytest.mark.parametrize("sick", [0, 1, 2])
def test_one_gradient_that_is_not_finite_stops_those_of_every_dtype(sick: int) -> None:
    params = [nn.Parameter(torch.ones(3, 2, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = Jorge(params)
    for p in params:
        p.grad = torch.ones_like(p)
    params[sick].grad = torch.full_like(params[sick], torch.nan)
    optimizer.step()
    assert optimizer.skipped_steps() == Skips(1, 1)
    assert all(bool((p == 1).all()) for p in params)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_step_is_refused_by_name_where_that_is_asked(bad: float) -> None:
    params = parameters()
    optimizer = Jorge(params.items(), nonfinite="raise")
    give(params, 0)
    optimizer.step()
    before = everything(params, optimizer)
    give(params, 1, kernel=bad)
    gone = weakref.ref(params["kernel"].grad)
    with pytest.raises(RuntimeError, match=r"not finite, or longer than 1\.8e19, is the gradient of kernel: no weight"):
        optimizer.step()
    params["kernel"].grad = None
    gc.collect()
    assert gone() is None  # nothing holds it
    assert same(before, everything(params, optimizer))
    assert {entry["step"] for entry in optimizer.state.values()} == {1}
    give(params, 1, kernel=bad, bias=bad)
    with pytest.raises(RuntimeError, match="are the gradients of bias, kernel"):
        optimizer.step()
    give(params, 2)
    optimizer.step()
    assert optimizer.skipped_steps() == Skips(0, 0)


def test_refusing_waits_and_so_cannot_be_captured() -> None:
    with pytest.raises(ValueError, match="nonfinite='raise' exclude each other"):
        Jorge(parameters().items(), nonfinite="raise", capturable=True)


def test_counts_are_the_optimizers_own() -> None:
    params = parameters()
    optimizer = Jorge(params.items())
    give(params, 0, bias=math.nan)
    optimizer.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.skipped_steps() == Skips(0, 0)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert optimizer.skipped_steps() == Skips(1, 0)  # of another state
    with torch.inference_mode():
        optimizer.step()
    optimizer.step()
    assert optimizer.skipped_steps() == Skips(3, 2)


def test_too_many_skips_in_a_row_are_an_error() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Jorge([("weight", weight)], lr=0.1, max_consecutive_skips=3)
    for grads in ((torch.nan, torch.nan, 1.0), (torch.nan, torch.nan)):
        for value in grads:
            weight.grad = torch.full((4, 4), value)
            optimizer.step()
    weight.grad = torch.full((4, 4), torch.nan)
    with pytest.raises(RuntimeError, match=r"3 steps in a row .*the gradients of weight"):
        optimizer.step()
    optimizer.param_groups[0]["max_consecutive_skips"] = None
    optimizer.step()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    optimizer.param_groups[0]["max_consecutive_skips"] = 4
    with pytest.raises(RuntimeError, match="the weights of weight are not finite"):
        optimizer.step()


def test_by_default_it_is_a_hundred_and_one_good_step_starts_anew() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Jorge([weight], lr=0.1)
    for step in range(150):
        weight.grad = torch.full((4, 4), 1.0 if step == 75 else torch.nan)
        optimizer.step()
    assert optimizer.skipped_steps() == Skips(149, 74)


def test_the_mirror_of_a_cuda_device_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the host's memory is the device's, and the event says when a copy would be there."""

    class Event:
        arrived = True

        def query(self) -> bool:
            return self.arrived

        def record(self, stream: object) -> None: ...

    real = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, pin_memory=False, **kwargs: real(*args, **kwargs))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    mirror = Mirror()
    for in_a_row in range(1, 18):
        mirror.renew(torch.tensor([in_a_row, in_a_row]))
    assert mirror.last == 1  # asked for at the first step, read at the seventeenth
    for in_a_row in range(18, 34):
        mirror.renew(torch.tensor([in_a_row, in_a_row]))
    assert mirror.last == 17
    Event.arrived = False
    for in_a_row in range(34, 66):
        mirror.renew(torch.tensor([in_a_row, in_a_row]))
    assert mirror.last == 17


def test_after_a_load_the_count_of_skips_in_a_row_begins_anew() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Jorge([weight], lr=0.1, max_consecutive_skips=3)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    good = optimizer.state_dict()
    weight.grad = torch.full((4, 4), torch.nan)
    for _ in range(2):
        optimizer.step()
    with pytest.raises(RuntimeError, match="3 steps in a row"):
        optimizer.step()
    optimizer.load_state_dict(good)
    for _ in range(2):
        optimizer.step()
    assert optimizer.skipped_steps() == Skips(5, 2)


def test_a_mirror_that_is_behind_stops_no_good_step() -> None:
    """What the mirror has seen may be over: then the device is asked."""

    class Behind(Mirror):
        def __init__(self) -> None:
            self.last = 50

    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Jorge([weight], lr=0.1, max_consecutive_skips=3)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    mirror = optimizer._skips._mirrors[weight.device] = Behind()
    optimizer.step()
    assert mirror.last == 0
