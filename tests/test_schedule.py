"""When preconditioners are refreshed."""

from dataclasses import replace
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from jorge.arrange import ParamSpec, arrange
from jorge.methods import METHODS
from jorge.options import Options
from jorge.schedule import Schedule, pieces

SCHEDULES = st.builds(Schedule, st.integers(1, 12), st.integers(0, 8), st.booleans())


@given(SCHEDULES)
def test_every_part_is_refreshed_once_a_gap(schedule: Schedule) -> None:
    seen = [now for step in range(1, 200) if (now := schedule.at(step))]
    by_number: dict[int, list[tuple[int, int]]] = {}
    for now in seen:
        by_number.setdefault(now.number, []).append((now.part, now.parts))
    for number in sorted(by_number)[:-1]:  # the last may not be over
        parts = by_number[number]
        gap = next(now.gap for now in seen if now.number == number)
        assert parts == ([(index, gap) for index in range(gap)] if schedule.stagger else [(0, 1)])


@given(SCHEDULES)
def test_the_gap_grows_by_one_after_so_many_refreshes(schedule: Schedule) -> None:
    plain = Schedule(schedule.interval, schedule.warmup_refreshes)
    refreshing = [(step, now) for step in range(1, 1000) if (now := plain.at(step))]
    gaps = [b - a for a, b in pairwise([0, *(step for step, _ in refreshing)])]
    warmup = schedule.warmup_refreshes
    grown = [gap for gap in range(1, schedule.interval) for _ in range(warmup)]
    assert gaps[: len(grown)] == grown[: len(gaps)]
    assert set(gaps[len(grown) :]) <= {schedule.interval}
    assert [now.gap for _, now in refreshing] == gaps


@given(SCHEDULES)
def test_earlier_refreshes_are_counted_for_every_block(schedule: Schedule) -> None:
    blocks = 60  # each is in a part by its place among them
    counts = [0] * blocks
    for step in range(1, 300):
        if (now := schedule.at(step)) is not None:
            for block in range(blocks * now.part // now.parts, blocks * (now.part + 1) // now.parts):
                assert now.number == counts[block]
                counts[block] += 1


def test_the_default_grows_to_five() -> None:
    schedule = Schedule(5, 20)
    found = [(step, now.number) for step in range(1, 300) if (now := schedule.at(step))]
    steps = [step for step, _ in found]
    assert steps[:20] == list(range(1, 21))
    assert steps[20:40] == list(range(22, 61, 2))
    assert steps[40:60] == list(range(63, 121, 3))
    assert steps[60:80] == list(range(124, 201, 4))
    assert steps[80:] == list(range(205, 300, 5))
    assert [number for _, number in found] == list(range(len(steps)))


def test_without_a_warm_up_the_interval_holds_from_the_start() -> None:
    assert [step for step in range(1, 20) if Schedule(6, 0).at(step)] == [6, 12, 18]


def test_a_part_that_ends_with_a_block_does_not_take_the_next() -> None:
    """15 blocks from 0 to a third of the work in five parts: rounding must not move the edge behind the ninth."""
    spec = ParamSpec((4, 6), torch.float32)
    (work,) = arrange([spec] * 15, Options(lr=0.1))
    stack = replace(work.stacks[0], span=(0.0, 1 / 3))
    schedule, found = Schedule(5, 0, stagger=True), []
    for step in range(1, 6):
        found += [
            (p.start, p.stop) for p in pieces(stack, work.matrices, [step] * 15, schedule, METHODS["exact"], step)
        ]
    assert found == [(0, 9), (9, 15)]


def test_the_zeroth_step_refreshes_nothing() -> None:
    assert Schedule(1, 5).at(0) is None
