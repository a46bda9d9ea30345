"""Checks of hooks, by which others follow what an optimizer does."""

from __future__ import annotations

from typing import Any

import torch

from jorge.testing.check import Factory, declare, expect
from jorge.testing.kit import (
    advance,
    expect_alike,
    expect_moved,
    expect_unmoved,
    give_gradients,
    parameters,
    quadratic,
    saved,
    shapes_of,
    start,
    twins,
    values,
)

_hooks = "hooks"


@declare(_hooks, "It is a `torch.optim.Optimizer` that has `defaults`, groups, a state and a `repr`.")
def kind(factory: Factory) -> None:
    params, optimizer = start(factory)
    expect(isinstance(optimizer, torch.optim.Optimizer), f"it is a {type(optimizer).__name__}")
    expect(isinstance(optimizer.defaults, dict), "its `defaults` are no dict")
    held = [p for group in optimizer.param_groups for p in group["params"]]
    expect(
        len(held) == len(params) and all(p is q for p, q in zip(held, params, strict=True)), "it holds other weights"
    )
    expect("lr" in optimizer.param_groups[0], "its groups have no `lr`")
    expect(type(optimizer).__name__ in repr(optimizer), "its `repr` does not name it")


@declare(_hooks, "Hooks run before and after a step, and a step uses the gradients that a hook has changed.")
def around_steps(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    before = values(params)
    seen: list[str] = []

    def first(*_: Any) -> None:
        seen.append("before" if all(map(torch.equal, before, values(params))) else "too late")

    def last(*_: Any) -> None:
        seen.append("too early" if any(map(torch.equal, before, values(params))) else "after")

    handles = [optimizer.register_step_pre_hook(first), optimizer.register_step_post_hook(last)]
    advance(optimizer, params, 1)
    expect(seen == ["before", "after"], f"the hooks saw {seen}")
    for handle in handles:
        handle.remove()
    advance(optimizer, params, 1)
    expect(len(seen) == 2, "a hook runs after it was removed")


@declare(_hooks, "A hook before a step may take gradients away.")
def gradients_from_hooks(factory: Factory) -> None:
    params, optimizer = start(factory)

    def drop(*_: Any) -> None:
        for p in params:
            p.grad = None

    optimizer.register_step_pre_hook(drop)
    before = values(params)
    give_gradients(params, torch.Generator().manual_seed(2))
    optimizer.step()
    expect_unmoved(before, params, "though a hook took the gradients away")


@declare(_hooks, "Steps may be taken within `backward`, by an optimizer for each weight.")
def within_backward(factory: Factory) -> None:
    params = parameters(shapes_of(factory))
    plain = twins(params)
    optimizers: dict[torch.Tensor, torch.optim.Optimizer] = {p: factory([p]) for p in [*params, *plain]}

    def step(p: torch.Tensor) -> None:
        torch.manual_seed(2)  # what the optimizer draws must not depend on whose turn it is
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in params:
        p.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    before = values(params)
    for _ in range(3):
        quadratic(params).backward()  # type: ignore[no-untyped-call]
        quadratic(plain).backward()  # type: ignore[no-untyped-call]
        for p in plain:
            step(p)
    expect_moved(before, params, "after steps within `backward`")
    expect_alike(params, plain, "not as with steps after `backward`")


@declare(_hooks, "Hooks of `state_dict` and `load_state_dict` run, and may change what is saved and loaded.")
def around_checkpoints(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    seen: list[str] = []

    def add(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("saved")
        return {**state, "note": "mine"}

    def take(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(f"loads {state.get('note')}")
        groups = [{**group, "tag": 1} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("saves"))
    optimizer.register_state_dict_post_hook(add)
    optimizer.register_load_state_dict_pre_hook(take)
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    optimizer.load_state_dict(saved(optimizer))
    expect(seen == ["saves", "saved", "loads mine", "loaded"], f"the hooks saw {seen}")
    expect(optimizer.param_groups[0].get("tag") == 1, "what a hook made of a checkpoint is not what is loaded")
    advance(optimizer, params)


CHECKS = (kind, around_steps, gradients_from_hooks, within_backward, around_checkpoints)
