"""Performance profiles, and the overview over tasks."""

from itertools import pairwise
from math import inf
from typing import Any

import pytest

from jorge_lab.report.overview import lead, sentences, standing, table
from jorge_lab.report.parts import parts
from jorge_lab.statistics.profiles import best_profile, profile, profiles
from jorge_lab.statistics.reaching import UNITS
from jorge_lab.statistics.summary import summarize
from lab.tests.factory import TWO_TASKS, record


def run(name: str, task: str, steps: int | None, seed: int = 0, **options: Any) -> dict[str, Any]:
    """A run of 20 steps that reaches a loss of 1 at a step, or never."""
    losses = [3.0] * 20 if steps is None else [3.0] * (steps - 1) + [1.0] * (21 - steps)
    return record(name, seed, losses, task=task, **options)


TASKS = [
    [run("jorge", "a", 2), run("sgd", "a", 6), run("soap", "a", 4)],
    [run("jorge", "b", 10), run("sgd", "b", 5)],
    [run("jorge", "c", 5), run("sgd", "c", None)],
    [run("jorge", "d", None), run("sgd", "d", None)],
]
ROWS = [summarize(task, 1.0) for task in TASKS]


def test_a_profile_worked_out_by_hand() -> None:
    found = profile(ROWS, "transferred", "steps")
    assert found is not None
    assert found.tasks == 4
    assert found.factors == {"Jorge": [1, 1, 2, inf], "SGD": [1, 3, inf, inf]}
    assert found.left_out == ["SOAP"]
    assert [found.fraction("Jorge", tau) for tau in (1, 1.9, 2, 100)] == [0.5, 0.5, 0.75, 0.75]
    assert [found.fraction("SGD", tau) for tau in (1, 2, 3, 100)] == [0.25, 0.25, 0.5, 0.5]


def test_a_profile_never_falls() -> None:
    for unit in UNITS:
        found = profile(ROWS, "transferred", unit)
        assert found is not None
        for label in found.factors:
            heights = [found.fraction(label, 1 + tau / 10) for tau in range(50)]
            assert all(before <= after for before, after in pairwise(heights))


def test_one_task_or_one_optimizer_makes_no_profile() -> None:
    assert profile(ROWS[:1], "transferred", "steps") is None
    assert profile([summarize([run("jorge", "a", 2)], 1.0)] * 2, "transferred", "steps") is None
    assert profile(ROWS, "tuned", "steps") is None
    no_target = [summarize([run("jorge", "a", 2), run("soap", "a", 2)])] * 2
    assert profile(no_target, "transferred", "steps") is None


def test_where_the_reference_stands() -> None:
    mnist, shakespeare = parts(TWO_TASKS, {})
    assert (standing(mnist, "steps"), standing(mnist, "seconds")) == ("level", "ahead")
    assert standing(shakespeare, "steps") == "behind"
    said = " ".join(sentences([mnist, shakespeare]))
    first = "Jorge (transferred) is first or not clearly slower in {} on 1 of 2 tasks, clearly faster than all on {}."
    assert first.format("steps", 0) in said
    assert first.format("seconds", 1) in said
    assert "Clearly faster in steps: SOAP (transferred) on shakespeare." in said
    lowest = "Its median is the lowest in {} of 2 tasks; the lowest elsewhere: {}SOAP (transferred) on shakespeare."
    assert lowest.format("steps on 0", "Jorge (tuned) on mnist; ") in said
    assert lowest.format("seconds on 1", "") in said
    left_out = "first or not clearly slower in steps on 1 of 2 tasks, clearly faster than all on 1; first or not"
    assert f"Its own other settings left out, it is {left_out} clearly slower in seconds on 1" in said
    assert standing(mnist, "steps", own=False) == "ahead"
    assert "other settings" not in " ".join(sentences([shakespeare]))


def test_a_median_of_runs_that_miss_the_target_is_not_the_lowest() -> None:
    runs = [run("jorge", "a", 5 if seed else None, seed) for seed in range(3)]
    found = parts([*runs, *(run("soap", "a", 19, seed) for seed in range(3))], {"a": 1.0})
    assert "the lowest in steps on 0 of 1 tasks; the lowest elsewhere: SOAP (transferred) on a." in " ".join(
        sentences(found)
    )


def test_a_reference_that_misses_the_target_with_a_seed_is_not_first() -> None:
    runs = [run("jorge", "a", 5 if seed else None, seed) for seed in range(3)]
    (part,) = parts([*runs, *(run("soap", "a", 19, seed) for seed in range(3))], {"a": 1.0})
    assert standing(part, "steps") == "behind"


def test_the_overview_leads_with_a_sentence_and_a_line_a_task() -> None:
    """Jorge, 16 ms a step, takes 87 steps where SGD (tuned), 12 ms, takes 200, and 71 where SGD, 10 ms, takes 200."""
    found = parts(TWO_TASKS, {})
    said = (
        "Jorge reaches the target in 0.40 of the baseline's steps and 0.57 of its seconds, in the median over 2 tasks"
    )
    assert lead(found) == said + "; no other optimizer is clearly faster on 1 of 2 in steps, on 1 of 2 in seconds."
    shown = table(found)
    assert len(shown.headings) == 6
    assert shown.headings[-1] == "clearly faster than Jorge"
    assert [[cell.text for cell in line.cells] for line in shown.lines] == [
        ["The task mnist (small)", "0.43", "0.58", "44%", "1", "none"],
        ["The task shakespeare (small)", "0.35", "0.57", "44%", "1", "in steps: SOAP; in seconds: SOAP"],
    ]


def test_an_overview_without_verdicts_or_without_a_reference() -> None:
    one_seed = parts([r for r in TWO_TASKS if r["seed"] == 0], {})
    assert lead(one_seed).endswith("in the median over 2 tasks.")
    assert table(one_seed).lines[0].cells[-1].text == "not tested"
    no_reference = parts([r for r in TWO_TASKS if r["optimizer"] != "jorge"], {})
    assert lead(no_reference) == ""
    never = parts(TWO_TASKS, {"mnist": 1e-9, "shakespeare": 1e-9})
    assert lead(never).startswith("Jorge reaches the target on 0 of 2 tasks")
    assert table(never).lines[0].cells[1].text == "not reached"


def test_profiles_of_one_setting_each_come_first() -> None:
    tables = [part.rows for part in parts(TWO_TASKS, {})]
    (best, _), (transferred, _) = profiles(tables, ["steps", "seconds"])
    assert (best.setting, transferred.setting) == ("one setting each", "transferred")
    assert best == best_profile(tables, "steps")
    # SGD takes 200 steps on both tasks, on one of them only tuned
    assert best.factors["SGD"] == pytest.approx([200 / 87, 200 / 71])
    assert transferred.factors["SGD"][-1] == inf
    assert best.factors["Jorge"][0] == 1, "as transferred, though tuned it takes a step less"
    only = [[row for row in rows if row.setting == "transferred"] for rows in tables]
    assert [[p.setting for p in line] for line in profiles(only, ["steps"])] == [["transferred"]]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([run("sgd", "a", 5), run("soap", "a", 5)], "no runs of Jorge"),
        ([run("sgd", "a", 5), run("jorge", "a", 5)], "two seeds in common"),
    ],
)
def test_there_is_no_overview_without_seeds_or_reference(records: list[dict[str, Any]], says: str) -> None:
    (said,) = sentences(parts(records, {}))
    assert says in said
