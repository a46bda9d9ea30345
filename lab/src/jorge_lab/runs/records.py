"""Records of runs as a report reads them: from files, merged, put into sections; no task or optimizer is imported.

A record is what one run wrote down (`jorge_lab.runs.run`). What older records lack has a fallback here and nowhere
else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jorge_lab.runs.store import Record, RecordsError, read_lines

#: In the order in which tables show them.
SETTINGS = ("transferred", "tuned", "default")
_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Section:
    """The records that are compared with each other: one task at one size, all runs planned for the same steps.

    `repetitions` are the same runs once more, which say how seconds repeat and count nowhere else.
    """

    name: str
    title: str
    task: str
    size: str
    records: Sequence[Record]
    repetitions: Sequence[Record] = ()

    @property
    def picture(self) -> str:
        """The file name of its picture."""
        return picture_file(self.name)


def picture_file(name: str) -> str:
    """The file of a picture that is called so; tasks may have names such as `module:function`, which files may not."""
    return re.sub(r"[^\w.-]", "-", name) + ".svg"


def window(steps: int) -> int:
    """Over how many steps the losses of a run of so many are averaged: a twentieth."""
    return max(1, steps // 20)


def setting(record: Record) -> str:
    """Where the options came from: "transferred", "tuned" or "default"."""
    return str(record.get("setting") or "transferred")


def repetition(record: Record) -> int:
    """0 for a run; n for the n-th time that it was trained once more, for its seconds alone."""
    return int(record.get("repetition") or 0)


def label(record: Record) -> str:
    """What tables call the optimizer."""
    return str(record.get("label") or record["optimizer"])


def task_info(record: Record) -> dict[str, Any]:
    """What a report says of the task: title, origin, why, baseline, metric, schedule and batch_size, all of them there.

    `baseline` is None where the record does not name it.
    """
    unknown: dict[str, Any] = {
        "title": record["task"],
        "origin": "",
        "why": "",
        "baseline": None,
        "metric": ["metric", "higher"],
        "schedule": "",
        "batch_size": None,
    }
    known: dict[str, Any] = record.get("task_info", {})
    return unknown | known


def usable(record: Record) -> bool:
    """Whether a line of a file is a record of a run."""
    return {"task", "optimizer", "seed", "steps", "losses", "seconds"} <= record.keys()


def read_file(path: Path) -> list[Record]:
    """The records of runs in a `.jsonl` or `.jsonl.gz` file; what is no such record is left out.

    Raises:
        RecordsError: the file cannot be read.
    """
    return [record for record in read_lines(path) if usable(record)]


def read(places: Iterable[Path]) -> list[Record]:
    """The records of files, and of the record files in folders, merged.

    Raises:
        RecordsError: a place is not there, cannot be read, or holds no record.
    """
    found: list[Record] = []
    for place in places:
        paths = sorted(p for p in place.iterdir() if p.name.endswith(_SUFFIXES)) if place.is_dir() else [place]
        records = [record for path in paths for record in read_file(path)]
        if not records:
            raise RecordsError(f"no records of runs in {place}: name a folder of jorge compare, or a .jsonl(.gz) file")
        found += records
    return merge(found)


def merge(records: Iterable[Record]) -> list[Record]:
    """One record a run: of those with the same key, the one of the latest date, the last of them where dates tie.

    The order is that of each key's first record.
    """
    newest: dict[str, Record] = {}
    for record in records:
        parts = [record.get(k) for k in ("task", "size", "optimizer", "seed", "steps")]
        key = json.dumps([*parts, setting(record), repetition(record)])
        if key not in newest or _date(record) >= _date(newest[key]):
            newest[key] = record
    return list(newest.values())


def _date(record: Record) -> str:
    return str(record.get("environment", {}).get("date", ""))


def sections(records: Iterable[Record]) -> list[Section]:
    """The records by task, size and planned steps, in the order in which these first appear.

    Repetitions without a run that they repeat are left out.
    """
    groups: dict[tuple[str, str, int], list[Record]] = {}
    again: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        group = (record["task"], str(record.get("size") or ""), record["steps"])
        (again if repetition(record) else groups).setdefault(group, []).append(record)
    found = []
    for (task, size, steps), members in groups.items():
        several_sizes = len({g[1] for g in groups if g[0] == task}) > 1
        several_lengths = len([g for g in groups if g[:2] == (task, size)]) > 1
        length = f"{steps} steps" if several_lengths else ""
        name = "-".join(filter(None, [task, size if several_sizes else "", length.replace(" ", "-")]))
        told = ", ".join(filter(None, [size, length]))
        title = task_info(members[-1])["title"] + (f" ({told})" if told else "")
        found.append(Section(name, title, task, size, members, again.get((task, size, steps), [])))
    return found


def machines(records: Iterable[Record]) -> list[str]:
    """The machines on which the records were made, each once, in words."""
    return list(dict.fromkeys(_machine(record.get("environment", {})) for record in records))


def measured(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where and when the records were made: machine, versions, first and last date, each of these once.

    And whose seconds they have, where a clock of theirs was put in another's place
    (:mod:`jorge_lab.studies.retiming`).
    """
    dates: dict[tuple[str, str], list[str]] = {}
    for record in records:
        e = record.get("environment", {})
        versions = f"jorge {e.get('jorge', '?')}, torch {e.get('torch', '?')}, Python {e.get('python', '?')}"
        told = "; all seconds are CPU seconds" if record.get("clock") == "cpu" else ""
        told += f"; seconds as on {record['retimed']['date']}" if "retimed" in record else ""
        dates.setdefault((f"{_machine(e)}, {versions}", told), []).append(str(e.get("date", "?")))
    return [f"{where}; {' to '.join(sorted({min(found), max(found)}))}{told}" for (where, told), found in dates.items()]


def _machine(environment: Mapping[str, Any]) -> str:
    e = environment
    threads = "1 thread" if e.get("threads") == 1 else f"{e.get('threads', '?')} threads"
    if "processes" in e:
        threads = f"{e['processes']} processes of {threads} each"
    return f"{e.get('device', '?')} ({e.get('machine', '?')}), {threads}"
