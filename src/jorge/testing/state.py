"""Checks of `optimizer.state`, which others read, clear, and put things into."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jorge.testing.check import BEYOND, Factory, declare, expect
from jorge.testing.kit import advance, expect_alike, expect_moved, saved, start, twins, values

_state = "state"


def _equal(found: Any, given: Any) -> bool:
    return torch.equal(found, given) if isinstance(given, torch.Tensor) else bool(found == given)


@declare(_state, "Entries of others in a parameter's state survive steps, a save and a load.")
def entries_of_others(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    for each, mine in ((optimizer, params), (twin, plain)):
        advance(each, mine)
    given: dict[str, Any] = {"count": 3, "share": 0.5, "average": torch.arange(5.0)}
    optimizer.state[params[0]].update(given)
    advance(optimizer, params, seed=3)
    advance(twin, plain, seed=3)
    expect_alike(params, plain, "training goes on differently with entries of others in the state")
    fresh = twins(params)
    other = factory(fresh)
    other.load_state_dict(saved(optimizer))
    for name, value in given.items():
        found = other.state[fresh[0]].get(name, "missing")
        expect(_equal(found, value), f"{name!r} is {found!r} after a load, not {value!r}")
    advance(other, fresh)


@declare(_state, "Entries of `optimizer.state` that are no parameter's survive steps, a save and a load.")
def entries_of_nobody(factory: Factory) -> None:
    params, optimizer = start(factory)
    given: Any = {"loss": 0.5}
    state: dict[Any, Any] = optimizer.state
    state["history"] = given
    advance(optimizer, params)
    fresh = twins(params)
    other = factory(fresh)
    other.load_state_dict(saved(optimizer))
    loaded: dict[Any, Any] = other.state
    expect(loaded.get("history") == given, f"'history' is {loaded.get('history', 'missing')!r} after a load")
    before = values(fresh)
    advance(other, fresh)
    expect_moved(before, fresh, "with an entry that is no parameter's")


@declare(_state, "It trains on after its state was cleared, in place or by another dict.")
def cleared(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    before = values(params)
    optimizer.state.clear()
    advance(optimizer, params)
    expect_moved(before, params, "after `state.clear()`")
    before = values(params)
    optimizer.state = defaultdict(dict)
    advance(optimizer, params)
    expect_moved(before, params, "after `state` was replaced")


@declare(_state, "A weight may be replaced by another, with the state moved along or afresh.")
def replaced(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    for each, mine in ((optimizer, params), (twin, plain)):
        advance(each, mine)
    old, new = params[0], twins(params[:1])[0]
    optimizer.param_groups[0]["params"][0] = params[0] = new
    if old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)
    for each, mine in ((optimizer, params), (twin, plain)):
        advance(each, mine, seed=3)
    expect_alike(params, plain, "training goes on differently after a weight was replaced, with its state moved along")
    smaller = nn.Parameter(new.detach()[:3].clone())
    optimizer.state.pop(new, None)
    optimizer.param_groups[0]["params"][0] = params[0] = smaller
    before = values(params)
    advance(optimizer, params)
    expect_moved(before, params, "after one was replaced by a smaller one")


def _size(entry: Any) -> int:
    """Numbers in an entry of the state, however it is nested."""
    if isinstance(entry, torch.Tensor):
        return entry.numel()
    if isinstance(entry, Mapping):
        return sum(map(_size, entry.values()))
    return sum(map(_size, entry)) if isinstance(entry, (list, tuple)) else 1


@declare(_state, "The state does not grow with the steps.")
def size(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params, 12)
    before = _size(optimizer.state)
    advance(optimizer, params, 24)
    after = _size(optimizer.state)
    expect(before == after, f"the state has {before} numbers after 12 steps, {after} after 36")


@declare(_state, "Optimizer and weights are freed once nobody holds them.")
def freed(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    held_optimizer, held_weight = weakref.ref(optimizer), weakref.ref(params[0])
    del params, optimizer
    gc.collect()
    expect(held_optimizer() is None, "something still holds the optimizer")
    expect(held_weight() is None, "something still holds a weight")


@declare(BEYOND, "Entries of others in a parameter's state before the first step do not disturb it.")
def early_entries(factory: Factory) -> None:
    params, optimizer = start(factory)
    plain = twins(params)
    twin = factory(plain)
    for p in params:
        optimizer.state[p]["count"] = 3
    for each, mine in ((optimizer, params), (twin, plain)):
        advance(each, mine)
    expect_alike(params, plain, "it trains differently with entries of others in the state")
    fresh = twins(params)
    other = factory(fresh)
    other.load_state_dict(saved(optimizer))
    expect(other.state[fresh[0]].get("count") == 3, "'count' is gone after a load")


@declare(BEYOND, "Words in a parameter's state survive a save and a load. (Torch casts them like lists of tensors.)")
def words(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    optimizer.state[params[0]]["note"] = "mine"
    fresh = twins(params)
    other = factory(fresh)
    other.load_state_dict(saved(optimizer))
    found = other.state[fresh[0]].get("note", "missing")
    expect(found == "mine", f"'note' is {found!r} after a load, not 'mine'")


CHECKS = (entries_of_others, entries_of_nobody, cleared, replaced, size, freed, early_entries, words)
