"""When a run reaches the target: on its smoothed loss, in steps, wall seconds and CPU seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jorge_lab.runs.records import setting, task_info, window
from jorge_lab.runs.store import Record

Unit = Literal["steps", "seconds", "cpu_seconds"]
UNITS: tuple[Unit, ...] = ("steps", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Reach:
    """How far one run went: to the target where `reached`, else through its whole planned length.

    A run that diverged is given the length that was planned, at its own pace. `optimizer_seconds` is the part of
    `seconds` that the optimizer took; `cpu_seconds` is None where the record has none.
    """

    reached: bool
    steps: float
    seconds: float
    optimizer_seconds: float
    cpu_seconds: float | None

    def amount(self, unit: Unit) -> float | None:
        """Steps or seconds."""
        return {"steps": self.steps, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}[unit]


def smooth(losses: Sequence[float], steps: int) -> list[float]:
    """Mean of the last twentieth of a run's steps, at each step from the first full window on.

    >>> smooth([4.0, 2.0, 0.0], steps=40)
    [3.0, 1.0]
    """
    length = window(steps)
    if len(losses) < length:
        return []
    # no running sum: one loss of 1e10 in it would blur all that follow
    means: list[float] = sliding_window_view(np.asarray(losses, dtype=float), length).mean(1).tolist()
    return means


def first_step_below(record: Record, target: float) -> int | None:
    """The first step at which the smoothed loss is at most `target`, from 1."""
    for i, loss in enumerate(smooth(record["losses"], record["steps"])):
        if loss <= target:
            return i + window(int(record["steps"]))
    return None


def baseline(records: Sequence[Record]) -> str | None:
    """The task's first-order baseline; where it is not named or has no record, that of SGD and AdamW that gets lowest.

    So a comparison with SGD alone has SGD's loss for a target, also where the task's better recipe is AdamW's.
    """
    named = next((str(task_info(r)["baseline"]) for r in records if task_info(r)["baseline"]), None)
    if named in {r["optimizer"] for r in records}:
        return named
    whole = [r for r in records if r["optimizer"] in ("sgd", "adamw") and _finished(r)]
    return min(whole, key=_best, default={"optimizer": named})["optimizer"]


def baseline_losses(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    """The baseline's best smoothed losses by setting and seed; the setting of the lower median first, then tuned."""
    name = baseline(records)
    found: dict[str, dict[int, float]] = {}
    for wanted in ("tuned", "transferred"):
        for r in records:
            if r["optimizer"] == name and setting(r) == wanted and _finished(r):
                found.setdefault(wanted, {})[r["seed"]] = _best(r)
    return dict(sorted(found.items(), key=lambda item: median(item[1].values())))


def targets(records: Sequence[Record], target: float | None = None) -> dict[int, float]:
    """The target of each seed: the given one, else the best smoothed loss of the baseline with that seed.

    The baseline is taken as transferred or as tuned, whichever got lower in the median. Where it has failed with a
    seed, its loss more than twice the median one, the median stands in: a target that all reach at once tells nothing.
    """
    if target is not None:
        return {record["seed"]: target for record in records}
    found: dict[int, float] = {}
    for losses in reversed(baseline_losses(records).values()):
        found |= losses
    middle = median(found.values()) if found else 0.0
    return {seed: middle if loss - middle > abs(middle) else loss for seed, loss in found.items()}


def _finished(record: Record) -> bool:
    return record["diverged_at"] is None and bool(record["losses"])


def _best(record: Record) -> float:
    return min(smooth(record["losses"], record["steps"]))


def reach(record: Record, target: float) -> Reach:
    """How far the run went until the target, or to its end."""
    step = first_step_below(record, target)
    done = len(record["losses"])
    length = step or done
    # a run that diverged is charged with all the steps that it was to make
    stretch = 1.0 if step or not done else record["steps"] / done
    cpu = record.get("cpu_seconds")
    return Reach(
        reached=step is not None,
        steps=step or record["steps"],
        seconds=stretch * _at(record["seconds"], length),
        optimizer_seconds=stretch * sum(record["optimizer_seconds"][:length]),
        cpu_seconds=None if cpu is None else stretch * _at(cpu, length),
    )


def _at(cumulative: Sequence[float], step: int) -> float:
    return cumulative[step - 1] if step else 0.0


def reaches(records: Iterable[Record], goal: dict[int, float]) -> dict[int, Reach]:
    """The reach of each seed that has a target."""
    return {r["seed"]: reach(r, goal[r["seed"]]) for r in records if r["seed"] in goal}
