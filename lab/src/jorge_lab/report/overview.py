"""The overview over all tasks: what the reference takes on each, where it is first, and who is faster."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from statistics import median

from jorge_lab.report.columns import MAIN_UNITS, UNIT_NAMES, number
from jorge_lab.report.grid import Cell, Line, Table, over_baseline
from jorge_lab.report.lead import multiple, state_ratio
from jorge_lab.report.parts import Part, baseline, first, reference
from jorge_lab.statistics.paired import Verdict
from jorge_lab.statistics.reaching import UNITS, Unit
from jorge_lab.statistics.row import Row
from jorge_lab.statistics.summary import REFERENCE

#: What a reader needs below the table of all tasks.
BELOW = (
    "Over each task's first-order baseline, medians over seeds; below 1 is better. Clearly faster: by the paired test, "
    "which with few seeds seldom tells two apart."
)
#: What the pictures above it show.
PROFILES = (
    "Pictures: the share of tasks on which an optimizer takes at most so many times the best one's steps or seconds "
    "(performance profiles, Dahl et al. 2023). With several settings, one each: Jorge as transferred, and of each "
    "other optimizer the one that reaches the task's target first."
)


def lead(parts: Sequence[Part]) -> str:
    """The sentence that a report on several tasks leads with; empty where the reference has no ratio to a baseline."""
    own = [(part, row) for part in parts if (row := reference(part)) is not None]
    ratios = {unit: [r for _, row in own if (r := over_baseline(row, unit)) is not None] for unit in MAIN_UNITS}
    if not all(ratios.values()):
        return ""
    name, tasks = own[0][1].label, len(ratios["steps"])
    middles = [median(ratios[unit]) for unit in MAIN_UNITS]
    if not all(map(isfinite, middles)):
        said = f"{name} reaches the target on {sum(map(isfinite, ratios['steps']))} of {tasks} tasks"
    else:
        said = f"{name} reaches the target in {middles[0]:.2f} of the baseline's steps and {middles[1]:.2f} of its "
        said += f"seconds, in the median over {tasks} tasks"
    judged = {unit: [part for part, _ in own if _is_tested(part, unit)] for unit in MAIN_UNITS}
    counts = [
        f"on {sum(not _faster(part, unit, own=False) for part in found)} of {len(found)} in {UNIT_NAMES[unit]}"
        for unit, found in judged.items()
        if found
    ]
    return said + (f"; no other optimizer is clearly faster {', '.join(counts)}." if counts else ".")


def table(parts: Sequence[Part]) -> Table:
    """A line a task, six columns: what the reference takes there, and who is clearly faster."""
    name = next((row.label for part in parts if (row := reference(part)) is not None), "")
    headings = ["task", "steps ÷ baseline's", "seconds ÷ baseline's", "optimizer's share", "state ÷ baseline's"]
    return Table([*headings, f"clearly faster than {name}"], [_line(part) for part in parts], text=(0, 5))


def _line(part: Part) -> Line:
    row, base = reference(part), baseline(part)
    title = Cell(part.section.title, part.section.title)
    if row is None:
        return Line("", [title, *[Cell("–")] * 5])
    ratios = [(over_baseline(row, unit), f"{unit}_to_target" in row.best) for unit in MAIN_UNITS]
    times = state_ratio(row, base)
    names = {unit: [part.called(r) for r in _faster(part, unit)] for unit in MAIN_UNITS}
    found = [f"in {UNIT_NAMES[unit]}: {', '.join(who)}" for unit, who in names.items() if who]
    tested = any(_is_tested(part, unit) for unit in MAIN_UNITS)
    cells = [
        *(Cell("not reached" if r == inf else number(r, ".2f"), r, best) for r, best in ratios),
        Cell(number(row.optimizer_share, ".0%"), row.optimizer_share),
        Cell("–" if times is None else multiple(times), times),
        Cell("; ".join(found) or ("none" if tested else "not tested"), float(sum(map(len, names.values())))),
    ]
    return Line("", [title, *cells])


def _is_tested(part: Part, unit: Unit) -> bool:
    return any(row.verdicts.get(unit) for row in part.rows)


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


def _is_own(row: Row) -> bool:
    return row.key[0] == REFERENCE[0]


def units(parts: Sequence[Part]) -> list[Unit]:
    """The units that the records hold."""
    reaches = [r for part in parts for row in part.rows for r in row.reaches.values()]
    return [unit for unit in UNITS if any(r.amount(unit) is not None for r in reaches)]


def sentences(parts: Sequence[Part]) -> list[str]:
    """On how many tasks the reference is first or not clearly slower, who is faster, and whose median is lowest."""
    name = next((row.name for part in parts if (row := reference(part)) is not None), None)
    if name is None:
        return ["No overview: there are no runs of Jorge with transferred settings."]
    said = [f"{name} is {count}." for unit in units(parts) if (count := _count(parts, unit, own=True))]
    if not said:
        return [f"No overview: it takes {name} and another optimizer with two seeds in common."]
    if any(_is_own(row) and row.key != REFERENCE for part in parts for row in part.rows):
        counts = [count for unit in units(parts) if (count := _count(parts, unit, own=False))]
        said += [f"Its own other settings left out, it is {'; '.join(counts)}."] if counts else []
    return [*said, *(say(parts, unit) for say in (_clearly_faster, _lowest) for unit in units(parts))]


def _count(parts: Sequence[Part], unit: Unit, *, own: bool) -> str:
    """On how many tasks the reference is first or not clearly slower than it; empty where nothing is compared."""
    places = [place for part in parts if (place := standing(part, unit, own=own)) is not None]
    ahead, level = places.count("ahead"), places.count("level")
    where = f"first or not clearly slower in {UNIT_NAMES[unit]} on {ahead + level} of {len(places)} tasks"
    return f"{where}, clearly faster than all on {ahead}" if places else ""


def _faster(part: Part, unit: Unit, *, own: bool = True) -> list[Row]:
    """The rows that the test finds faster than the reference."""
    return [row for row in part.rows if row.verdicts.get(unit) == "ahead" and (own or not _is_own(row))]


def _clearly_faster(parts: Sequence[Part], unit: Unit) -> str:
    found = [
        f"{', '.join(row.name for row in rows)} on {part.section.name}"
        for part in parts
        if (rows := _faster(part, unit))
    ]
    return f"Clearly faster in {UNIT_NAMES[unit]}: {'; '.join(found) or 'none'}."


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
