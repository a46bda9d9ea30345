"""The report of a comparison as a terminal shows it, and where the rest of it was written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jorge_lab.report import overview, page
from jorge_lab.report.columns import columns
from jorge_lab.report.grid import Cell, Table, first_table, plain
from jorge_lab.report.lead import below, lead
from jorge_lab.report.parts import Part, answer, parts, warning
from jorge_lab.runs.store import Record

#: What is not broken: how many seeds reach the target, a size, or any word.
_WORD = re.compile(r"\(\d+ of \d+\)|\S+ MB|\S+")


def report(
    records: Sequence[Record],
    folder: Path,
    command: str,
    targets: Mapping[str, float],
    console: Console,
    *,
    wide: bool = False,
) -> None:
    """Print a table and a sentence a task, and write the report into a folder; nothing where there are no records.

    The table has the six columns that a report leads with; `wide` prints all of them, in several tables where they are
    wider than the terminal.
    """
    if not records:
        return
    found = parts(records, targets)
    for part in found:
        _task(part, console, wide=wide)
    if len(found) > 1 and (said := overview.lead(found)):
        console.print()
        console.print(Text("All tasks", "bold"))
        console.print(Text(said))
        console.print()
        _print_table(overview.table(found), console)
        console.print(Text(overview.BELOW))
    path = page.write(records, folder, command, targets)
    count = f"{len(records)} run{'' if len(records) == 1 else 's'}"
    where = f"\n{count}; report: {path}\ntable:  {folder / 'summary.csv'}"
    console.print(Text(where), soft_wrap=True)


def _task(part: Part, console: Console, *, wide: bool) -> None:
    console.print()
    console.print(Text(part.section.title, "bold"))
    console.print(Text(lead(part)))
    console.print()
    _print_table(plain(part.rows, columns(part.rows[0])) if wide else first_table(part.rows), console)
    for line in [warning(part), *below(part), answer(part) if wide else ""]:
        if line:
            console.print(Text(line))


def _print_table(table: Table, console: Console) -> None:
    columns = [[line.cells[j].text for line in table.lines] for j in range(len(table.headings))]
    for widths, gap in _cut(table.headings, columns, console.width):
        shown = RichTable(
            box=box.SIMPLE_HEAD,
            padding=(0, gap - 1, 0, 0),  # the box parts columns by a blank
            pad_edge=False,
            show_edge=False,
        )
        for j, width in widths.items():
            shown.add_column(Text(table.headings[j]), justify="left" if j in table.text else "right", width=width)
        for line in table.lines:
            shown.add_row(*(_text(line.cells[j], width) for j, width in widths.items()))
        console.print(shown)
        console.print()


def _text(cell: Cell, width: int) -> Text:
    return Text(cell.text if len(cell.text) <= width else "\n".join(_halves(cell.text)), "bold" if cell.best else "")


def _halves(text: str) -> list[str]:
    """What stands before the last parentheses, and these: where a text that is too long is broken."""
    before, bracket, inside = text.rpartition(" (")
    return [before, f"({inside}"] if bracket else [text]


def _cut(headings: Sequence[str], columns: Sequence[Sequence[str]], width: int) -> Iterator[tuple[dict[int, int], int]]:
    """Columns with their widths, as many at a time as `width` takes, and the gap between them.

    No column is narrower than its longest word, so that lines break between words alone. The first column is among
    all, so that each line says whose it is.
    """
    texts = [[heading, *column] for heading, column in zip(headings, columns, strict=True)]
    least = [max(len(word) for text in column for word in _WORD.findall(text)) for column in texts]
    most = [max(len(half) for text in column for half in _halves(text)) for column in columns]
    most[0] = max(map(len, columns[0]))
    full = [max(map(len, column)) for column in texts]
    gap = next((gap for gap in (2, 1) if sum(least) + gap * (len(least) - 1) <= width), 2)
    chosen = [0]
    for j in range(1, len(texts)):
        if len(chosen) > 1 and sum(least[i] for i in [*chosen, j]) + gap * len(chosen) > width:
            yield _widths(chosen, least, most, full, width - gap * (len(chosen) - 1)), gap
            chosen = [0]
        chosen.append(j)
    yield _widths(chosen, least, most, full, width - gap * (len(chosen) - 1)), gap


def _widths(
    chosen: Sequence[int], least: Sequence[int], most: Sequence[int], full: Sequence[int], width: int
) -> dict[int, int]:
    """Each column's width, `width` at the most in all: its least, and where there is room what breaks nothing.

    From the left, as far as it goes: first `most`, at which cells are broken before parentheses alone, then `full`, at
    which neither cells nor headings are. What is left is shared by the columns that are below `most`.
    """
    found = {j: least[j] for j in chosen}
    spare = width - sum(found.values())
    for wanted in (most, full):
        for j in chosen:
            if 0 < wanted[j] - found[j] <= spare:
                spare -= wanted[j] - found[j]
                found[j] = wanted[j]
    broken = [j for j in chosen if found[j] < most[j]]
    return found | {j: found[j] + max(0, spare) // len(broken) for j in broken}
