"""Checks of saving, loading and copying: training goes on as if it had not stopped."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import torch
from torch import nn

from jorge.testing.check import Factory, declare, expect
from jorge.testing.kit import (
    Params,
    advance,
    expect_alike,
    expect_moved,
    parameters,
    saved,
    set_lr,
    shapes_of,
    start,
    twins,
    values,
)

_checkpoints = "checkpoints"
#: After how many steps training stops: the first, and some between which schedules of all kinds change their minds.
_STOPS = (1, 3, 7, 11, 23)
Pair = tuple[Params, torch.optim.Optimizer]


def _goes_on(factory: Factory, stopped: Callable[[Params, torch.optim.Optimizer], Pair]) -> None:
    """Fail unless what `stopped` makes of parameters and optimizer trains on to the bit as these do."""
    for steps in _STOPS:
        params, optimizer = start(factory)
        advance(optimizer, params, steps)
        other_params, other = stopped(params, optimizer)
        kept = values(other_params)
        advance(optimizer, params, 6, seed=3)
        expect_alike(kept, other_params, "a copy moves when the original takes a step")
        advance(other, other_params, 6, seed=3)
        expect_alike(params, other_params, f"not as before, 6 steps after a stop at step {steps}")


@declare(_checkpoints, "A fresh optimizer that loads a `state_dict` goes on to the bit.")
def resume(factory: Factory) -> None:
    def stopped(params: Params, optimizer: torch.optim.Optimizer) -> Pair:
        fresh = twins(params)
        other = factory(fresh)
        other.load_state_dict(saved(optimizer))
        return fresh, other

    _goes_on(factory, stopped)


@declare(_checkpoints, "So it does from a file that is read with `weights_only=True`.")
def resume_from_file(factory: Factory) -> None:
    def stopped(params: Params, optimizer: torch.optim.Optimizer) -> Pair:
        file = io.BytesIO()
        torch.save({"weights": values(params), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        fresh = [nn.Parameter(w) for w in loaded["weights"]]
        other = factory(fresh)
        other.load_state_dict(loaded["optimizer"])
        return fresh, other

    _goes_on(factory, stopped)


@declare(_checkpoints, "A `deepcopy` of weights and optimizer goes on to the bit.")
def deepcopied(factory: Factory) -> None:
    _goes_on(factory, lambda params, optimizer: copy.deepcopy((params, optimizer)))


@declare(_checkpoints, "Weights and optimizer that are pickled together go on to the bit.")
def pickled(factory: Factory) -> None:
    _goes_on(factory, lambda params, optimizer: pickle.loads(pickle.dumps((params, optimizer))))


@declare(_checkpoints, "An optimizer in the middle of training that loads an earlier `state_dict` goes back to it.")
def rollback(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params, 4)
    kept, weights = saved(optimizer), values(params)
    advance(optimizer, params, 5, seed=3)
    first = values(params)
    with torch.no_grad():
        for p, w in zip(params, weights, strict=True):
            p.copy_(w)
    optimizer.load_state_dict(kept)
    advance(optimizer, params, 5, seed=3)
    expect_alike(first, params, "the same steps lead elsewhere after a return to a checkpoint")


@declare(_checkpoints, "The `state_dict` of an optimizer that took no step yet loads.")
def before_the_first_step(factory: Factory) -> None:
    params, optimizer = start(factory)
    fresh = twins(params)
    other = factory(fresh)
    other.load_state_dict(saved(optimizer))
    for each, mine in ((optimizer, params), (other, fresh)):
        advance(each, mine)
    expect_alike(params, fresh, "not as a fresh optimizer")


@declare(_checkpoints, "Options of groups, such as the learning rate, are those of the checkpoint after a load.")
def options_loaded(factory: Factory) -> None:
    params, optimizer = start(factory)
    set_lr(optimizer, 0.0)
    advance(optimizer, params)
    fresh = twins(params)
    other = factory(fresh)
    other.load_state_dict(saved(optimizer))
    found = float(other.param_groups[0]["lr"])
    expect(found == 0, f"lr is {found} after a load, 0 in the checkpoint")
    before = values(fresh)
    advance(other, fresh)
    expect_alike(before, fresh, "weights move at the lr of 0 that was loaded")


@declare(_checkpoints, "A checkpoint has torch's layout: states by index, groups with lists of indices.")
def layout(factory: Factory) -> None:
    params, optimizer = start(factory)
    optimizer.add_param_group({"params": parameters([(3, 3)], seed=5)})
    params = [p for group in optimizer.param_groups for p in group["params"]]
    advance(optimizer, params)
    kept = optimizer.state_dict()
    expect({"state", "param_groups"} <= kept.keys(), f"its keys are {sorted(map(str, kept))}")
    indices = [index for group in kept["param_groups"] for index in group["params"]]
    expect(indices == list(range(len(params))), f"the groups' `params` are {indices}")
    expect(set(kept["state"]) <= set(indices), f"the states' keys are {list(kept['state'])}")
    expect(all(isinstance(state, dict) for state in kept["state"].values()), "a parameter's state is no dict")
    expect("lr" in kept["param_groups"][0], "the groups have no `lr`")


@declare(_checkpoints, "A checkpoint of other groups is refused with a `ValueError`, and nothing has changed then.")
def unequal_groups(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    small = parameters([(6, 4)])
    other = factory(small)
    advance(other, small)
    more = saved(other)
    other.add_param_group({"params": parameters([(5, 5)])})
    for bad in (more, saved(other)):
        advance(optimizer, params)
        advance(twin, plain)
        try:
            optimizer.load_state_dict(bad)
        except ValueError:
            pass
        else:
            raise AssertionError("it loads a state of groups of other sizes")
    advance(optimizer, params, seed=3)
    advance(twin, plain, seed=3)
    expect_alike(params, plain, "training goes on differently after a load that failed")


def _loads_from(factory: Factory, first: torch.dtype, second: torch.dtype) -> None:
    params = [nn.Parameter(p.detach() / 256) for p in parameters(shapes_of(factory), first)]
    optimizer = factory(params)
    advance(optimizer, params)
    fresh = [nn.Parameter(p.detach().to(second)) for p in params]
    other = factory(fresh)
    other.load_state_dict(saved(optimizer))
    before = values(fresh)
    advance(other, fresh, 5)
    expect_moved(before, fresh, f"as {second} with a state of {first}")
    expect(all(p.dtype is second for p in fresh), "a weight has another dtype")


@declare(_checkpoints, "The state of bfloat16 weights loads for those of float32, and the other way round.")
def other_dtype(factory: Factory) -> None:
    _loads_from(factory, torch.bfloat16, torch.float32)
    _loads_from(factory, torch.float32, torch.bfloat16)


@declare(_checkpoints, "After `model.double()` it trains on once it has loaded its own `state_dict`.")
def doubled(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    optimizer.zero_grad()
    nn.ParameterList(params).double()
    optimizer.load_state_dict(saved(optimizer))
    before = values(params)
    advance(optimizer, params, seed=3)
    expect_moved(before, params, "as float64")
    expect(all(p.dtype is torch.float64 for p in params), "a weight has another dtype")


CHECKS = (
    resume,
    resume_from_file,
    deepcopied,
    pickled,
    rollback,
    before_the_first_step,
    options_loaded,
    layout,
    unequal_groups,
    other_dtype,
    doubled,
)
