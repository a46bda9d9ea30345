"""Checks of what happens in bad steps, and under torch's contexts."""

from __future__ import annotations

import math

import torch
from torch import nn

from jorge.testing.check import BEYOND, Check, Factory, declare, expect
from jorge.testing.kit import (
    Params,
    advance,
    apart,
    expect_alike,
    expect_moved,
    expect_unmoved,
    give_gradients,
    quadratic,
    start,
    twins,
    values,
)

_robustness = "robustness"


def _survives(value: float, word: str) -> Check:
    @declare(BEYOND, f"Weights stay finite through a batch whose gradients are {word}, and train on.", name=f"{word}")
    def check(factory: Factory) -> None:
        params, optimizer = start(factory)
        advance(optimizer, params)
        for p in params:
            p.grad = torch.full_like(p, value)
        optimizer.step()
        before = values(params)
        expect(all(bool(p.isfinite().all()) for p in params), "a weight is not finite after it")
        advance(optimizer, params)
        expect_moved(before, params, "after it")

    return check


@declare(_robustness, "Gradients of zero leave weights finite, and later ones train them.")
def zero_gradients(factory: Factory) -> None:
    params, optimizer = start(factory)
    for _ in range(2):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    expect(all(bool(p.isfinite().all()) for p in params), "a weight is not finite after gradients of zero")
    before = values(params)
    advance(optimizer, params, 5)
    expect_moved(before, params, "after gradients of zero")


def _scaled(optimizer: torch.optim.Optimizer, params: Params, scale: float) -> None:
    """Take a few steps along gradients of some size."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        give_gradients(params, generator)
        for p in params:
            p.grad = None if p.grad is None else p.grad * scale
        optimizer.step()


@declare(_robustness, "Gradients from 1e-15 to 1e12 leave weights finite.")
def sizes_of_gradients(factory: Factory) -> None:
    for scale in (1e-15, 1e-6, 1e6, 1e12):
        params, optimizer = start(factory)
        _scaled(optimizer, params, scale)
        expect(all(bool(p.isfinite().all()) for p in params), f"a weight is not finite at gradients of {scale:.0e}")


@declare(_robustness, "Under `GradScaler` a step that overflows is left out, and the next ones train.")
def grad_scaler(factory: Factory) -> None:
    params, optimizer = start(factory)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        before = values(params)
        optimizer.zero_grad()
        loss = quadratic(params) * (math.inf if step in (0, 3) else 1.0)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        if step in (0, 3):
            expect_unmoved(before, params, "in a step that overflows")
        elif step in (2, 5):
            expect_moved(before, params, "under `GradScaler`")


@declare(_robustness, "A step within `autocast` is the same step.")
def autocast(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    before = values(params)
    advance(twin, plain, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        advance(optimizer, params, 5)
    far, difference = apart(before, plain), apart(params, plain)
    expect(difference <= 1e-4 * far, f"apart by {difference / far:.1e} of the way in 5 steps")


@declare(_robustness, "Steps within `inference_mode` are the same steps.")
def inference_mode(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    advance(twin, plain, 5)
    with torch.inference_mode():
        advance(optimizer, params, 5)
    expect_alike(params, plain, "training goes differently")


@declare(_robustness, "Under another default dtype steps are the same.")
def default_dtype(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    before = values(params)
    advance(twin, plain, 5)
    torch.set_default_dtype(torch.float64)
    advance(optimizer, params, 5)
    far, difference = apart(before, plain), apart(params, plain)
    expect(difference <= 1e-3 * far, f"apart by {difference / far:.1e} of the way in 5 steps")
    expect(all(p.dtype is torch.float32 for p in params), "a weight has another dtype")


@declare(_robustness, "Steps work under `use_deterministic_algorithms`.")
def deterministic_algorithms(factory: Factory) -> None:
    params, optimizer = start(factory)
    before, mode = values(params), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        advance(optimizer, params, 5)
    finally:
        torch.use_deterministic_algorithms(mode)
    expect_moved(before, params, "under `use_deterministic_algorithms`")


@declare(_robustness, "Sparse gradients train an embedding, or are refused with an error that says so.")
def sparse(factory: Factory) -> None:
    model = nn.Embedding(6, 4, sparse=True)
    optimizer = factory(list(model.parameters()))
    before = values(list(model.parameters()))
    model(torch.tensor([1, 2, 4])).square().sum().backward()
    try:
        for _ in range(3):
            optimizer.step()
    except Exception as error:
        words = f"{type(error).__name__} {error}".lower()
        if "sparse" not in words:
            raise
        expect_unmoved(before, list(model.parameters()), "though its gradient was refused")
        return
    expect_moved([before[0][1:3]], [model.weight.detach()[1:3]], "along a sparse gradient")


CHECKS = (
    zero_gradients,
    sizes_of_gradients,
    grad_scaler,
    autocast,
    inference_mode,
    default_dtype,
    deterministic_algorithms,
    sparse,
    _survives(math.nan, "NaN"),
    _survives(math.inf, "inf"),
)
