"""A comparison with the reference in words that a newcomer knows, with its interval in numbers."""

from __future__ import annotations

from jorge_lab.statistics.paired import WORDS, Comparison


def in_words(found: Comparison | None) -> str:
    """The verdict with the 95 % interval of the ratio; a dash where nothing is compared.

    >>> in_words(Comparison("behind", 1.21, 1.153, 1.27, seeds=3, missed=0, reference_missed=0))
    'slower (1.15–1.27)'
    >>> in_words(Comparison("level", 1.5, 0.91, 12.3, seeds=3, missed=1, reference_missed=0))
    'no clear difference (0.91–12.3 or more)'
    >>> in_words(Comparison("behind", 2.0, None, None, seeds=3, missed=3, reference_missed=0))
    'slower (never gets there)'
    >>> in_words(Comparison(None, 1.21, None, None, seeds=1, missed=0, reference_missed=0))
    '1.21 (one seed)'
    """
    if found is None:
        return "–"
    if found.verdict is None:
        return f"{_who(found) or ratio(found.ratio)} (one seed)"
    return f"{WORDS[found.verdict]} ({_interval(found)})"


def _interval(found: Comparison) -> str:
    if found.low is None or found.high is None:
        return _who(found)
    ends = f"{ratio(found.low)}–{ratio(found.high)}"
    if found.missed and found.reference_missed:
        return f"about {ends}"
    return ends + (" or more" if found.missed else " or less" if found.reference_missed else "")


def _who(found: Comparison) -> str:
    """Who reaches the target, where with no seed both do; empty where both do with one."""
    mine, other = found.seeds - found.missed, found.seeds - found.reference_missed
    if mine + other > found.seeds:
        return ""
    if not mine and not other:
        return "neither gets there"
    if {mine, other} == {0, found.seeds}:
        return "alone gets there" if mine else "never gets there"
    return f"gets there with {mine} of {found.seeds} seeds, the other with {other}"


def ratio(value: float) -> str:
    """A ratio above 0 in three digits or so; beyond a factor of a thousand, which two seeds give, that factor.

    >>> [ratio(value) for value in (0.00001, 0.034, 0.957, 9.87, 12.34, 432.1, 7e10)]
    ['0.001', '0.03', '0.96', '9.87', '12.3', '432', '1,000']
    """
    if value < 0.095:
        return f"{max(value, 0.001):.1g}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{min(value, 1000):,.0f}"
