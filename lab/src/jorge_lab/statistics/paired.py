"""Who is ahead: optimizers are compared seed by seed, since runs of one seed share weights and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, sqrt
from statistics import fmean, stdev
from typing import Literal

from scipy.special import stdtrit

from jorge_lab.statistics.reaching import Reach, Unit

Verdict = Literal["ahead", "level", "behind"]

#: A difference of less than this factor is never more than level.
LEAST = 1.02
#: The rule of `verdict` and `against`, as reports state it.
RULE = (
    "Optimizers are compared seed by seed, by the logarithm of the ratio of their steps or seconds to the target. "
    "One is ahead or behind if the 95 % t interval of the mean logarithm over the seeds lies wholly on one side of "
    "0 and the mean ratio is at least 2 % from 1; all else is level, which says that these seeds cannot tell the "
    "two apart, not that they are the same. A run that does not reach the target counts with its whole length, and "
    "at the least with the other's time, so that it is never ahead of one that does; where with every seed one of "
    "the two reaches the target and the other does not, the one that does is ahead. It takes two seeds for a "
    "verdict, and with two or three the interval is wide. Each comparison stands by itself: of twenty between "
    "equals, one comes out ahead or behind."
)


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


def against(mine: Mapping[int, Reach], reference: Mapping[int, Reach], unit: Unit) -> Verdict | None:
    """The verdict on runs by seed against those of a reference, by :data:`RULE`; None where they share too few seeds.

    Seeds where the record lacks the unit are left out.
    """
    pairs = [(mine[seed], reference[seed]) for seed in sorted(mine.keys() & reference.keys())]
    pairs = [(a, b) for a, b in pairs if a.amount(unit) is not None and b.amount(unit) is not None]
    if len(pairs) < 2:
        return None
    if all(a.reached and not b.reached for a, b in pairs):
        return "ahead"
    if all(b.reached and not a.reached for a, b in pairs):
        return "behind"
    return verdict([_difference(a, b, unit) for a, b in pairs], log(LEAST))


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
