"""The columns of the tables that people read: headings, how a value is shown, and by what it is sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from jorge_lab.statistics.reaching import UNITS
from jorge_lab.statistics.row import Row

#: What a unit is called in a heading.
UNIT_NAMES = {"steps": "steps", "seconds": "seconds", "cpu_seconds": "CPU seconds"}
_SPECS = {"steps": ".0f", "seconds": ".1f", "cpu_seconds": ".1f"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: its heading.
        show: the cell of a row, as text.
        sort: what the cell is sorted by: text, or a number, infinite where the target is not reached; None for nothing.
        field: the field of `Row` whose best values are shaded.
    """

    heading: str
    show: Callable[[Row], str]
    sort: Callable[[Row], float | str | None]
    field: str = ""


def columns(row: Row) -> list[Column]:
    """All columns of the table that a row is part of."""
    return [*results(row), *costs()]


def cells(row: Row) -> dict[str, str]:
    """The row as it is shown, by column heading."""
    return {column.heading: column.show(row) for column in columns(row)}


def names() -> list[Column]:
    """Who it is."""
    return [
        Column("optimizer", lambda r: r.label, lambda r: r.label),
        Column("setting", lambda r: r.setting, lambda r: r.setting),
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
    if row.reference:
        found.append(Column(f"against {row.reference}: steps, seconds, CPU", _verdicts, _verdicts))
    return found


def costs() -> list[Column]:
    """What a step costs."""
    return [
        Column("model, ms a step", lambda r: number(r.model_ms, ".1f"), lambda r: r.model_ms),
        Column("optimizer, ms a step", lambda r: number(r.optimizer_ms, ".2f"), lambda r: r.optimizer_ms),
        Column("optimizer's share", lambda r: number(r.optimizer_share, ".0%"), lambda r: r.optimizer_share),
        Column("first step, ms", lambda r: number(r.first_step_ms, ".0f"), lambda r: r.first_step_ms),
        Column("seconds in all", lambda r: number(r.seconds, ".1f"), lambda r: r.seconds),
        Column("CPU seconds in all", lambda r: number(r.cpu_seconds, ".1f"), lambda r: r.cpu_seconds),
        Column("state", lambda r: f"{r.state_bytes / 1e6:.2f} MB", lambda r: r.state_bytes),
    ]


def to_target(unit: str) -> Column:
    """Steps or seconds to the target: median, and range over the seeds where they differ."""

    def sort(row: Row) -> float | None:
        value: float | None = getattr(row, f"{unit}_to_target")
        return inf if value is None and row.tested and _measured(row, unit) else value

    return Column(f"{UNIT_NAMES[unit]} to target", lambda r: amount(r, unit), sort, f"{unit}_to_target")


def _measured(row: Row, unit: str) -> bool:
    return unit != "cpu_seconds" or any(r.cpu_seconds is not None for r in row.reaches.values())


def amount(row: Row, unit: str) -> str:
    """Median to the target with its range; "not reached", and with how many seeds it is, where that is not all."""
    if not row.tested:
        return "no target"
    if not _measured(row, unit):
        return "–"
    value, low, high = (getattr(row, f"{unit}_{end}") for end in ("to_target", "low", "high"))
    some = f" ({row.reached} of {row.tested})" if 0 < row.reached < row.tested else ""
    if value is None:
        return "not reached" + some
    spec = _SPECS[unit]
    shown = f"{value:{spec}}"
    ends = f"{low:{spec}}", f"{high:{spec}}"
    return shown + (some or (f" ({ends[0]}–{ends[1]})" if ends[0] != ends[1] else ""))


def _final_loss(row: Row) -> str:
    return f"diverged: {row.diverged}" if row.diverged else plus_minus(row.final_loss, row.final_loss_sd)


def _verdicts(row: Row) -> str:
    return ", ".join(row.verdicts.get(unit) or "–" for unit in UNITS) if row.verdicts else "–"


def number(value: float | None, spec: str, unit: str = "") -> str:
    """The number, or a dash for none."""
    return "–" if value is None else f"{value:{spec}}{unit}"


def plus_minus(mean: float | None, spread: float | None) -> str:
    """Mean and standard deviation with four decimals."""
    if mean is None:
        return "–"
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"
