"""The test over seeds, against cases worked out by hand."""

from math import exp, log
from typing import Any

import pytest

from jorge_lab.statistics.paired import _difference, against, compare, interval, verdict
from jorge_lab.statistics.reaching import Reach, reach
from lab.tests.factory import record


def reaches(steps: list[float | None], length: float = 100, **seconds: Any) -> dict[int, Reach]:
    """Runs by seed that take as many seconds as steps; None for one that does not reach the target."""
    return {
        seed: Reach(step is not None, step or length, step or length, 0, seconds.get("cpu"))
        for seed, step in enumerate(steps)
    }


def test_the_interval_of_three_values() -> None:
    # mean 2, standard deviation 1: 2 ± 4.3027 / √3
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48417, 2 + 2.48417), abs=1e-4)
    assert interval([5.0] * 100) == (5, 5)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-0.5, -0.6, -0.7], "ahead"),  # −0.6 ± 0.248
        ([0.5, 0.6, 0.7], "behind"),
        ([-0.1, -0.6, -1.1], "level"),  # −0.6 ± 1.24
        ([-0.01, -0.01, -0.01], "level"),  # within 2 %
        ([-0.03, -0.03, -0.03], "ahead"),
        ([-0.5, -0.7], "level"),  # −0.6 ± 1.27: two seeds say little
        ([-0.5], None),
        ([], None),
    ],
)
def test_verdicts(differences: list[float], expected: str | None) -> None:
    assert verdict(differences, log(1.02)) == expected


def test_seeds_are_compared_in_pairs() -> None:
    """Seeds differ by a factor of ten from each other; from seed to seed, one takes always about half."""
    mine, other = reaches([5, 52, 495], 1000), reaches([10, 100, 1000], 2000)
    assert against(mine, other, "steps") == "ahead"
    assert against(other, mine, "steps") == "behind"
    assert against(mine, mine, "steps") == "level"
    assert against(mine, {7: other[0]}, "steps") is None
    assert against(mine, {0: other[0]}, "steps") is None
    assert against(mine, other, "cpu_seconds") is None, "these have no CPU seconds"


def test_a_comparison_has_the_interval_of_the_ratio() -> None:
    """Logarithms of the ratios −0.5, −0.6 and −0.7: their mean is −0.6 ± 4.3027 · 0.1 / √3."""
    mine = reaches([100 * exp(-0.5), 100 * exp(-0.6), 100 * exp(-0.7)], 1000)
    found = compare(mine, reaches([100, 100, 100], 1000), "steps")
    assert found is not None
    assert (found.verdict, found.seeds, found.missed, found.reference_missed) == ("ahead", 3, 0, 0)
    assert (found.ratio, found.low, found.high) == pytest.approx((exp(-0.6), exp(-0.84841), exp(-0.35159)), rel=1e-4)
    assert compare(mine, {7: mine[0]}, "steps") is None
    assert compare(mine, mine, "cpu_seconds") is None


def test_one_seed_has_a_ratio_and_no_interval() -> None:
    found = compare(reaches([50]), reaches([100]), "steps")
    assert found is not None
    assert found.ratio == pytest.approx(0.5)
    assert (found.verdict, found.low, found.high) == (None, None, None)


def test_an_interval_says_which_runs_it_bounds() -> None:
    late, other = reaches([None, 100, 100]), reaches([50, 50, 51], 500)
    found = compare(late, other, "steps")
    assert found is not None
    assert (found.missed, found.reference_missed) == (1, 0)
    assert found.low is not None
    assert found.low < 2 < (found.high or 0)
    for mine, reference in ((late, reaches([None] * 3)), (reaches([None] * 3), reaches([None] * 3))):
        never = compare(mine, reference, "steps")
        assert never is not None
        assert (never.verdict, never.low, never.high, never.reference_missed) == ("level", None, None, 3)


def test_a_run_that_does_not_reach_is_never_ahead() -> None:
    # cheap steps: its whole run ends before the other reaches the target
    assert against(reaches([None] * 3, 50), reaches([80, 81, 82]), "seconds") == "behind"
    assert against(reaches([80, 81, 82]), reaches([None] * 3, 50), "seconds") == "ahead"
    assert against(reaches([None] * 3), reaches([None] * 3), "steps") == "level"
    # all or nothing decides even where the steps are within 2 %
    assert against(reaches([99, 99, 99]), reaches([None] * 3), "steps") == "ahead"


def test_a_run_that_does_not_reach_counts_with_its_length() -> None:
    mine, other = reaches([50, 50, 50]), reaches([100, 101, None])
    assert against(mine, other, "steps") == "ahead"  # ratios 1/2, 50/101 and at most 1/2
    late = reaches([None, 100, 100])
    # ratios of late to mine: 2 at least, 2, 2
    assert against(late, mine, "steps") == "behind"
    # one seed of three: 0, 0 and log 2 at least, an interval around 0
    assert against(reaches([50, 50, None]), mine, "steps") == "level"


def test_a_short_run_that_does_not_reach_weighs_nothing_in_its_favour() -> None:
    """Two seeds are even; in the third one run ends early without the target, which must not look like a lead."""
    mine = {0: Reach(True, 10, 10, 0, None), 1: Reach(True, 10, 10, 0, None), 2: Reach(False, 100, 1, 0, None)}
    other = reaches([20, 20, 20])
    differences = [log(0.5), log(0.5), 0.0]  # not log(1 / 20)
    assert verdict(differences, log(1.02)) == "level"
    assert _difference(mine[2], other[2], "seconds") == 0
    assert _difference(other[2], mine[2], "seconds") == 0
    assert against(mine, other, "seconds") == "level"


def test_a_diverged_run_is_charged_with_its_planned_length() -> None:
    found = reach(record("adamw", 0, [9.0, 8.0], ms=10, optimizer_ms=2, steps=10), 1.0)
    assert (found.reached, found.steps) == (False, 10)
    assert (found.seconds, found.optimizer_seconds, found.cpu_seconds) == pytest.approx((0.1, 0.02, 0.09))
    assert reach(record("adamw", 0, [], steps=10), 1.0).seconds == 0


def test_a_verdict_does_not_depend_on_the_scale() -> None:
    mine, other = [50.0, 60.0, 70.0], [100.0, 130.0, 120.0]
    expected = against(reaches(list(mine), 500), reaches(list(other), 500), "steps")
    for factor in (exp(-5), 1e3):
        mine_scaled, other_scaled = (reaches([factor * x for x in values], 500 * factor) for values in (mine, other))
        assert against(mine_scaled, other_scaled, "steps") == expected
    assert expected == "ahead"
