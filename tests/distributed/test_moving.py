"""Checkpoints move between strategies and numbers of processes, and training goes on as if it never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from jorge import Jorge
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_strategies import off

pytestmark = pytest.mark.slow

WALK: list[tuple[str, int, dict[str, Any]]] = [
    ("fsdp", 4, {}),
    ("ddp", 2, {"distributed": "shard"}),
    ("alone", 1, {}),
    ("fsdp+tp", 4, {}),
    ("ddp", 2, {"distributed": "replicate"}),
    ("hsdp", 4, {}),
    ("fsdp", 2, {"distributed": None}),
]


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("options", [{}, {"grafting": "sgd", "method": "congruence"}], ids=str)
def test_a_walk_over_strategies_ends_where_one_process_ends(
    pool: Pool, tmp_path: Path, flatten: bool, options: dict[str, Any]
) -> None:
    load, start = None, 0
    for strategy, world, how in WALK:
        steps, save = range(start, start + 4), str(tmp_path / str(start))
        found = pool.run(world, jobs.leg, strategy, how | options, steps, load, save, flatten)[0]
        load, start = save, start + 4
    assert off(found, jobs.alone(options, start)) < 1e-10


FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def before_and_after(rank: int, world: int, strategy: str, how: dict[str, Any]) -> tuple[list[str], list[str], bool]:
    """The keys of a checkpoint before any step and after some, and whether making it has moved no weight."""
    net = jobs.built(strategy, world)
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | how)
    weights = jobs.weights(net)
    before = sorted(get_optimizer_state_dict(net, optimizer, options=FLAT))
    same = all(torch.equal(value, weights[name]) for name, value in jobs.weights(net).items())
    jobs.train(net, optimizer, range(2), *jobs.share(strategy, rank, world))
    return before, sorted(get_optimizer_state_dict(net, optimizer, options=FLAT)), same


@pytest.mark.parametrize(("strategy", "world", "how"), WALK[:2] + WALK[3:6], ids=str)
def test_keys_are_there_before_the_first_step_and_the_same_everywhere(
    pool: Pool, strategy: str, world: int, how: dict[str, Any]
) -> None:
    found = pool.run(world, before_and_after, strategy, how)
    assert all(each == found[0] for each in found)
    before, after, same = found[0]
    assert before == after
    assert same
    assert any(key.endswith("up.weight.left.0") for key in before)


def dtypes(
    rank: int, world: int, strategy: str, dtypes: tuple[torch.dtype, torch.dtype], load: str | None, save: str
) -> set[tuple[str, torch.dtype]]:
    """Save or load a state; the dtypes of its tensors, by the first part of their keys."""
    weights, stored = dtypes
    net = jobs.built(strategy, world, weights)
    # What is loaded decides: a fresh optimizer may have been built otherwise.
    own = {"preconditioner_dtype": stored} if load is None else {}
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS | own)
    if load is not None:
        state = {"optimizer": get_optimizer_state_dict(net, optimizer)}
        state_dict_loader.load(state, checkpoint_id=load)
        set_optimizer_state_dict(net, optimizer, state["optimizer"])
    jobs.train(net, optimizer, range(2), *jobs.share(strategy, rank, world))
    state_dict_saver.save({"optimizer": get_optimizer_state_dict(net, optimizer)}, checkpoint_id=save)
    assert {entry["step"] for entry in optimizer.state.values()} == {2 if load is None else 4}
    entries = (item for entry in optimizer.state.values() for item in entry.items())
    return {(key.split(".")[0], value.dtype) for key, value in entries if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(
    "kinds", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_dtypes_of_the_state_survive(pool: Pool, tmp_path: Path, kinds: tuple[torch.dtype, torch.dtype]) -> None:
    found = pool.run(3, dtypes, "fsdp", kinds, None, str(tmp_path / "first"))
    wanted = set.union(*found)
    assert ("left", kinds[1]) in wanted
    assert ("exp_avg", torch.float32) in wanted
    for world in (2, 1):
        moved = pool.run(world, dtypes, "fsdp", kinds, str(tmp_path / "first"), str(tmp_path / str(world)))
        assert set.union(*moved) == wanted
