"""What came of the checks, as data and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jorge.testing.check import BEYOND, Outcome, Result

MARKS: dict[Result, str] = {"passed": "✓", "failed": "✗", "not applicable": "–"}


@dataclass(frozen=True)
class Report:
    """What came of the checks of one optimizer. Printed, it is a table with the reasons below.

    Args:
        name: the optimizer's.
        rows: one outcome a check, in their order.
    """

    name: str
    rows: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The checks that failed."""
        return tuple(row for row in self.rows if row.result == "failed")

    @property
    def passed(self) -> bool:
        """Whether no check failed, but for those that go beyond what torch's own optimizers do."""
        return all(row.check.group == BEYOND for row in self.failures)

    def __str__(self) -> str:
        return table([self])

    def markdown(self) -> str:
        """The table in Markdown."""
        return table([self], markdown=True)


def table(reports: Sequence[Report], markdown: bool = False) -> str:
    """Reports of the same checks side by side, and below them why what failed did."""
    head = ["", *(report.name for report in reports)]
    body: list[list[str]] = []
    notes: dict[str, int] = {}
    group = ""
    for row in zip(*(report.rows for report in reports), strict=True):
        check = row[0].check
        if check.group != group:
            group = check.group
            aside = "" if group != BEYOND else " (does not count)"
            body.append([f"*{group}*" if markdown else f"{group}{aside}:", *("" for _ in reports)])
        cells = [_cell(outcome, notes, markdown) for outcome in row]
        body.append([check.says if markdown else f"  {check.name}", *cells])
    counts = [_count(report) for report in reports]
    body.append(["**passed**" if markdown else "passed", *counts])
    lines = _markdown(head, body) if markdown else _plain(head, body)
    if notes:
        lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    failed = {row.check.name: row.check.says for report in reports for row in report.failures}
    if failed and not markdown:
        lines += ["", "What failed:", *(f"  {name}: {says}" for name, says in failed.items())]
    return "\n".join(lines)


def _count(report: Report) -> str:
    """How many checks passed, of those that apply."""
    results = [row.result for row in report.rows]
    return f"{results.count('passed')} of {len(results) - results.count('not applicable')}"


def _cell(outcome: Outcome, notes: dict[str, int], markdown: bool) -> str:
    """The mark of an outcome, with the number of the note that says why."""
    mark = MARKS[outcome.result]
    if not outcome.reason:
        return mark
    number = notes.setdefault(outcome.reason, len(notes) + 1)
    return f"{mark}<sup>{number}</sup>" if markdown else f"{mark} {number}"


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def _plain(head: list[str], body: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *body]]
    return [line.rstrip() for line in lines]
