"""The page of an ablation, as Markdown: the question, how it was measured, and a table a task, losers included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jorge_lab.report.columns import Column, columns, number
from jorge_lab.report.grid import beside_baseline, over_baseline, plain
from jorge_lab.report.markdown import table
from jorge_lab.report.parts import Part, parts, target_text, warning
from jorge_lab.runs.records import measured, task_info
from jorge_lab.runs.store import Record
from jorge_lab.statistics.paired import RULE
from jorge_lab.statistics.reaching import Unit
from jorge_lab.statistics.row import Row
from jorge_lab.studies.ablations import Ablation


def opening(name: str, question: str, command: str, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines that any ablation's page begins with: question, command, machines, versions and dates."""
    return [
        f"# Ablation: {name}",
        "",
        question,
        "",
        f"`{command}`",
        "",
        *(f"- {line}" for line in measured(records)),
        "",
    ]


def page(ablation: Ablation, command: str, records: Sequence[Record]) -> str:
    """The page of an ablation from the records of its runs, at least one."""
    lines = opening(ablation.name, ablation.question, command, records)
    lines += [
        "The target of a seed is the best smoothed training loss of the task's baseline with that seed; steps and "
        "seconds to it are medians over seeds, as multiples of the baseline's (below 1 is better). A run that does "
        f"not get there is shown all the same. Beside it stands how it compares with Jorge. {RULE} Bold: not clearly "
        "worse than the best of the table.",
        "",
    ]
    for part in parts(records, {}):
        seeds = len({record["seed"] for record in part.section.records})
        length = f"{part.section.records[0]['steps']} steps, {seeds} seed{'' if seeds == 1 else 's'}"
        told = [f"Size {part.section.size}, {length}", f"Target: {target_text(part)}", warning(part).rstrip(".")]
        lines += [f"## {part.section.title}", "", " ".join(f"{fact}." for fact in told if fact), ""]
        lines += [table(plain(part.rows, [*_who(ablation, part), *_RESULTS, *_shared(part)]))]
    return "\n".join(lines)


def _who(ablation: Ablation, part: Part) -> list[Column]:
    """The optimizer, and the options that vary."""
    settings = {record["optimizer"]: record.get("settings", {}) for record in part.section.records}
    schedule = task_info(part.section.records[0])["schedule"]

    def varied(option: str) -> Column:
        def show(row: Row) -> str:
            # a schedule is no option of an optimizer: it stands in the name, or is the task's
            _, named, value = row.optimizer.partition("schedule=")
            mine = {"schedule": value if named else schedule, **settings[row.optimizer]}
            return str(mine[option]).removeprefix("torch.") if option in mine else "–"

        return Column(option, show, show)

    return [Column("optimizer", lambda r: r.label, lambda r: r.label), *map(varied, ablation.options)]


def _over_baseline(unit: Unit) -> Column:
    def show(row: Row) -> str:
        return beside_baseline(row, unit)

    return Column(f"{unit} ÷ baseline's", show, lambda row: over_baseline(row, unit), f"{unit}_to_target")


_RESULTS = (_over_baseline("steps"), _over_baseline("seconds"))


def _shared(part: Part) -> list[Column]:
    """Columns that every report has, and the time of a step."""
    found = {column.heading: column for column in columns(part.rows[0])}
    loss, metric, share, state = (
        found[heading] for heading in ("final loss", part.rows[0].metric_name, "optimizer's share", "state")
    )
    step = Column("ms a step", lambda r: number(r.step_ms, ".2f"), lambda r: r.step_ms)
    return [loss, metric, step, share, state]
