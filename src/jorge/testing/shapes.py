"""Checks of which parameters an optimizer trains: dims, layouts and dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from jorge.testing.check import Check, Factory, declare, expect
from jorge.testing.kit import (
    Params,
    Shape,
    advance,
    apart,
    build,
    descend,
    expect_alike,
    expect_moved,
    parameters,
    shapes_of,
    start,
    twins,
    values,
)

_parameters = "parameters"
_NAMES = (
    "weight that is one number",
    "vector",
    "matrix",
    "kernel of a convolution over one dim",
    "kernel of a convolution over two dims",
    "kernel of a convolution over three dims",
)
_DIMS: tuple[Sequence[Shape], ...] = (
    [()],
    [(5,), (1,)],
    [(6, 4), (4, 6), (1, 1), (1, 7), (7, 1)],
    [(4, 3, 2), (3, 1, 5)],
    [(4, 3, 2, 2), (4, 1, 3, 3)],
    [(4, 3, 2, 2, 2)],
)


def _trains(factory: Factory, params: Params, what: str) -> None:
    """Fail unless the parameters move, stay what they are, and get closer to the minimum."""
    optimizer = build(factory, params, what)
    before, kinds = values(params), [(p.dtype, p.stride()) for p in params]
    first, last = descend(optimizer, params, 10)
    expect_moved(before, params, "after 10 steps")
    expect(last < first, f"the loss went from {first:.4g} to {last:.4g} in 10 steps")
    expect([(p.dtype, p.stride()) for p in params] == kinds, "dtype or strides of a weight have changed")


def _of_dims(dims: int) -> Check:
    @declare(_parameters, f"A {_NAMES[dims]} trains.", name=f"dims-{dims}")
    def check(factory: Factory) -> None:
        _trains(factory, parameters(_DIMS[dims]), f"a {_NAMES[dims]}")

    return check


def _of_dtype(dtype: torch.dtype) -> Check:
    name = str(dtype).removeprefix("torch.")

    @declare(_parameters, f"Weights of {name} train, and stay {name}.", name=name)
    def check(factory: Factory) -> None:
        # Weights near 1 would not move in bfloat16: the step of a small lr is less than half of their last bit.
        params = [nn.Parameter(p.detach() / 256) for p in parameters(shapes_of(factory), dtype)]
        optimizer = build(factory, params, f"weights of {name}")
        before = values(params)
        advance(optimizer, params, 5)
        expect_moved(before, params, "after 5 steps")
        expect(all(p.dtype is dtype for p in params), "a weight has another dtype after a step")

    return check


@declare(_parameters, "Weights of float32, bfloat16 and float64 train in one group.")
def mixed_dtypes(factory: Factory) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    params = [nn.Parameter(p.detach() / 256) for dtype in dtypes for p in parameters([(6, 4), (5, 5)], dtype)]
    optimizer = build(factory, params, "weights of several dtypes")
    before = values(params)
    advance(optimizer, params, 5)
    expect_moved(before, params, "after 5 steps")


def _as_contiguous(factory: Factory, params: Params, what: str) -> None:
    """Fail unless the parameters keep their strides and move as contiguous ones with the same values."""
    plain, strides = twins(params), [p.stride() for p in params]
    optimizer, other = build(factory, params, what), build(factory, plain, what)
    before = values(params)
    advance(other, plain, 5)
    advance(optimizer, params, 5)
    expect([p.stride() for p in params] == strides, "strides have changed")
    expect_moved(before, params, "after 5 steps")
    far, difference = apart(before, plain), apart(params, plain)
    expect(difference <= 1e-3 * far, f"apart from contiguous weights by {difference / far:.1e} of the way")


@declare(_parameters, "Kernels in `channels_last` stay so, and train as others do.")
def channels_last(factory: Factory) -> None:
    kernel = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    _as_contiguous(factory, [nn.Parameter(kernel)], "kernels in `channels_last`")


@declare(_parameters, "Transposed and strided weights stay so, and train as others do.")
def strided(factory: Factory) -> None:
    params = [nn.Parameter(torch.randn(5, 7).T), nn.Parameter(torch.randn(6, 8)[:, ::2])]
    _as_contiguous(factory, params, "weights that are not contiguous")


def _fall(factory: Factory, contiguous: bool) -> float:
    """How far a loss falls in 10 steps whose gradients are transposed and expanded, or contiguous with these values."""
    first, second = params = parameters([(6, 4), (5, 5)])
    optimizer = factory(params)

    def loss() -> float:
        return float(first.square().sum() + second.sum(1).square().sum())

    before = loss()
    for _ in range(10):
        first.grad = (2 * first.detach()).T.contiguous().T
        second.grad = (2 * second.detach().sum(1, keepdim=True)).expand(5, 5)
        if contiguous:
            first.grad, second.grad = first.grad.contiguous(), second.grad.contiguous()
        optimizer.step()
    return before - loss()


@declare(_parameters, "Gradients may be transposed or expanded, unlike their weights.")
def gradients_strided(factory: Factory) -> None:
    usual, found = _fall(factory, contiguous=True), _fall(factory, contiguous=False)
    # Not to the bit: what an optimizer draws may follow the order in memory, and eigenvectors may be any of several.
    expect(found > usual / 2, f"the loss falls by {found:.2g}, and by {usual:.2g} along contiguous gradients")


@declare(_parameters, "A weight without elements is no obstacle.")
def no_elements(factory: Factory) -> None:
    params = parameters([(0, 3), (6, 4), (3, 0)])
    optimizer = build(factory, params, "weights without elements")
    before = values(params)
    advance(optimizer, params)
    expect_moved(before, params, "beside one without elements")
    optimizer.load_state_dict(optimizer.state_dict())
    advance(optimizer, params)


@declare(_parameters, "Weights may lie in other memory after `p.data = ...`.")
def other_memory(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    other = factory(plain)
    for seed in (2, 3):
        advance(optimizer, params, 3, seed)
        advance(other, plain, 3, seed)
        for p in params:
            p.data = p.data.clone()
    expect_alike(params, plain, "training goes on differently after the weights were given other memory")


@declare(_parameters, "It takes what `model.named_parameters()` returns, and saves the names.")
def named_parameters(factory: Factory) -> None:
    params = parameters(shapes_of(factory))
    names = [f"layer.{i}" for i in range(len(params))]
    optimizer = factory(iter(zip(names, params, strict=True)))
    before = values(params)
    advance(optimizer, params)
    expect_moved(before, params, "when given with a name")
    kept = optimizer.state_dict()["param_groups"][0].get("param_names")
    expect(kept == names, f"`param_names` in its `state_dict` is {kept}")


@declare(_parameters, "It takes a generator of parameters.")
def generator(factory: Factory) -> None:
    params = parameters(shapes_of(factory))
    optimizer = factory(p for p in params)
    before = values(params)
    advance(optimizer, params)
    expect_moved(before, params, "when given by a generator")


CHECKS = (
    *(_of_dims(dims) for dims in range(len(_DIMS))),
    channels_last,
    strided,
    gradients_strided,
    no_elements,
    *(_of_dtype(dtype) for dtype in (torch.float64, torch.bfloat16)),
    mixed_dtypes,
    other_memory,
    named_parameters,
    generator,
)
