"""The report as Markdown, for documents: what is bold was level with the best by the test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jorge_lab.report.columns import UNIT_NAMES, costs, names, results
from jorge_lab.report.grid import Cell, Table, by_setting, by_task, plain
from jorge_lab.report.overview import sentences, units
from jorge_lab.report.parts import Part, answer, parts, target_text, warning
from jorge_lab.runs.records import task_info
from jorge_lab.runs.store import Record
from jorge_lab.statistics.paired import RULE


def overview_markdown(records: Iterable[Record], targets: Mapping[str, float] | None = None) -> str:
    """Sentences, then a table a unit: steps or seconds to the target over each task's baseline, with verdicts."""
    return overview(parts(records, targets or {}))


def tasks_markdown(records: Iterable[Record], targets: Mapping[str, float] | None = None, images: str = "") -> str:
    """A chapter a task; `images` is the folder of the pictures as the document names it, empty for none."""
    return "\n".join(task(part, images) for part in parts(records, targets or {}))


def overview(found: Sequence[Part]) -> str:
    """The overview of parts; see :func:`overview_markdown`."""
    lines = [" ".join(sentences(found)), ""]
    for unit in units(found):
        reference = next((part.rows[0].reference for part in found if part.rows[0].reference), "")
        against = f", and the verdict against {reference}" if reference else ""
        lines += [f"In {UNIT_NAMES[unit]} to the target, over the task's baseline (below 1 is better){against}:", ""]
        lines += [table(by_task(found, unit))]
    return "\n".join([*lines, f"{RULE} Bold: level with the best of its task.", ""])


def task(part: Part, images: str = "") -> str:
    """The chapter of one part: what was run, who is first, and the tables."""
    section = part.section
    info = task_info(section.records[-1])
    seeds = len({r["seed"] for r in section.records})
    length = f"{section.records[0]['steps']} steps" + (f" of {info['batch_size']}" if info["batch_size"] else "")
    facts = [info["origin"], info["why"], f"{length}, {seeds} seed{'' if seeds == 1 else 's'}"]
    facts += [f"{info['schedule']} schedule"] if info["schedule"] else []
    told = " ".join(f"{fact.rstrip('.')}." for fact in [*facts, f"Target: {target_text(part)}", warning(part)] if fact)
    lines = [f"## {section.title}", "", told, "", answer(part), ""]
    if images:
        lines += [f"![Training loss: {section.title}]({images.rstrip('/')}/{section.picture})", ""]
    lines += [table(by_setting(part.rows)), table(plain(part.rows, results(part.rows[0])))]
    return "\n".join([*lines, table(plain(part.rows, [*names(), *costs()]))])


def table(shown: Table) -> str:
    """A table; groups of columns become part of each heading."""
    over = [name for name, columns in shown.groups for _ in range(columns)] or [""] * len(shown.headings)
    headings = [f"{group}, {name}" if group else name for group, name in zip(over, shown.headings, strict=True)]
    lines = [headings, ["---"] * len(headings), *([_cell(c) for c in line.cells] for line in shown.lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|")
    return f"**{text}**" if cell.best else text
