"""Tables of optimizers against settings on one task, and of optimizers against tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from jorge_lab.report.columns import Column, amount, names, to_target
from jorge_lab.report.parts import Part
from jorge_lab.runs.records import SETTINGS
from jorge_lab.statistics.paired import Verdict
from jorge_lab.statistics.reaching import Unit
from jorge_lab.statistics.row import Row


@dataclass(frozen=True)
class Cell:
    """What a table shows, what it is sorted by (None: nothing there), and whether it is level with the best."""

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
    """A table: headings, and over them groups of (heading, columns) where there are such."""

    headings: Sequence[str]
    lines: Sequence[Line]
    groups: Sequence[tuple[str, int]] = ()


def plain(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """A line a row, with these columns."""
    lines = [Line(r.optimizer, [Cell(c.show(r), c.sort(r), c.field in r.best) for c in columns]) for r in rows]
    return Table([column.heading for column in columns], lines)


def by_setting(rows: Sequence[Row]) -> Table:
    """Steps and seconds to the target, a line an optimizer and a column a setting; a dash where it was not run."""
    units: tuple[Unit, ...] = ("steps", "seconds")
    others = sorted({row.setting for row in rows} - set(SETTINGS))
    settings = [*SETTINGS, *others]
    lines = []
    for name in dict.fromkeys(row.optimizer for row in rows):
        mine = {row.setting: row for row in rows if row.optimizer == name}
        label = next(iter(mine.values())).label
        cells = [_to_target(mine.get(setting), unit) for unit in units for setting in settings]
        lines.append(Line(name, [Cell(label, label), *cells]))
    groups = [("", 1), *((f"{unit} to target", len(settings)) for unit in units)]
    return Table(["optimizer", *settings * len(units)], lines, groups)


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


def by_task(parts: Sequence[Part], unit: Unit) -> Table:
    """Ratios to each task's baseline, a line an optimizer and setting, a column a task, with verdicts."""
    lines = []
    for key in dict.fromkeys(row.key for part in parts for row in part.rows):
        found = [next((row for row in part.rows if row.key == key), None) for part in parts]
        row = next(r for r in found if r is not None)
        who = [Cell(column.show(row), column.sort(row)) for column in names()]
        lines.append(Line(row.optimizer, [*who, *(_ratio(r, unit) for r in found)]))
    return Table(["optimizer", "setting", *(part.section.name for part in parts)], lines)


def _ratio(row: Row | None, unit: Unit) -> Cell:
    ratio = None if row is None else over_baseline(row, unit)
    if row is None or ratio is None:
        return Cell("–")
    verdict: Verdict | None = row.verdicts.get(unit)
    text = "not reached" if ratio == inf else f"{ratio:.2f}"
    return Cell(text + (f", {verdict}" if verdict else ""), ratio, f"{unit}_to_target" in row.best)
