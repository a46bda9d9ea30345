"""The columns of the tables that people read: headings, how a value is shown, and by what it is sorted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from jorge_lab.report.verdicts import in_words
from jorge_lab.statistics.reaching import UNITS, Unit
from jorge_lab.statistics.row import Row

#: What a unit is called in a heading.
UNIT_NAMES = {"steps": "steps", "seconds": "seconds", "cpu_seconds": "CPU seconds"}
#: The units that stand in the table of six columns, and in sentences.
MAIN_UNITS: tuple[Unit, ...] = ("steps", "seconds")
_SPECS = {"steps": ".0f", "seconds": ".1f", "cpu_seconds": ".1f"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: its heading.
        show: the cell of a row, as text.
        sort: what the cell is sorted by: text, or a number, infinite where the target is not reached; None for nothing.
        field: the field of `Row` whose best values are shaded.
        text: whether it is text, which stands at the left.
    """

    heading: str
    show: Callable[[Row], str]
    sort: Callable[[Row], float | str | None]
    field: str = ""
    text: bool = False


def columns(row: Row) -> list[Column]:
    """All columns of the table that a row is part of."""
    return [*results(row), *costs()]


def cells(row: Row) -> dict[str, str]:
    """The row as it is shown, by column heading."""
    return {column.heading: column.show(row) for column in columns(row)}


def main(rows: Sequence[Row]) -> list[Column]:
    """The six columns that a newcomer needs: who, how far, how it compares, and the loss in the end.

    Where there is no reference to compare with, what a step and the state cost stands instead.
    """
    several = len({row.setting for row in rows}) > 1

    def called(row: Row) -> str:
        return row.name if several else row.label

    reference = next((row.label for row in rows if row.name == row.reference), "")
    middle = [verdict(unit, reference) for unit in MAIN_UNITS] if reference else [_share(), _state()]
    return [
        Column("optimizer", called, called, text=True),
        *(replace(to_target(unit), show=partial(_median_amount, unit=unit)) for unit in MAIN_UNITS),
        *middle,
        Column("final loss", _mean_loss, lambda r: r.final_loss, "final_loss"),
    ]


def verdict(unit: Unit, reference: str) -> Column:
    """How the row compares with the reference, sorted by the ratio; infinite where it alone misses the target."""

    def sort(row: Row) -> float | None:
        found = row.compared.get(unit)
        if found is None:
            return 1.0 if row.name == row.reference else None
        return inf if found.missed == found.seeds > found.reference_missed else found.ratio

    heading = f"{UNIT_NAMES[unit]}, against {reference}"
    return Column(heading, lambda r: in_words(r.compared.get(unit)), sort, text=True)


def names() -> list[Column]:
    """Who it is."""
    return [
        Column("optimizer", lambda r: r.label, lambda r: r.label, text=True),
        Column("setting", lambda r: r.setting, lambda r: r.setting, text=True),
    ]


def results(row: Row) -> list[Column]:
    """What came of it: losses, amounts to the target, and how they compare; `row` names metric, baseline, reference."""
    found = [
        *names(),
        Column("final loss", _final_loss, lambda r: r.final_loss, "final_loss"),
        Column(row.metric_name, lambda r: plus_minus(r.metric, r.metric_sd), lambda r: r.metric, "metric"),
        *(to_target(unit) for unit in UNITS),
    ]
    if row.baseline:
        found.append(
            Column(f"speed-up over {row.baseline}", lambda r: number(r.speedup, ".2f", "×"), lambda r: r.speedup)
        )
    return [*found, *(verdict(unit, row.reference) for unit in UNITS if row.reference)]


def costs() -> list[Column]:
    """What a step costs."""
    return [
        Column("model, ms a step", lambda r: number(r.model_ms, ".1f"), lambda r: r.model_ms),
        Column("optimizer, ms a step", lambda r: number(r.optimizer_ms, ".2f"), lambda r: r.optimizer_ms),
        _share(),
        Column("first step, ms", lambda r: number(r.first_step_ms, ".0f"), lambda r: r.first_step_ms),
        Column("seconds in all", lambda r: number(r.seconds, ".1f"), lambda r: r.seconds),
        Column("CPU seconds in all", lambda r: number(r.cpu_seconds, ".1f"), lambda r: r.cpu_seconds),
        _state(),
    ]


def _share() -> Column:
    return Column("optimizer's share", lambda r: number(r.optimizer_share, ".0%"), lambda r: r.optimizer_share)


def _state() -> Column:
    return Column("state", lambda r: f"{r.state_bytes / 1e6:.2f} MB", lambda r: r.state_bytes)


def to_target(unit: Unit) -> Column:
    """Steps or seconds to the target: median, and range over the seeds where they differ."""

    def sort(row: Row) -> float | None:
        value: float | None = getattr(row, f"{unit}_to_target")
        return inf if value is None and row.tested and _measured(row, unit) else value

    return Column(f"{UNIT_NAMES[unit]} to target", lambda r: amount(r, unit), sort, f"{unit}_to_target")


def _measured(row: Row, unit: Unit) -> bool:
    return unit != "cpu_seconds" or any(r.cpu_seconds is not None for r in row.reaches.values())


def amount(row: Row, unit: Unit) -> str:
    """Median to the target with its range; "not reached", and with how many seeds it is, where that is not all."""
    shown = _median_amount(row, unit)
    spec = _SPECS[unit]
    low, high = (getattr(row, f"{unit}_{end}") for end in ("low", "high"))
    if low is None or row.reached < row.tested or f"{low:{spec}}" == f"{high:{spec}}":
        return shown
    return f"{shown} ({low:{spec}}–{high:{spec}})"


def _median_amount(row: Row, unit: Unit) -> str:
    if not row.tested:
        return "no target"
    if not _measured(row, unit):
        return "–"
    value = getattr(row, f"{unit}_to_target")
    some = f" ({row.reached} of {row.tested})" if 0 < row.reached < row.tested else ""
    return ("not reached" if value is None else f"{value:{_SPECS[unit]}}") + some


def _final_loss(row: Row) -> str:
    return f"diverged: {row.diverged}" if row.diverged else plus_minus(row.final_loss, row.final_loss_sd)


def _mean_loss(row: Row) -> str:
    return "diverged" if row.diverged else plus_minus(row.final_loss, None)


def number(value: float | None, spec: str, unit: str = "") -> str:
    """The number, or a dash for none."""
    return "–" if value is None else f"{value:{spec}}{unit}"


def plus_minus(mean: float | None, spread: float | None) -> str:
    """Mean and standard deviation with four decimals."""
    if mean is None:
        return "–"
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"
