"""The report of a comparison: one self-contained HTML page, tables, and a picture a task, from records alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from jorge_lab.report import interactive, markdown, overview
from jorge_lab.report.columns import MAIN_UNITS, UNIT_NAMES, costs, names, results
from jorge_lab.report.figures import on_page, on_white, picture, profile_picture
from jorge_lab.report.grid import by_setting, by_task, first_table, plain
from jorge_lab.report.lead import below, lead
from jorge_lab.report.parts import Part, answer, parts, target_text, warning
from jorge_lab.report.styles import Style, styles
from jorge_lab.report.styles import on_page as colour_on_page
from jorge_lab.runs.records import measured, setting, task_info
from jorge_lab.runs.store import Record
from jorge_lab.statistics.curves import STILL_POINTS, curves, legible
from jorge_lab.statistics.paired import RULE
from jorge_lab.statistics.profiles import Profile, profiles
from jorge_lab.statistics.row import Row
from jorge_lab.statistics.summary import write_csv

#: The files of the profiles: what an overview leads with, and those of each setting.
_PROFILE, _BY_SETTING = "profile.svg", "profile-by-setting.svg"


def write(records: Sequence[Record], folder: Path, command: str, targets: Mapping[str, float]) -> Path:
    """Write `report.html`, `TASK.svg`, `profile.svg`, `summary.csv`, `summary.md` and the like into a folder.

    Args:
        records: of any number of tasks and sizes; at least one.
        folder: is made where it is not there.
        command: what the report says that it comes from.
        targets: given losses by task name, for tasks that shall not take their baseline's best.

    Returns:
        The path of `report.html`.
    """
    found = parts(records, targets)
    look = styles(record["optimizer"] for record in records)
    folder.mkdir(parents=True, exist_ok=True)
    rows = profiles_of(found)
    pictures = _pictures(found, rows, look)
    loader = jinja2.PackageLoader("jorge_lab.report", "templates")
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = template.get_template("report.html").render(
        sections=[_view(part, look, pictures[part.section.picture]) for part in found],
        overview=_overview(found) if len(found) > 1 else None,
        reference=next((part.rows[0].reference for part in found if part.rows[0].reference), ""),
        panels=[on_page(profile_picture([[p]], look)) for p in (rows[0] if rows else []) if p.unit in MAIN_UNITS],
        profile=on_page(pictures.get(_BY_SETTING, "")),
        left_out=[f"{', '.join(p[0].left_out)} ({p[0].setting})" for p in rows if p[0].left_out],
        rule=RULE,
        command=command,
        measured=measured(records),
        plotly=interactive.script(),
        colours={name: colour_on_page(style.colour) for name, style in look.items()},
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    for name, svg in pictures.items():
        (folder / name).write_text(on_white(svg), encoding="utf-8")
    write_csv([row for part in found for row in part.rows], folder / "summary.csv")
    (folder / "summary.md").write_text("\n".join(_chapters(found, ".")), encoding="utf-8")
    return path


def write_document(records: Sequence[Record], path: Path, targets: Mapping[str, float], folder: Path) -> None:
    """Write the report as a Markdown page, with pictures in `images` beside it.

    The pictures are those that :func:`write` has written into `folder` from the same records.
    """
    found = parts(records, targets)
    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in (*_profile_files(found), *(part.section.picture for part in found)):
        shutil.copyfile(folder / name, images / name)
    said = "\n".join(f"- {line}" for line in measured(records))
    chapters = _chapters(found, "images")
    path.write_text("\n".join(["# Results\n", *chapters, "Measured with\n", said + "\n"]), encoding="utf-8")


def _chapters(found: Sequence[Part], images: str) -> list[str]:
    """The overview where there are several tasks, a chapter a task, and how to read them."""
    profiles = [f"{images}/{name}" for name in _profile_files(found)]
    several = [markdown.all_tasks(found, profiles)] if len(found) > 1 else []
    return [*several, *(markdown.task(part, images) for part in found), markdown.HOW]


def profiles_of(found: Sequence[Part]) -> list[list[Profile]]:
    """The performance profiles, a list a setting; none for fewer than two tasks or optimizers."""
    return profiles([part.rows for part in found], overview.units(found))


def _profile_files(found: Sequence[Part]) -> list[str]:
    return [_PROFILE, _BY_SETTING][: len(profiles_of(found))]


def _pictures(found: Sequence[Part], rows: Sequence[Sequence[Profile]], look: Mapping[str, Style]) -> dict[str, str]:
    """File name → SVG: a picture a section, the first profiles if there are any, and the others."""
    drawn = {}
    for part in found:
        thin = curves(part.section.records, legible(part.rows), STILL_POINTS)
        drawn[part.section.picture] = picture(thin, part.rows[0].target, part.section.title, look)
    parted = {_PROFILE: rows[:1], _BY_SETTING: rows[1:]}
    return drawn | {name: profile_picture(chosen, look) for name, chosen in parted.items() if chosen}


def _overview(found: Sequence[Part]) -> dict[str, Any]:
    return {
        "lead": overview.lead(found),
        "table": overview.table(found),
        "below": overview.BELOW,
        "profiles": overview.PROFILES,
        "sentences": overview.sentences(found),
        "by_task": [(UNIT_NAMES[unit], by_task(found, unit)) for unit in overview.units(found)],
    }


def _view(part: Part, look: Mapping[str, Style], svg: str) -> dict[str, Any]:
    section, rows = part.section, part.rows
    found = curves(section.records, rows)
    return {
        "name": section.name,
        "title": section.title,
        "info": task_info(section.records[-1]),
        "steps": section.records[0]["steps"],
        "seeds": len({r["seed"] for r in section.records}),
        "target": target_text(part),
        "warning": warning(part),
        "lead": lead(part),
        "main": first_table(rows),
        "below": below(part),
        "answer": answer(part),
        "picture": on_page(svg),
        "plot": interactive.plot(found, rows[0].target, look, {row.key for row in legible(rows)}),
        "by_setting": by_setting(rows),
        "results": plain(rows, results(rows[0])),
        "costs": plain(rows, [*names(), *costs()]),
        "hardware": [_hardware(row) for row in rows],
        "baseline": rows[0].baseline,
        "settings": _options(part),
        "names": [part.called(row) for row in rows],
    }


def _hardware(row: Row) -> dict[str, Any]:
    """What the page needs in order to ask how long it takes where the model is faster: by seed, two parts of a time."""
    seeds = [
        {"model": r.seconds - r.optimizer_seconds, "optimizer": r.optimizer_seconds, "reached": r.reached}
        for r in row.reaches.values()
    ]
    return {"row": row, "seeds": seeds, "is_baseline": row.is_baseline}


def _options(part: Part) -> dict[str, list[Any]]:
    """Option → its value for each row; a dash where the optimizer has no such option."""
    chosen = []
    for row in part.rows:
        mine = next(r for r in part.section.records if (r["optimizer"], setting(r)) == row.key)
        chosen.append(mine.get("settings", {}))
    options = dict.fromkeys(name for settings in chosen for name in settings)
    return {name: [settings.get(name, "–") for settings in chosen] for name in sorted(options)}
