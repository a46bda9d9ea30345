"""How the seconds of one run repeat."""

from typing import Any

import pytest

from jorge_lab.report.lead import repeats
from jorge_lab.report.parts import parts
from jorge_lab.runs.records import sections
from jorge_lab.statistics.repeats import repeated
from lab.tests.factory import comparison, record

#: Two seeds of two optimizers at 10 and 12 ms a step; the first seed once more at 10.4 and 11, and at 12 and 12.6.
RUNS = comparison("mnist", {"sgd": 0.02, "jorge": 0.06}, seeds=2)


def again(name: str, ms: float, n: int, **options: Any) -> dict[str, Any]:
    return record(name, 0, [1.0] * 200, ms=ms, repetition=n, **options)


REPEATED = [
    *RUNS,
    *(again("sgd", ms, n) for n, ms in ((1, 10.4), (2, 11))),
    *(again("jorge", ms, n) for n, ms in ((1, 12), (2, 12.6))),
]


def test_the_spread_is_the_most_over_the_least() -> None:
    (section,) = sections(REPEATED)
    sgd, jorge = repeated(section)
    assert (sgd.key, sgd.times) == (("sgd", "transferred"), 3)
    assert (sgd.seconds, sgd.cpu_seconds) == pytest.approx((0.1, 0.1))
    assert jorge.seconds == pytest.approx(0.05)


def test_a_run_that_ends_early_is_compared_by_its_pace() -> None:
    (section,) = sections([*RUNS, again("sgd", 11, 1) | {"losses": [1.0], "seconds": [0.011], "cpu_seconds": [0.01]}])
    (sgd,) = repeated(section)
    assert sgd.seconds == pytest.approx(0.1)


def test_only_the_same_run_on_the_same_machine_repeats() -> None:
    elsewhere = again("sgd", 20, 1)
    elsewhere["environment"] = elsewhere["environment"] | {"device": "GPU"}
    others = again("sgd", 20, 1) | {"settings": {"lr": 7.0}}
    (section,) = sections([*RUNS, elsewhere, others, again("sgd", 20, 1, setting="tuned")])
    assert repeated(section) == []


def test_clocks_that_were_not_read_are_left_out() -> None:
    (section,) = sections([*RUNS, again("sgd", 11, 1) | {"cpu_seconds": None}])
    (sgd,) = repeated(section)
    assert sgd.seconds == pytest.approx(0.1)
    assert sgd.cpu_seconds is None
    (section,) = sections([*RUNS, again("sgd", 11, 1) | {"seconds": []}])
    assert repeated(section) == []


def test_repetitions_change_no_row_and_are_said_below_the_table() -> None:
    (plain,), (part,) = parts(RUNS, {}), parts(REPEATED, {})
    assert part.rows == plain.rows
    assert repeats(plain) == []
    assert repeats(part) == [
        "Seconds of the same run, thrice: within 10 % (SGD), 5 % (Jorge); CPU seconds: within 10 %."
    ]
    (part,) = parts([*REPEATED, again("jorge", 13.2, 3), again("jorge", 12, 4)], {})
    assert repeats(part) == [
        "Seconds of the same run, thrice: within 10 % (SGD); CPU seconds: within 10 %.",
        "Seconds of the same run, 5 times: within 10 % (Jorge); CPU seconds: within 10 %.",
    ]
