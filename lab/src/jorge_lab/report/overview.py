"""The overview over all tasks: where the reference is first, and who is ahead of it."""

from __future__ import annotations

from collections.abc import Sequence

from jorge_lab.report.columns import UNIT_NAMES
from jorge_lab.report.parts import Part, first
from jorge_lab.statistics.paired import Verdict
from jorge_lab.statistics.reaching import UNITS, Unit
from jorge_lab.statistics.row import Row
from jorge_lab.statistics.summary import REFERENCE


def standing(part: Part, unit: Unit, *, own: bool = True) -> Verdict | None:
    """Where the reference stands in a section: "ahead" of all others, "level" with the first, or "behind" one.

    A reference that does not reach the target with every seed is behind. None where there is nothing to compare with,
    or too few seeds. `own` says whether its optimizer with other settings counts among the others.
    """
    mine = reference(part)
    verdicts = [row.verdicts.get(unit) for row in part.rows if own or not _is_own(row)]
    if mine is None or not any(verdicts):
        return None
    if "ahead" in verdicts or mine.reached < mine.tested:
        return "behind"
    return "level" if "level" in verdicts else "ahead"


def reference(part: Part) -> Row | None:
    """The row that the others are compared with."""
    return next((row for row in part.rows if row.key == REFERENCE), None)


def _is_own(row: Row) -> bool:
    return row.key[0] == REFERENCE[0]


def units(parts: Sequence[Part]) -> list[Unit]:
    """The units that the records hold."""
    reaches = [r for part in parts for row in part.rows for r in row.reaches.values()]
    return [unit for unit in UNITS if any(r.amount(unit) is not None for r in reaches)]


def sentences(parts: Sequence[Part]) -> list[str]:
    """On how many tasks the reference is first or level, then who is ahead of it, then whose median is lowest."""
    name = next((row.name for part in parts if (row := reference(part)) is not None), None)
    if name is None:
        return ["No overview: there are no runs of Jorge with transferred settings."]
    said = [f"{name} is first or level {count}." for unit in units(parts) if (count := _count(parts, unit, own=True))]
    if not said:
        return [f"No overview: it takes {name} and another optimizer with two seeds in common."]
    if any(_is_own(row) and row.key != REFERENCE for part in parts for row in part.rows):
        counts = [count for unit in units(parts) if (count := _count(parts, unit, own=False))]
        said += [f"Its own other settings left out, it is so {'; '.join(counts)}."] if counts else []
    return [*said, *(say(parts, unit) for say in (_ahead, _lowest) for unit in units(parts))]


def _count(parts: Sequence[Part], unit: Unit, *, own: bool) -> str:
    """On how many tasks the reference is first or level, empty where nothing is compared."""
    places = [place for part in parts if (place := standing(part, unit, own=own)) is not None]
    ahead, level = places.count("ahead"), places.count("level")
    where = f"in {UNIT_NAMES[unit]} on {ahead + level} of {len(places)} tasks, first by itself on {ahead}"
    return where if places else ""


def _ahead(parts: Sequence[Part], unit: Unit) -> str:
    found = []
    for part in parts:
        names = [row.name for row in part.rows if row.verdicts.get(unit) == "ahead"]
        if names:
            found.append(f"{', '.join(names)} on {part.section.name}")
    return f"Ahead of it in {UNIT_NAMES[unit]}: {'; '.join(found) or 'none'}."


def _lowest(parts: Sequence[Part], unit: Unit) -> str:
    judged = [part for part in parts if standing(part, unit) is not None]
    own, others = 0, []
    for part in judged:
        rows = first(part, unit)
        if any(row.key == REFERENCE for row in rows):
            own += 1
        elif rows:
            others.append(f"{', '.join(row.name for row in rows)} on {part.section.name}")
    elsewhere = f"; the lowest elsewhere: {'; '.join(others)}" if others else ""
    return f"Its median is the lowest in {UNIT_NAMES[unit]} on {own} of {len(judged)} tasks{elsewhere}."
