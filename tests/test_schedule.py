"""When roots are refreshed."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jorge.schedule import Schedule

SCHEDULES = st.builds(Schedule, st.integers(1, 12), st.integers(0, 8), st.booleans())


@given(SCHEDULES)
def test_every_part_is_refreshed_once_a_gap(schedule: Schedule) -> None:
    steps = iter(range(1, 200))
    for step in steps:
        gap = schedule.gap(step)
        seen = [part for s in (step, *(next(steps) for _ in range(gap - 1))) if (part := schedule.part(s))]
        if schedule.stagger:
            assert seen == [(index, gap) for index in range(gap)]
        else:
            assert seen == [(0, 1)]
        if step > 150:
            break


@given(SCHEDULES)
def test_the_gap_grows_by_one_after_so_many_refreshes(schedule: Schedule) -> None:
    refreshing = [step for step in range(1, 1000) if Schedule(schedule.interval, schedule.warmup_refreshes).part(step)]
    gaps = [b - a for a, b in pairwise([0, *refreshing])]
    warmup = schedule.warmup_refreshes
    grown = [gap for gap in range(1, schedule.interval) for _ in range(warmup)]
    assert gaps[: len(grown)] == grown[: len(gaps)]
    assert set(gaps[len(grown) :]) <= {schedule.interval}


@given(SCHEDULES)
def test_earlier_refreshes_are_counted_for_every_block(schedule: Schedule) -> None:
    blocks = 60  # each is in a part by its place among them
    counts = [0] * blocks
    for step in range(1, 300):
        if (part := schedule.part(step)) is not None:
            index, parts = part
            for block in range(blocks * index // parts, blocks * (index + 1) // parts):
                assert schedule.earlier(step) == counts[block]
                counts[block] += 1


def test_the_default_grows_to_five() -> None:
    schedule = Schedule(5, 20)
    due = [step for step in range(1, 300) if schedule.part(step)]
    assert due[:20] == list(range(1, 21))
    assert due[20:40] == list(range(22, 61, 2))
    assert due[40:60] == list(range(63, 121, 3))
    assert due[60:80] == list(range(124, 201, 4))
    assert due[80:] == list(range(205, 300, 5))
    assert [schedule.earlier(step) for step in due] == list(range(len(due)))


def test_without_a_warm_up_the_interval_holds_from_the_start() -> None:
    assert [step for step in range(1, 20) if Schedule(6, 0).part(step)] == [6, 12, 18]


def test_the_zeroth_step_refreshes_nothing() -> None:
    assert Schedule(1, 5).part(0) is None
