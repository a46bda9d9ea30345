"""Checks of learning rates that others set: schedulers, tensors, averages of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from jorge.testing.check import Check, Factory, NotApplicable, declare, expect
from jorge.testing.kit import (
    advance,
    apart,
    expect_alike,
    expect_moved,
    expect_unmoved,
    one_step,
    parameters,
    same,
    set_lr,
    shapes_of,
    start,
    twins,
    values,
)

_schedules = "learning rates"
Optimizer = torch.optim.Optimizer


def _lr(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def _sequential(optimizer: Optimizer) -> Any:
    parts = [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.5)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[2])


def _chained(optimizer: Optimizer) -> Any:
    parts = [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.5)]
    return schedulers.ChainedScheduler(parts)


_MAKERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.5),
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.2, 1.0, 3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, _lr(o) / 4, _lr(o), 2, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, _lr(o), total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
    "SWALR": lambda o: SWALR(o, _lr(o) / 4, anneal_epochs=3),
}


def _with(name: str) -> Check:
    @declare(_schedules, f"Under `{name}` each step uses the learning rate that was set.", name=name)
    def check(factory: Factory) -> None:
        params, optimizer = start(factory)
        plain, constant = twins(params), twins(params)
        by_hand, without = factory(plain), factory(constant)
        scheduler = _MAKERS[name](optimizer)
        rates = []
        for step in range(6):
            rates.append(_lr(optimizer))
            set_lr(by_hand, rates[-1])
            one_step(optimizer, params, seed=step)
            one_step(by_hand, plain, seed=step)
            one_step(without, constant, seed=step)
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        expect(len(set(rates)) > 1, "the learning rate in the groups does not change")
        expect_alike(params, plain, "not as with the same learning rates set by hand")
        expect(not same(params, constant), "the weights go as far as without a schedule")

    return check


@declare(_schedules, "A learning rate that a scheduler sets to 0 stops the weights, and another starts them again.")
def stopped_by_schedule(factory: Factory) -> None:
    params, optimizer = start(factory)
    scheduler = schedulers.LambdaLR(optimizer, lambda t: float(t != 3))
    for step in range(6):
        before = values(params)
        one_step(optimizer, params, seed=step)
        if step == 3:
            expect_unmoved(before, params, "while a scheduler had set lr to 0")
        elif step > 3:
            expect_moved(before, params, "after a scheduler had set lr to 0")
        scheduler.step()


@declare(_schedules, "Schedulers that cycle momentum do so: `OneCycleLR` and `CyclicLR`.")
def cycled_momentum(factory: Factory) -> None:
    for make in (
        lambda o: schedulers.OneCycleLR(o, _lr(o), total_steps=6),
        lambda o: schedulers.CyclicLR(o, _lr(o) / 4, _lr(o), 2),
    ):
        params, optimizer = start(factory)
        if not {"momentum", "betas"} & optimizer.defaults.keys():
            raise NotApplicable("its defaults have neither `momentum` nor `betas`")
        scheduler = make(optimizer)
        before, seen = values(params), set()
        for step in range(5):
            one_step(optimizer, params, seed=step)
            scheduler.step()
            group = optimizer.param_groups[0]
            seen.add(group["betas"][0] if "betas" in optimizer.defaults else group["momentum"])
        expect(len(seen) > 1, "the momentum in the groups does not change")
        expect_moved(before, params, f"under {type(scheduler).__name__}")


@declare(_schedules, "A learning rate may be a tensor, and counts as it is at each step.")
def lr_tensor(factory: Factory) -> None:
    params = parameters(shapes_of(factory))
    plain = twins(params)
    other = factory(plain)
    lr = torch.tensor(_lr(other))
    try:
        optimizer = factory([{"params": params, "lr": lr}])
    except (TypeError, ValueError) as error:
        raise NotApplicable(f"it refuses a tensor: {error}") from None
    before = values(params)
    advance(other, plain)
    advance(optimizer, params)
    far, difference = apart(before, plain), apart(params, plain)
    expect(difference <= 1e-3 * far, f"apart from the same number by {difference / far:.1e} of the way")
    held = optimizer.param_groups[0]["lr"]
    if isinstance(held, torch.Tensor):
        held.zero_()
        before = values(params)
        advance(optimizer, params)
        expect_unmoved(before, params, "after the tensor was set to 0")


@declare(_schedules, "Weights may be exchanged for their average and back between steps.")
def averaged(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    model = nn.ParameterList(params)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    for seed in range(3):
        advance(optimizer, params, 2, seed)
        advance(twin, plain, 2, seed)
        average.update_parameters(model)
        kept = values(params)
        model.load_state_dict(average.module.state_dict())
        model.load_state_dict({str(i): w for i, w in enumerate(kept)})
    expect_alike(params, plain, "training goes on differently after weights were exchanged and put back")


@declare(_schedules, "A step starts from the weights as they are, also where others have changed them.")
def weights_edited(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    with torch.no_grad():
        for p in params:
            p.add_(3.0)
    set_lr(optimizer, 0.0)
    before = values(params)
    advance(optimizer, params)
    expect_unmoved(before, params, "at lr=0, after others had changed it")


CHECKS = (
    *(_with(name) for name in _MAKERS),
    stopped_by_schedule,
    cycled_momentum,
    lr_tensor,
    averaged,
    weights_edited,
)
