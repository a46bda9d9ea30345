"""From records to answers: who reaches the target first, in steps and in seconds, and what it costs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median, stdev

from jorge.lab.contenders import CONTENDERS
from jorge.lab.run import Record
from jorge.lab.task import Task


@dataclass(frozen=True)
class Row:
    """One optimizer on one task over its seeds.

    Losses are smoothed (:func:`smooth`). `target` is the mean over seeds where it is the baseline's best loss, which
    differs by seed. Steps and seconds to it are medians over the seeds that reach it. `step_ms` leaves out the first
    step, `seconds` is the whole training. `speedup` is the baseline's seconds to target over this optimizer's.
    """

    task: str
    optimizer: str
    label: str
    runs: int
    diverged: str
    final_loss: float | None
    final_loss_sd: float | None
    metric: float | None
    metric_sd: float | None
    target: float | None
    reached: int
    steps_to_target: float | None
    seconds_to_target: float | None
    step_ratio: float | None
    speedup: float | None
    step_ms: float | None
    first_step_ms: float | None
    optimizer_share: float | None
    seconds: float | None
    state_bytes: int


def smooth(losses: Sequence[float], steps: int) -> list[float]:
    """Mean of the last twentieth of a run's steps, at each step from the first full window on.

    >>> smooth([4.0, 2.0, 0.0], steps=40)
    [3.0, 1.0]
    """
    window = max(1, steps // 20)
    return [fmean(losses[i - window : i]) for i in range(window, len(losses) + 1)]


def first_step_below(record: Record, target: float) -> int | None:
    """The first step at which the smoothed loss is at most `target`, from 1."""
    window: int = max(1, record["steps"] // 20)
    for i, loss in enumerate(smooth(record["losses"], record["steps"])):
        if loss <= target:
            return i + window
    return None


def targets(task: Task, records: Sequence[Record], target: float | None) -> dict[int, float]:
    """The target of each seed: the given one, else the best smoothed loss of the task's baseline with that seed."""
    if target is not None:
        return {record["seed"]: target for record in records}
    baseline = [r for r in records if r["optimizer"] == task.recipe.baseline and r["diverged_at"] is None]
    return {r["seed"]: min(smooth(r["losses"], r["steps"])) for r in baseline}


def summarize(task: Task, records: Sequence[Record], target: float | None = None) -> list[Row]:
    """A row an optimizer, in the order of the records; `target` replaces the baseline's best loss."""
    goal = targets(task, records, target)
    names = list(dict.fromkeys(record["optimizer"] for record in records))
    hits = {name: _hits([r for r in records if r["optimizer"] == name], goal) for name in names}
    base = hits.get(task.recipe.baseline, [])
    return [_row(task, name, [r for r in records if r["optimizer"] == name], goal, hits[name], base) for name in names]


def _hits(records: Sequence[Record], goal: dict[int, float]) -> list[tuple[int, float]]:
    """Steps and seconds to the target of each run that reaches it."""
    found = []
    for record in records:
        step = first_step_below(record, goal[record["seed"]]) if record["seed"] in goal else None
        if step is not None:
            found.append((step, record["seconds"][step - 1]))
    return found


def _row(
    task: Task,
    name: str,
    records: Sequence[Record],
    goal: dict[int, float],
    hits: list[tuple[int, float]],
    base: list[tuple[int, float]],
) -> Row:
    whole = [r for r in records if r["diverged_at"] is None]
    finals = [smooth(r["losses"], r["steps"])[-1] for r in whole]
    metrics = [r["evaluations"][-1][1] for r in whole]
    later = [s for r in records for s in _differences(r["seconds"])[1:]]
    spent = [s for r in records for s in r["optimizer_seconds"][1:]]
    steps, seconds = _median([h[0] for h in hits]), _median([h[1] for h in hits])
    base_steps, base_seconds = _median([h[0] for h in base]), _median([h[1] for h in base])
    return Row(
        task=task.name,
        optimizer=name,
        label=CONTENDERS[name].label if name in CONTENDERS else name,
        runs=len(records),
        diverged=", ".join(f"seed {r['seed']} at step {r['diverged_at']}" for r in records if r["diverged_at"]),
        final_loss=_mean(finals),
        final_loss_sd=_spread(finals),
        metric=_mean(metrics),
        metric_sd=_spread(metrics),
        target=_mean(list(goal.values())),
        reached=len(hits),
        steps_to_target=steps,
        seconds_to_target=seconds,
        step_ratio=steps / base_steps if steps and base_steps else None,
        speedup=base_seconds / seconds if seconds and base_seconds else None,
        step_ms=1000 * median(later) if later else None,
        first_step_ms=_median([1000 * r["seconds"][0] for r in records if r["seconds"]]),
        optimizer_share=sum(spent) / sum(later) if later else None,
        seconds=_median([r["seconds"][-1] for r in whole]),
        state_bytes=max(r["state_bytes"] for r in records),
    )


def _differences(values: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip([0.0, *values], values, strict=False)]


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows as a table with a header; empty cells are values that there are not."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def cells(row: Row, task: Task) -> dict[str, str]:
    """The row as it is shown, by column heading."""
    name, _ = task.metric
    steps = "not reached" if row.target is not None else "no target"
    if row.steps_to_target is not None:
        steps = f"{row.steps_to_target:.0f}" + (f" ({row.reached} of {row.runs})" if row.reached < row.runs else "")
    return {
        "optimizer": row.label,
        "final loss": f"diverged: {row.diverged}" if row.diverged else _pm(row.final_loss, row.final_loss_sd),
        name: _pm(row.metric, row.metric_sd),
        "steps to target": steps,
        "seconds to target": _number(row.seconds_to_target, ".1f"),
        f"speed-up over {CONTENDERS[task.recipe.baseline].label}": _number(row.speedup, ".2f", "×"),
        "seconds in all": _number(row.seconds, ".1f"),
        "ms a step": _number(row.step_ms, ".1f"),
        "optimizer's share": _number(row.optimizer_share, ".0%"),
        "state": f"{row.state_bytes / 1e6:.2f} MB",
    }


def markdown(rows: Sequence[Row], task: Task) -> str:
    """The table that people read, as Markdown."""
    shown = [cells(row, task) for row in rows]
    lines = [list(shown[0]), ["---"] * len(shown[0]), *(list(row.values()) for row in shown)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _number(value: float | None, spec: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{spec}}{unit}"


def _pm(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"
