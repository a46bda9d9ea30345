"""What sentences about a comparison are made of: counts, verdicts and factors of the committed records."""

from __future__ import annotations

from collections.abc import Sequence

from jorge_lab.report.parts import Part
from jorge_lab.statistics.reaching import Unit
from jorge_lab.statistics.row import Row
from lab.tests.report import quoted
from lab.tests.report.quoted import jorge, others, row, suite, whole

WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
UNITS: tuple[Unit, ...] = ("steps", "seconds")


def lowest(parts: Sequence[Part], unit: Unit) -> str:
    """On how many tasks Jorge's median is the lowest as shown, ties included."""
    shown = {"steps": quoted.steps, "seconds": quoted.seconds}[unit]
    there = [p for p in parts if whole([jorge(p)])]
    return WORDS[sum(all(float(shown(jorge(p))) <= float(shown(r)) for r in whole(others(p))) for p in there)]


def verdicts(part: Part, unit: Unit, name: str = "") -> set[str | None]:
    """Of the others, or of one of them, against Jorge."""
    return {r.verdicts.get(unit) for r in others(part) if name in ("", r.optimizer)}


def tasks(parts: Sequence[Part], unit: Unit, *wanted: str, name: str = "") -> str:
    """On how many tasks there is such a verdict."""
    return WORDS[sum(bool(verdicts(p, unit, name) & set(wanted)) for p in parts)]


def first_or_level(unit: Unit) -> str:
    """On how many nobody is ahead of Jorge."""
    return WORDS[sum("ahead" not in verdicts(p, unit) for p in suite())]


def ahead_of_all(parts: Sequence[Part], unit: Unit) -> list[str]:
    """Where all others are behind Jorge."""
    return [quoted.called(p) for p in parts if verdicts(p, unit) == {"behind"}]


def ends_lower(name: str) -> str:
    """On how many tasks an opponent ends lower as tuned than Jorge does as transferred."""
    return WORDS[sum((row(p, name, "tuned").final_loss or 0) < (jorge(p).final_loss or 0) for p in suite())]


def on(task: str, parts: Sequence[Part] = ()) -> Part:
    """A task by its name, or by the end of it."""
    return next(p for p in parts or suite() if p.section.name.endswith(task))


def fewer(found: Row, reference: Row, unit: Unit) -> str:
    """By how many percent it takes less."""
    mine, other = (getattr(r, f"{unit}_to_target") for r in (found, reference))
    return f"{100 * (1 - mine / other):.0f} %"


def times(found: Row, reference: Row) -> str:
    """Its seconds over the other's."""
    return f"{(found.seconds_to_target or 0) / (reference.seconds_to_target or 1):.1f}"


def behind_of(unit: Unit) -> dict[str, set[str]]:
    """By task, the others that are ahead of Jorge."""
    found = {p.section.name: {r.label for r in others(p) if r.verdicts.get(unit) == "ahead"} for p in suite()}
    return {task: who for task, who in found.items() if who}


def ends() -> dict[str, float]:
    """By task, Jorge's final loss as transferred over the lowest of the others, as tuned or as transferred."""
    lowest_of = {p.section.name: min(r.final_loss or 0 for r in others(p) if not r.diverged) for p in suite()}
    return {p.section.name: (jorge(p).final_loss or 0) / lowest_of[p.section.name] for p in suite()}


def quick(found: Row, reference: Row) -> bool:
    """Whether it takes fewer steps."""
    return (found.steps_to_target or 0) < (reference.steps_to_target or 0)
