"""The report of a comparison as a terminal shows it, and where the rest of it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jorge_lab.report import page
from jorge_lab.report.columns import cells
from jorge_lab.runs.store import Record
from jorge_lab.statistics.row import Row

#: Columns of a terminal from which the table is a row an optimizer.
_WIDE = 240


def report(
    records: Sequence[Record], folder: Path, command: str, targets: Mapping[str, float], console: Console
) -> None:
    """Print a table and an answer a task, and write the report into a folder; nothing where there are no records."""
    if not records:
        return
    for title, rows, answer in page.tables(records, targets):
        console.print()
        console.print(_table(title, rows, across=console.width >= _WIDE))
        console.print(answer)
    path = page.write(records, folder, command, targets)
    console.print(f"\nreport: {path}\ntable:  {folder / 'summary.csv'}", soft_wrap=True)


def _table(title: str, rows: Sequence[Row], *, across: bool) -> Table:
    """A row an optimizer, or on a narrow terminal a column an optimizer."""
    table = Table(title=title, title_justify="left", title_style="bold")
    shown = [cells(row) for row in rows]
    lines = [list(shown[0]), *(list(row.values()) for row in shown)]
    if not across:
        lines = [list(line) for line in zip(*lines, strict=True)]
    for i, heading in enumerate(lines[0]):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for line in lines[1:]:
        table.add_row(*line)
    return table
