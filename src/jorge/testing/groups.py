"""Checks of param groups."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from jorge.testing.check import Factory, declare, expect
from jorge.testing.kit import (
    advance,
    expect_alike,
    expect_moved,
    expect_unmoved,
    parameters,
    saved,
    shapes_of,
    start,
    twins,
    values,
)

_groups = "groups"
#: What schedules by layer, frameworks and other optimizers keep in groups.
_KEYS = {"lr_scale": 0.5, "lr_mult": 2.0, "name": "head", "initial_lr": 0.1, "foreach": None}


def _refused(factory: Factory, params: object, errors: tuple[type[Exception], ...], what: str) -> None:
    """Fail unless the factory raises one of some errors."""
    try:
        factory(params)
    except errors:
        return
    raise AssertionError(f"it takes {what}")


@declare(_groups, "Each group has its own learning rate.")
def group_lr(factory: Factory) -> None:
    slow = parameters(shapes_of(factory))
    fast, still = twins(slow), twins(slow)
    lr = float(factory(twins(slow)).param_groups[0]["lr"])
    optimizer = factory(
        [{"params": slow, "lr": lr}, {"params": fast, "lr": 2 * lr}, {"params": still, "lr": 0.0}],
    )
    before = values(slow)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for a, b, c in zip(slow, fast, still, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad, c.grad = a.grad.clone(), a.grad.clone()
        optimizer.step()
    expect_unmoved(before, still, "in a group of lr=0")
    for old, a, b in zip(before, slow, fast, strict=True):
        ratio = float((b - old).norm() / (a - old).norm())
        expect(1.5 < ratio < 2.5, f"at twice the lr a weight goes {ratio:.2f} times as far")


@declare(_groups, "A group that is added in the middle of training trains, and the others go on.")
def added_group(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    other = factory(plain)
    later = parameters(shapes_of(factory), seed=5)
    for opt, mine in ((optimizer, params), (other, plain)):
        advance(opt, mine)
    optimizer.add_param_group({"params": later})
    before = values(later)
    advance(optimizer, params, seed=3)
    advance(other, plain, seed=3)
    expect_alike(params, plain, "the first group goes on differently once there is another")
    advance(optimizer, [*params, *later], 5)
    expect_moved(before, later, "in a group that was added")


@declare(_groups, "A group that is taken out of `param_groups` stays where it is, and the others train.")
def removed_group(factory: Factory) -> None:
    params, others = parameters(shapes_of(factory)), parameters(shapes_of(factory), seed=5)
    optimizer = factory([{"params": params}, {"params": others}])
    advance(optimizer, [*params, *others])
    del optimizer.param_groups[1]
    before, still = values(params), values(others)
    advance(optimizer, [*params, *others])
    expect_moved(before, params, "after another group was removed")
    expect_unmoved(still, others, "in a group that was removed")


@declare(_groups, "A group may be empty, and survives a save and a load.")
def empty_group(factory: Factory) -> None:
    params = parameters(shapes_of(factory))
    optimizer = factory([{"params": params}, {"params": []}])
    before = values(params)
    advance(optimizer, params)
    expect_moved(before, params, "beside an empty group")
    optimizer.load_state_dict(saved(optimizer))
    expect([len(g["params"]) for g in optimizer.param_groups] == [len(params), 0], "the groups have changed")
    advance(optimizer, params)


@declare(_groups, "Keys that others put into groups survive a save and a load, and do not disturb a step.")
def keys_of_others(factory: Factory) -> None:
    params = parameters(shapes_of(factory))
    fresh = twins(params)
    optimizer, other = factory([{"params": params, **_KEYS}]), factory(fresh)
    advance(optimizer, params)
    other.load_state_dict(saved(optimizer))
    for name, value in _KEYS.items():
        found = other.param_groups[0].get(name, "missing")
        expect(found == value, f"{name!r} is {found!r} after a load, not {value!r}")
    before = values(fresh)
    advance(other, fresh)
    expect_moved(before, fresh, "with keys of others in its group")


@declare(_groups, "A parameter that is given twice is refused; within one group a warning will do.")
def given_twice(factory: Factory) -> None:
    p, q = parameters([(6, 4), (5, 5)])
    _refused(factory, [{"params": [p]}, {"params": [q, p]}], (ValueError,), "a parameter in two groups")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _refused(factory, [p, q, p], (ValueError, UserWarning), "a parameter twice in one group without a warning")
    optimizer = factory([p])
    try:
        optimizer.add_param_group({"params": [p]})
    except ValueError:
        expect(len(optimizer.param_groups) == 1, "a group that is refused is there all the same")
    else:
        raise AssertionError("`add_param_group` takes a parameter that it has")


@declare(_groups, "What is no parameter is refused: no leaf, no tensor, a bare tensor, nothing at all.")
def no_parameters(factory: Factory) -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    _refused(factory, [weight * 2], (ValueError,), "a tensor that is no leaf")
    _refused(factory, [1.0], (TypeError,), "a number as a parameter")
    _refused(factory, torch.randn(6, 4), (TypeError,), "a bare tensor")
    _refused(factory, [], (ValueError,), "an empty list")


CHECKS = (group_lr, added_group, removed_group, empty_group, keys_of_others, given_twice, no_parameters)
