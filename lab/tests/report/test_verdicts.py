"""A comparison in words, with its interval in numbers."""

import pytest

from jorge_lab.report.verdicts import in_words
from jorge_lab.statistics.paired import RULE, WORDS, Comparison, Verdict


def said(verdict: Verdict | None, low: float | None = None, high: float | None = None, **missed: int) -> str:
    """Of three seeds, or of one where there is no verdict."""
    seeds = 3 if verdict else 1
    counts = {"missed": 0, "reference_missed": 0} | missed
    return in_words(Comparison(verdict, 1.5, low, high, seeds=seeds, **counts))


def test_every_verdict_has_a_word_and_numbers() -> None:
    assert said("ahead", 0.781, 0.884) == "faster (0.78–0.88)"
    assert said("behind", 1.153, 12.31) == "slower (1.15–12.3)"
    assert said("level", 0.0009, 1120.4) == "no clear difference (0.001–1,000)"
    assert said(None) == "1.50 (one seed)"
    assert in_words(None) == "–"
    assert all(word in RULE for word in WORDS.values())


@pytest.mark.parametrize(
    ("missed", "reference_missed", "says"),
    [
        (1, 0, "slower (1.15–1.27 or more)"),
        (0, 2, "slower (1.15–1.27 or less)"),
        (1, 1, "slower (about 1.15–1.27)"),
    ],
)
def test_an_interval_of_runs_that_miss_the_target_is_a_bound(missed: int, reference_missed: int, says: str) -> None:
    assert said("behind", 1.15, 1.27, missed=missed, reference_missed=reference_missed) == says


@pytest.mark.parametrize(
    ("verdict", "missed", "reference_missed", "says"),
    [
        ("behind", 3, 0, "slower (never gets there)"),
        ("ahead", 0, 3, "faster (alone gets there)"),
        ("level", 3, 3, "no clear difference (neither gets there)"),
        ("level", 2, 3, "no clear difference (gets there with 1 of 3 seeds, the other with 0)"),
        (None, 1, 0, "never gets there (one seed)"),
        (None, 0, 1, "alone gets there (one seed)"),
        (None, 1, 1, "neither gets there (one seed)"),
    ],
)
def test_where_never_both_reach_the_target_words_stand_for_the_interval(
    verdict: Verdict | None, missed: int, reference_missed: int, says: str
) -> None:
    assert said(verdict, missed=missed, reference_missed=reference_missed) == says
