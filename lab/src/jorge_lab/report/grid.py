"""Tables of optimizers against settings on one task, and of optimizers against tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from jorge_lab.report.columns import MAIN_UNITS, Column, amount, main, names, number, to_target
from jorge_lab.report.parts import Part
from jorge_lab.report.verdicts import in_words
from jorge_lab.runs.records import SETTINGS
from jorge_lab.statistics.reaching import Unit
from jorge_lab.statistics.row import Row


@dataclass(frozen=True)
class Cell:
    """What a table shows, what it is sorted by (None: nothing there), and whether none is clearly better."""

    text: str
    sort: float | str | None = None
    best: bool = False

    @property
    def key(self) -> str:
        """The sort value as the page's script reads it."""
        if self.sort is None:
            return ""
        return "Infinity" if self.sort == inf else str(self.sort)


@dataclass(frozen=True)
class Line:
    """A line of a table: the optimizer's name, for its colour, and the cells."""

    optimizer: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A table: headings, over them groups of (heading, columns) where there are such, and which columns are text."""

    headings: Sequence[str]
    lines: Sequence[Line]
    groups: Sequence[tuple[str, int]] = ()
    text: Sequence[int] = (0,)


def plain(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """A line a row, with these columns."""
    lines = [Line(r.optimizer, [Cell(c.show(r), c.sort(r), c.field in r.best) for c in columns]) for r in rows]
    text = [i for i, column in enumerate(columns) if column.text]
    return Table([column.heading for column in columns], lines, text=text)


def first_table(rows: Sequence[Row]) -> Table:
    """The table that a task leads with: six columns, the fewest steps to the target first."""

    def steps(row: Row) -> tuple[float, int, float]:
        never = inf if row.steps_to_target is None else row.steps_to_target
        return never, -row.reached, inf if row.seconds_to_target is None else row.seconds_to_target

    return plain(sorted(rows, key=steps), main(rows))


def by_setting(rows: Sequence[Row]) -> Table:
    """Steps and seconds to the target, a line an optimizer and a column a setting; a dash where it was not run."""
    others = sorted({row.setting for row in rows} - set(SETTINGS))
    settings = [*SETTINGS, *others]
    lines = []
    for name in dict.fromkeys(row.optimizer for row in rows):
        mine = {row.setting: row for row in rows if row.optimizer == name}
        label = next(iter(mine.values())).label
        cells = [_to_target(mine.get(setting), unit) for unit in MAIN_UNITS for setting in settings]
        lines.append(Line(name, [Cell(label, label), *cells]))
    groups = [("", 1), *((f"{unit} to target", len(settings)) for unit in MAIN_UNITS)]
    return Table(["optimizer", *settings * len(MAIN_UNITS)], lines, groups)


def _to_target(row: Row | None, unit: Unit) -> Cell:
    if row is None:
        return Cell("–")
    column = to_target(unit)
    return Cell(amount(row, unit), column.sort(row), column.field in row.best)


def over_baseline(row: Row, unit: Unit) -> float | None:
    """Steps or seconds to the target over the baseline's; below 1 is better, infinite where it is not reached."""
    inverse = {"steps": None, "seconds": row.speedup, "cpu_seconds": row.cpu_speedup}[unit]
    ratio = row.step_ratio if unit == "steps" else 1 / inverse if inverse else None
    if ratio is None and row.tested and row.reached * 2 <= row.tested:
        return inf
    return ratio


def beside_baseline(row: Row, unit: Unit) -> str:
    """The ratio to the baseline, or that the target is not reached, and the verdict against the reference if any."""
    ratio, found = over_baseline(row, unit), row.compared.get(unit)
    some = f" ({row.reached} of {row.tested} seeds)" if 0 < row.reached < row.tested else ""
    text = ("not reached" if ratio == inf else number(ratio, ".2f")) + some
    return text + (f", {in_words(found)}" if found and found.verdict else "")


def by_task(parts: Sequence[Part], unit: Unit) -> Table:
    """Ratios to each task's baseline, a line an optimizer and setting, a column a task, with verdicts."""
    lines = []
    for key in dict.fromkeys(row.key for part in parts for row in part.rows):
        found = [next((row for row in part.rows if row.key == key), None) for part in parts]
        row = next(r for r in found if r is not None)
        who = [Cell(column.show(row), column.sort(row)) for column in names()]
        lines.append(Line(row.optimizer, [*who, *(_ratio(r, unit) for r in found)]))
    return Table(["optimizer", "setting", *(part.section.name for part in parts)], lines, text=(0, 1))


def _ratio(row: Row | None, unit: Unit) -> Cell:
    ratio = None if row is None else over_baseline(row, unit)
    if row is None or ratio is None:
        return Cell("–")
    return Cell(beside_baseline(row, unit), ratio, f"{unit}_to_target" in row.best)
