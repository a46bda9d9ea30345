"""When roots are refreshed."""

from hypothesis import given
from hypothesis import strategies as st

from jorge.schedule import Schedule

SCHEDULES = st.builds(Schedule, st.integers(1, 12), st.integers(0, 8), st.booleans())


@given(SCHEDULES)
def test_every_part_is_refreshed_once_an_interval(schedule: Schedule) -> None:
    first = schedule.warmup_refreshes + 1
    seen = [part for step in range(first, first + schedule.interval) if (part := schedule.part(step))]
    assert sum(1 / parts for _, parts in seen) == 1 or abs(sum(1 / parts for _, parts in seen) - 1) < 1e-9
    assert len({index for index, _ in seen}) == len(seen)


@given(SCHEDULES)
def test_earlier_refreshes_are_counted(schedule: Schedule) -> None:
    parts = schedule.interval if schedule.stagger else 1
    for mine in range(parts):
        count = 0
        for step in range(1, 60):
            part = schedule.part(step)
            if part is not None and part in ((0, 1), (mine, parts)):
                assert schedule.earlier(step) == count
                count += 1


def test_the_zeroth_step_refreshes_nothing() -> None:
    assert Schedule(1, 5).part(0) is None
