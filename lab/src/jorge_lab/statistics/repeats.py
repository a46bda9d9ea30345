"""How the seconds of one run repeat: the run, and the same run trained again on the same machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from jorge_lab.contenders import comparable
from jorge_lab.runs.records import Section, machines, setting
from jorge_lab.runs.store import Record


@dataclass(frozen=True)
class Repeated:
    """How far apart the seconds a step of the same run are: the most over the least, less 1.

    Args:
        key: optimizer and setting.
        times: how often the run was trained.
        seconds: on the wall's clock.
        cpu_seconds: on the process's clock; None where a record has none.
    """

    key: tuple[str, str]
    times: int
    seconds: float
    cpu_seconds: float | None


def repeated(section: Section) -> list[Repeated]:
    """What the repetitions of a section say, in the order of its runs; a run without repetitions is left out."""
    found = []
    for run in section.records:
        same = [run, *(r for r in section.repetitions if _identity(r) == _identity(run))]
        walls, cpus = (_spread([_pace(r, clock) for r in same]) for clock in ("seconds", "cpu_seconds"))
        if walls is not None:
            found.append(Repeated((run["optimizer"], setting(run)), len(same), walls, cpus))
    return found


def _identity(record: Record) -> tuple[object, ...]:
    """What two trainings of the same run have in common."""
    settings = json.dumps(
        comparable(record.get("settings") or {}), sort_keys=True
    )  # those of an earlier version may be others
    return record["optimizer"], setting(record), record["seed"], settings, *machines([record])


def _pace(record: Record, clock: str) -> float | None:
    """Seconds a step over the whole run; None where the clock was not read, or stood still."""
    times: Sequence[float] = record.get(clock) or [0.0]
    return times[-1] / len(times) or None


def _spread(values: Sequence[float | None]) -> float | None:
    """The most over the least, less 1, of two values or more that are all known."""
    known = [value for value in values if value is not None]
    return max(known) / min(known) - 1 if len(known) == len(values) > 1 else None
