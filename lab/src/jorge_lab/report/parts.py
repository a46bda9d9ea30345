"""The parts of a report: a section with its rows, and who is first in it, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jorge_lab.report.columns import UNIT_NAMES
from jorge_lab.runs.records import Section, machines, sections
from jorge_lab.runs.store import Record
from jorge_lab.statistics.paired import against
from jorge_lab.statistics.reaching import Unit
from jorge_lab.statistics.row import Row
from jorge_lab.statistics.summary import REFERENCE, summarize


@dataclass(frozen=True)
class Part:
    """One section of a report, its rows, and the target that was given for it, if any."""

    section: Section
    rows: Sequence[Row]
    given: float | None

    def called(self, row: Row) -> str:
        """The row's label, with its setting where the section has several."""
        return row.label if len({r.setting for r in self.rows}) == 1 else row.name


def parts(records: Iterable[Record], targets: Mapping[str, float]) -> list[Part]:
    """A part a section; `targets` are given losses by task name."""
    found = []
    for section in sections(records):
        given = targets.get(section.task)
        found.append(Part(section, summarize(section.records, given), given))
    return found


def reference(part: Part) -> Row | None:
    """The row that the others are compared with."""
    return next((row for row in part.rows if row.key == REFERENCE), None)


def baseline(part: Part) -> Row | None:
    """The row that sets the target, and that ratios are taken over."""
    return next((row for row in part.rows if row.is_baseline), None)


def first(part: Part, unit: Unit) -> list[Row]:
    """The rows of the lowest median, of those that reach the target with every seed; several where they tie."""
    full = [row for row in part.rows if row.reached == row.tested]
    medians = [(value, row) for row in full if (value := getattr(row, f"{unit}_to_target")) is not None]
    least = min((value for value, _ in medians), default=None)
    return [row for value, row in medians if value == least]


def nobody(part: Part) -> str | None:
    """Why nobody is first, in a sentence; None where somebody is."""
    if all(row.target is None for row in part.rows):
        base = part.rows[0].baseline or "its first-order baseline"
        return f"No target: there is no whole run of {base} here, and no target was given."
    return None if first(part, "steps") else "No optimizer reached the target with every seed."


def answer(part: Part) -> str:
    """Who reaches the target first, and who is not clearly slower, in a sentence or two."""
    if none := nobody(part):
        return none
    base = part.rows[0].baseline
    steps, seconds = first(part, "steps")[0], first(part, "seconds")[0]
    said = f"{part.called(steps)} reaches the target in the fewest steps, {steps.steps_to_target:.0f}"
    if steps.step_ratio is not None and steps.step_ratio != 1:
        said += f", {steps.step_ratio:.2f} of {base}'s"
    said += _level(part, steps, "steps")
    said += f" {part.called(seconds)} reaches it in the least time, {seconds.seconds_to_target:.1f} s"
    if seconds.speedup is not None and seconds.speedup != 1:
        said += f", {seconds.speedup:.2f} times as fast as {base}"
    return said + _level(part, seconds, "seconds")


def _level(part: Part, leader: Row, unit: Unit) -> str:
    field = f"{unit}_to_target"
    if field not in leader.best:
        return " (one seed, or none shared: not tested)." if len(part.rows) > 1 else "."
    others = [part.called(row) for row in part.rows if field in row.best and row is not leader]
    if others:
        return f"; not clearly slower in {UNIT_NAMES[unit]}: {', '.join(others)}."
    if any(against(row.reaches, leader.reaches, unit) == "level" for row in part.rows if row is not leader):
        return ", clearly faster than all that reach it with every seed."
    tested = all(len(row.reaches.keys() & leader.reaches.keys()) > 1 for row in part.rows)
    return ", clearly faster than all others." if tested else ", clearly faster than all that share two seeds with it."


def target_text(part: Part) -> str:
    """What the target is."""
    row = part.rows[0]
    if part.given is not None:
        return f"a smoothed loss of {part.given:g}, as given"
    if row.target is None:
        return "none"
    return f"{row.baseline}'s best smoothed loss with the same seed (mean {row.target:.4f})"


def warning(part: Part) -> str:
    """What is wrong with comparing the seconds of a section, or nothing."""
    found = machines(part.section.records)
    if len(found) < 2:
        return ""
    return f"Seconds were measured on {len(found)} kinds of machine and cannot be compared: {'; '.join(found)}."
