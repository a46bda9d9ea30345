"""The report of a comparison: one self-contained HTML page, and a picture a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from jorge.lab.contenders import CONTENDERS
from jorge.lab.figures import OTHER, STYLES, picture, plot
from jorge.lab.run import Record
from jorge.lab.summary import Row, cells
from jorge.lab.task import Task


@dataclass(frozen=True)
class Section:
    """One task of a report."""

    task: Task
    records: Sequence[Record]
    rows: Sequence[Row]
    given_target: float | None


def answer(section: Section) -> str:
    """Who reaches the target first, in a sentence or two."""
    base = CONTENDERS[section.task.recipe.baseline].label
    reached = [row for row in section.rows if row.steps_to_target is not None and row.reached == row.runs]
    if all(row.target is None for row in section.rows):
        return f"No target: {base} is not in this comparison, and none was given."
    if not reached:
        return "No optimizer reached the target with every seed."
    steps = min(reached, key=lambda row: row.steps_to_target or 0)
    seconds = min(reached, key=lambda row: row.seconds_to_target or 0)
    said = f"{steps.label} reaches the target in the fewest steps, {steps.steps_to_target:.0f}"
    if steps.step_ratio is not None and steps.optimizer != section.task.recipe.baseline:
        said += f", {steps.step_ratio:.2f} of {base}'s"
    said += f". {seconds.label} reaches it in the least time, {seconds.seconds_to_target:.1f} s"
    if seconds.speedup is not None and seconds.optimizer != section.task.recipe.baseline:
        said += f", {seconds.speedup:.2f} times as fast as {base}"
    return said + "."


def _best(section: Section) -> dict[str, set[str]]:
    """For each optimizer, the headings of the columns in which it is best."""
    name, better = section.task.metric
    base = CONTENDERS[section.task.recipe.baseline].label
    columns: dict[str, tuple[str, int]] = {
        "final loss": ("final_loss", 1),
        name: ("metric", -1 if better == "higher" else 1),
        "steps to target": ("steps_to_target", 1),
        "seconds to target": ("seconds_to_target", 1),
        f"speed-up over {base}": ("speedup", -1),
    }
    best: dict[str, set[str]] = {row.optimizer: set() for row in section.rows}
    for heading, (attribute, sign) in columns.items():
        full = [r for r in section.rows if getattr(r, attribute) is not None and not r.diverged]
        if "target" in heading or "speed" in heading:
            full = [r for r in full if r.reached == r.runs]
        if len(full) > 1:
            best[min(full, key=lambda row: sign * getattr(row, attribute)).optimizer].add(heading)
    return best


def _settings(section: Section) -> dict[str, list[Any]]:
    """Option → its value for each row; a dash where the optimizer has no such option."""
    chosen = [next(r["settings"] for r in section.records if r["optimizer"] == row.optimizer) for row in section.rows]
    options = dict.fromkeys(name for settings in chosen for name in settings)
    return {name: [settings.get(name, "–") for settings in chosen] for name in sorted(options)}


def _view(section: Section) -> dict[str, Any]:
    task, rows, records = section.task, section.rows, section.records
    best = _best(section)
    if section.given_target is not None:
        target = f"a smoothed loss of {section.given_target:g}, as given"
    elif rows[0].target is not None:
        base = CONTENDERS[task.recipe.baseline].label
        target = f"{base}'s best smoothed loss with the same seed (mean {rows[0].target:.4f})"
    else:
        target = "none"
    return {
        "task": task,
        "steps": records[0]["steps"],
        "seeds": len({r["seed"] for r in records}),
        "target": target,
        "answer": answer(section),
        "by_steps": plot(records, rows, "steps"),
        "by_seconds": plot(records, rows, "seconds"),
        "settings": _settings(section),
        "table": [
            {
                "label": row.label,
                "cells": cells(row, task),
                "best": best[row.optimizer],
                "color": STYLES.get(row.optimizer, OTHER)[0],
            }
            for row in rows
        ],
    }


def _say(environment: Mapping[str, Any]) -> str:
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    return (
        f"jorge {environment['jorge']}, torch {environment['torch']}, Python {environment['python']}, "
        f"{environment['device']} ({environment['machine']}), {threads}, {environment['date']}"
    )


def write(sections: Sequence[Section], folder: Path, command: str) -> Path:
    """Write `report.html` and `TASK.svg` into the folder; returns the report's path."""
    loader = jinja2.PackageLoader("jorge.lab", "templates")
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = template.get_template("report.html").render(
        sections=[_view(section) for section in sections],
        command=command,
        environment=_say(sections[0].records[-1]["environment"]),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    for section in sections:
        svg = picture(section.records, section.rows, section.task.title)
        (folder / f"{section.task.name}.svg").write_text(svg, encoding="utf-8")
    return path
