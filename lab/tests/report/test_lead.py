"""The sentence that a task leads with, and what stands below its table."""

from typing import Any

import pytest

from jorge_lab.report.lead import below, lead
from jorge_lab.report.parts import parts
from lab.tests.factory import TWO_TASKS, comparison, falling, record
from lab.tests.statistics.test_summary import BROKEN, JORGE, SGD


def said(records: list[dict[str, Any]], **targets: float) -> str:
    (part,) = parts(records, targets)
    return lead(part)


def test_what_the_reference_saves_and_costs() -> None:
    """4 of SGD's 10 steps, at 20 ms instead of 10, 5 of them the optimizer's; seven times its state."""
    jorge = [run | {"state_bytes": 700} for run in JORGE]
    assert said([*SGD, *jorge]) == (
        "Jorge reaches SGD's best loss in 0.40 of the steps and 0.80 of the seconds; optimizer 25 % of a step; "
        "7 × the state."
    )
    assert said(TWO_TASKS[:15]).startswith("Jorge (transferred) reaches SGD's best loss in 0.43 of the steps and 0.58")


def test_a_target_that_was_given() -> None:
    assert said([*SGD, *JORGE], mnist=5.0).startswith(
        "Jorge reaches a loss of 5 in 0.46 of SGD's steps and 0.92 of its seconds; "
    )
    assert said(JORGE, mnist=5.0) == (
        "Jorge reaches a loss of 5 in 3 steps and 0.1 seconds; optimizer 25 % of a step; 0.00 MB of state."
    )


def test_a_target_that_is_not_reached_with_every_seed() -> None:
    runs = [*comparison("mnist", {"sgd": 0.02}), *comparison("mnist", {"jorge": 0.06}, seeds=2)]
    late = comparison("mnist", {"jorge": 0.001})
    assert "in 0.35 of the steps and 0.35 of the seconds (2 of 3 seeds); optimizer 10 %" in said([*runs, late[2]])
    assert said([*runs[:4], *late[1:]]).startswith("Jorge reaches SGD's best loss with 1 of 3 seeds; optimizer")
    assert said([*runs[:3], *late]).startswith("Jorge does not reach SGD's best loss; optimizer 10 % of a step; ")


def test_a_state_beside_none_is_given_in_megabytes() -> None:
    bare = [run | {"state_bytes": 0} for run in SGD]
    assert said([*bare, *(run | {"state_bytes": 1_240_000} for run in JORGE)]).endswith("; 1.24 MB of state.")


def test_without_a_reference_it_says_who_is_first() -> None:
    runs = comparison("mnist", {"sgd": 0.02, "adamw": 0.03})
    assert said(runs) == "AdamW reaches the target first, in 136 steps and 1.6 seconds."
    soap = [record("soap", seed, falling(0.06, seed), ms=30) for seed in range(3)]
    assert said([*runs, *soap]) == (
        "SOAP reaches the target in the fewest steps, 71, and AdamW in the least time, 1.6 seconds."
    )
    assert said(SGD, mnist=-1.0) == "No optimizer reached the target with every seed."
    assert said(BROKEN).startswith("No target: there is no whole run of its first-order baseline here")
    assert said(JORGE).startswith("No target")


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([*SGD, *JORGE], "Medians over 2 seeds."),
        (
            [SGD[0], JORGE[0]],
            "With one seed in common there is no test: the ratio to Jorge (transferred) alone is given.",
        ),
    ],
)
def test_what_stands_below_the_table(records: list[dict[str, Any]], says: str) -> None:
    (part,) = parts(records, {})
    (line,) = below(part)
    assert line.startswith(says)


def test_many_seeds_are_not_called_few_and_no_reference_needs_no_explanation() -> None:
    (part,) = parts(comparison("mnist", {"sgd": 0.02, "jorge": 0.06}, seeds=5), {})
    assert "Few seeds" not in below(part)[0]
    (part,) = parts(comparison("mnist", {"sgd": 0.02, "jorge": 0.06}, seeds=4), {})
    assert below(part)[0].endswith("Few seeds make this interval wide.")
    (part,) = parts(SGD, {})
    assert below(part) == []
