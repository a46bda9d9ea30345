"""Who is ahead: optimizers are compared seed by seed, since runs of one seed share weights and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import Literal

from scipy.special import stdtrit

from jorge_lab.statistics.reaching import Reach, Unit

Verdict = Literal["ahead", "level", "behind"]

#: A difference of less than this factor is never more than level.
LEAST = 1.02
#: What reports call a verdict on steps or seconds.
WORDS: Mapping[Verdict, str] = {"ahead": "faster", "level": "no clear difference", "behind": "slower"}
#: The rule of `verdict` and `compare`, as reports state it.
RULE = (
    "Optimizers are compared seed by seed, by the ratio of their steps or seconds to the target. In parentheses is the "
    "95 % t interval of the ratio (of its mean logarithm over the seeds): 1 is equal, 0.5 half the time. One is faster "
    "or slower if the interval lies wholly on one side of 1 and the mean ratio is at least 2 % from it. All else is no "
    "clear difference: these seeds cannot tell the two apart, which does not say that they are the same; the interval "
    "says how far apart they may be. A run that does not reach the target counts with its whole length, and at the "
    "least with the other's time, so that it is never faster than one that does; the interval then says “or "
    "more”, “or less” or, where both miss it with some seed, “about”. Where with every seed one of "
    "the two reaches the target and the other does not, the one that does is faster. It takes two seeds for a verdict, "
    "and with two or three the interval is wide. Each comparison stands by itself: of twenty between equals, one comes "
    "out faster or slower."
)


@dataclass(frozen=True)
class Comparison:
    """Steps or seconds of one optimizer's runs over those of a reference, seed by seed.

    Args:
        verdict: by :data:`RULE`; None with one seed.
        ratio: geometric mean over the seeds; below 1 is faster.
        low, high: the ends of its 95 % t interval; None with one seed, or where no seed has both reach the target.
        seeds: how many seeds are compared.
        missed: with how many of them this optimizer does not reach the target.
        reference_missed: with how many of them the reference does not.
    """

    verdict: Verdict | None
    ratio: float
    low: float | None
    high: float | None
    seeds: int
    missed: int
    reference_missed: int


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean of two or more values.

    >>> [round(end, 3) for end in interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def verdict(differences: Sequence[float], least: float = 0.0) -> Verdict | None:
    """Whether differences to a reference, one a seed and lower is better, show a lead; None with fewer than two.

    "ahead" and "behind" ask for a 95 % t interval of the mean on one side of 0, and a mean of at least `least` from 0.
    """
    if len(differences) < 2:
        return None
    low, high = interval(differences)
    if high < 0 and fmean(differences) <= -least:
        return "ahead"
    if low > 0 and fmean(differences) >= least:
        return "behind"
    return "level"


def compare(mine: Mapping[int, Reach], reference: Mapping[int, Reach], unit: Unit) -> Comparison | None:
    """Runs by seed beside those of a reference; None where they share no seed whose records have the unit."""
    pairs = [(mine[seed], reference[seed]) for seed in sorted(mine.keys() & reference.keys())]
    pairs = [(a, b) for a, b in pairs if a.amount(unit) is not None and b.amount(unit) is not None]
    if not pairs:
        return None
    differences = [_difference(a, b, unit) for a, b in pairs]
    said = verdict(differences, log(LEAST))
    if said is not None and all(a.reached and not b.reached for a, b in pairs):
        said = "ahead"
    elif said is not None and all(b.reached and not a.reached for a, b in pairs):
        said = "behind"
    ends = interval(differences) if said is not None and any(a.reached and b.reached for a, b in pairs) else None
    return Comparison(
        verdict=said,
        ratio=exp(fmean(differences)),
        low=exp(ends[0]) if ends else None,
        high=exp(ends[1]) if ends else None,
        seeds=len(pairs),
        missed=sum(not a.reached for a, _ in pairs),
        reference_missed=sum(not b.reached for _, b in pairs),
    )


def against(mine: Mapping[int, Reach], reference: Mapping[int, Reach], unit: Unit) -> Verdict | None:
    """The verdict of :func:`compare`; None where they share fewer than two seeds whose records have the unit."""
    found = compare(mine, reference, unit)
    return found.verdict if found else None


def _difference(mine: Reach, other: Reach, unit: Unit) -> float:
    if not mine.reached and not other.reached:
        return 0.0
    # a clock may stand still for a step that takes no time at all
    ratio = log(max(mine.amount(unit) or 0.0, 1e-9) / max(other.amount(unit) or 0.0, 1e-9))
    if not mine.reached:
        return max(0.0, ratio)
    return ratio if other.reached else min(0.0, ratio)


def ratios(mine: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Log ratios of positive values of the seeds that both have, for :func:`verdict`."""
    return [log(mine[s] / other[s]) for s in sorted(mine.keys() & other.keys()) if mine[s] > 0 and other[s] > 0]
