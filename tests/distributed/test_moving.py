"""Checkpoints move between strategies and numbers of processes, and training goes on as if it never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
