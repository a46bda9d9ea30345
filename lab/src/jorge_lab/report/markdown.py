"""The report as Markdown, for documents: what is bold was not clearly worse than the best by the test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jorge_lab.report import overview
from jorge_lab.report.columns import UNIT_NAMES, costs, names, results
from jorge_lab.report.grid import Cell, Table, by_setting, by_task, first_table, plain
from jorge_lab.report.lead import below, lead
from jorge_lab.report.parts import Part, answer, parts, target_text, warning
from jorge_lab.runs.records import task_info
from jorge_lab.runs.store import Record
from jorge_lab.statistics.paired import RULE

#: The chapter that every document ends with.
HOW = f"""## How to read it

{RULE}

Bold: not clearly worse than the best of its task, and of steps and seconds, reached with every seed. Ratios to the
baseline are of medians over seeds; below 1 is better.
"""


def tasks_markdown(records: Iterable[Record], targets: Mapping[str, float] | None = None, images: str = "") -> str:
    """A chapter a task; `images` is the folder of the pictures as the document names it, empty for none."""
    return "\n".join(task(part, images) for part in parts(records, targets or {}))


def all_tasks(found: Sequence[Part], profiles: Sequence[str] = ()) -> str:
    """The overview: picture, sentence and table, and folded: other pictures, sentences and a table a unit.

    `profiles` are the pictures as the document names them.
    """
    pictures = [[f"![Performance profiles]({name})", ""] for name in profiles]
    lines = pictures[0] if pictures else []
    lines += [said, "", table(overview.table(found)), overview.BELOW, ""] if (said := overview.lead(found)) else []
    lines += [overview.PROFILES, ""] if pictures else []
    rest = [" ".join(overview.sentences(found)), "", *(line for shown in pictures[1:] for line in shown)]
    for unit in overview.units(found):
        reference = next((part.rows[0].reference for part in found if part.rows[0].reference), "")
        against = f", and how it compares with {reference}" if reference else ""
        rest += [f"In {UNIT_NAMES[unit]} to the target, over the task's baseline (below 1 is better){against}:", ""]
        rest += [table(by_task(found, unit))]
    return "\n".join([*lines, *_folded("Every optimizer on every task", rest)])


def task(part: Part, images: str = "") -> str:
    """The chapter of one part: picture, sentence and table, and folded: what was run, who is first, and all columns."""
    section = part.section
    info = task_info(section.records[-1])
    seeds = len({r["seed"] for r in section.records})
    length = f"{section.records[0]['steps']} steps" + (f" of {info['batch_size']}" if info["batch_size"] else "")
    facts = [info["origin"], info["why"], f"{length}, {seeds} seed{'' if seeds == 1 else 's'}"]
    facts += [f"{info['schedule']} schedule"] if info["schedule"] else []
    told = " ".join(f"{fact.rstrip('.')}." for fact in [*facts, f"Target: {target_text(part)}"] if fact)
    lines = [f"## {section.title}", ""]
    if images:
        lines += [f"![Training loss: {section.title}]({images.rstrip('/')}/{section.picture})", ""]
    lines += [lead(part), "", table(first_table(part.rows))]
    lines += [line for said in [warning(part), *below(part)] if said for line in (said, "")]
    rest = [told, "", answer(part), "", table(by_setting(part.rows)), table(plain(part.rows, results(part.rows[0])))]
    return "\n".join([*lines, *_folded("The task, all columns, and what a step costs", [*rest, table(_costs(part))])])


def _costs(part: Part) -> Table:
    return plain(part.rows, [*names(), *costs()])


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *lines, "</details>", ""]


def table(shown: Table) -> str:
    """A table; groups of columns become part of each heading."""
    over = [name for name, columns in shown.groups for _ in range(columns)] or [""] * len(shown.headings)
    headings = [f"{group}, {name}" if group else name for group, name in zip(over, shown.headings, strict=True)]
    lines = [headings, ["---"] * len(headings), *([_cell(c) for c in line.cells] for line in shown.lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|")
    return f"**{text}**" if cell.best else text
