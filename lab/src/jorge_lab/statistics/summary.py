"""From records to answers: who reaches the target first, in steps and in seconds, and what it costs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from math import inf, isfinite, log
from operator import attrgetter
from pathlib import Path
from statistics import fmean, median, stdev

from jorge_lab.runs.records import SETTINGS, label, setting, task_info
from jorge_lab.runs.store import Record
from jorge_lab.statistics.paired import LEAST, WORDS, Comparison, against, compare, ratios, verdict
from jorge_lab.statistics.reaching import (
    UNITS,
    Reach,
    Unit,
    baseline,
    baseline_losses,
    reaches,
    smooth,
    targets,
)
from jorge_lab.statistics.row import Row

#: The row that the others are compared with.
REFERENCE = ("jorge", "transferred")


def summarize(
    records: Sequence[Record], target: float | None = None, reference: tuple[str, str] = REFERENCE
) -> list[Row]:
    """A row an optimizer and setting, from records of one task and size; a setting's rows follow each other.

    Args:
        records: what the runs wrote down.
        target: replaces the baseline's best loss.
        reference: optimizer and setting that the others are compared with.
    """
    goal = targets(records, target)
    groups = _groups(records)
    rows = [_row(members, reaches(members, goal), goal) for members in groups.values()]
    by_key = {row.key: row for row in rows}
    name = baseline(records)
    base = next(
        (by_key[name or "", kind] for kind in (*baseline_losses(records), *SETTINGS) if (name, kind) in by_key), None
    )
    rows = [_beside(row, base, by_key.get(reference)) for row in rows]
    best = _best(rows, groups)
    return [replace(row, best=frozenset(f for f, keys in best.items() if row.key in keys)) for row in rows]


def _groups(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by optimizer and setting."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["optimizer"], setting(record)), []).append(record)
    names = list(dict.fromkeys(name for name, _ in found))
    others = sorted({kind for _, kind in found} - set(SETTINGS))
    return {(n, kind): found[n, kind] for n in names for kind in (*SETTINGS, *others) if (n, kind) in found}


def _row(records: Sequence[Record], seeds: dict[int, Reach], goal: dict[int, float]) -> Row:
    """The row, before it is compared with others."""
    whole = [r for r in records if r["diverged_at"] is None]
    finals, metrics = list(_finals(whole).values()), list(_metrics(whole).values())
    info, first = task_info(records[-1]), records[0]
    steps, seconds, cpu = (_range(seeds, unit) for unit in UNITS)
    model, spent = _median(_each(records, _model_ms)), _median(_each(records, _optimizer_ms))
    step = None if model is None or spent is None else model + spent
    return Row(
        task=first["task"],
        size=str(first.get("size") or ""),
        optimizer=first["optimizer"],
        setting=setting(first),
        label=label(records[-1]),
        baseline="",
        metric_name=info["metric"][0],
        runs=len(records),
        diverged=", ".join(f"seed {r['seed']} at step {r['diverged_at']}" for r in records if r["diverged_at"]),
        final_loss=_mean(finals),
        final_loss_sd=_spread(finals),
        metric=_mean(metrics),
        metric_sd=_spread(metrics),
        target=_mean(list(goal.values())),
        tested=len(seeds),
        reached=sum(r.reached for r in seeds.values()),
        steps_to_target=steps[0],
        steps_low=steps[1],
        steps_high=steps[2],
        seconds_to_target=seconds[0],
        seconds_low=seconds[1],
        seconds_high=seconds[2],
        cpu_seconds_to_target=cpu[0],
        cpu_seconds_low=cpu[1],
        cpu_seconds_high=cpu[2],
        step_ratio=None,
        speedup=None,
        cpu_speedup=None,
        step_ms=step,
        model_ms=model,
        optimizer_ms=spent,
        optimizer_share=spent / step if step and spent is not None else None,
        first_step_ms=_median([1000 * r["seconds"][0] for r in records if r["seconds"]]),
        seconds=_median([r["seconds"][-1] for r in whole if r["seconds"]]),
        cpu_seconds=_median([r["cpu_seconds"][-1] for r in whole if r.get("cpu_seconds")]),
        state_bytes=max(r["state_bytes"] for r in records),
        reference="",
        compared={},
        best=frozenset(),
        reaches=seeds,
    )


def _beside(row: Row, base: Row | None, reference: Row | None) -> Row:
    """The row with its ratios to the baseline, and set beside the reference."""
    if base is not None:
        row = replace(
            row,
            baseline=base.label if base.setting == "transferred" else base.name,
            step_ratio=_over(row.steps_to_target, base.steps_to_target),
            speedup=_over(base.seconds_to_target, row.seconds_to_target),
            cpu_speedup=_over(base.cpu_seconds_to_target, row.cpu_seconds_to_target),
        )
    if reference is None or row.key == reference.key:
        return replace(row, reference=reference.name if reference else "")
    found = {unit: compare(row.reaches, reference.reaches, unit) for unit in UNITS}
    return replace(row, reference=reference.name, compared={unit: c for unit, c in found.items() if c is not None})


def _best(rows: Sequence[Row], groups: Mapping[tuple[str, str], Sequence[Record]]) -> dict[str, set[tuple[str, str]]]:
    """For each field that can be best, the rows that are not behind the one with the best value; none if untested.

    Only rows count that did not diverge, and in amounts to the target only those that reach it with every seed.
    """
    best: dict[str, set[tuple[str, str]]] = {}
    for unit in UNITS:
        field = f"{unit}_to_target"
        full = [r for r in rows if getattr(r, field) is not None and r.reached == r.tested]
        if full:
            first = min(full, key=attrgetter(field))
            said = {row.key: against(row.reaches, first.reaches, unit) for row in rows if row is not first}
            best[field] = {row.key for row in full if said.get(row.key) in ("ahead", "level")}
            best[field] |= {first.key} if any(said.values()) else set()
    whole = [r for r in rows if not r.diverged]
    losses = {row.key: _finals(groups[row.key]) for row in whole if row.final_loss is not None}
    metrics = {row.key: _metrics(groups[row.key]) for row in whole if row.metric is not None}
    higher = bool(rows) and task_info(groups[rows[0].key][-1])["metric"][1] == "higher"
    sign = -1 if higher else 1
    best["final_loss"] = _lowest(losses, logarithms=True)
    best["metric"] = _lowest({k: {s: sign * x for s, x in v.items()} for k, v in metrics.items()}, logarithms=False)
    return best


def _lowest(values: Mapping[tuple[str, str], dict[int, float]], *, logarithms: bool) -> set[tuple[str, str]]:
    """Rows whose values by seed are not behind those of the row of the lowest mean."""
    if len(values) < 2:
        return set()
    first = min(values, key=lambda k: fmean(values[k].values()))
    best = set()
    for key in values.keys() - {first}:
        mine, other = values[key], values[first]
        said = ratios(mine, other) if logarithms else [mine[s] - other[s] for s in mine.keys() & other.keys()]
        judged = verdict(said, log(LEAST) if logarithms else 0.0)
        best |= {first} if judged else set()
        best |= {key} if judged in ("ahead", "level") else set()
    return best


def _finals(records: Sequence[Record]) -> dict[int, float]:
    """The smoothed loss at the end by seed; of the averaged weights where the optimizer ends with those."""
    ends = {r["seed"]: smooth(r["losses"], r["steps"])[-1] for r in records if r["losses"]}
    return ends | {r["seed"]: r["averaged"]["loss"] for r in records if r.get("averaged")}


def _metrics(records: Sequence[Record]) -> dict[int, float]:
    ends = {r["seed"]: r["evaluations"][-1][1] for r in records if r["evaluations"]}
    return ends | {r["seed"]: r["averaged"]["metric"] for r in records if r.get("averaged")}


def _range(seeds: Mapping[int, Reach], unit: Unit) -> tuple[float | None, float | None, float | None]:
    """Median over all seeds, infinity for those that do not reach the target; least and most of those that do."""
    amounts = [(r.amount(unit), r.reached) for r in seeds.values()]
    known = [amount if reached else inf for amount, reached in amounts if amount is not None]
    finite = [amount for amount in known if isfinite(amount)]
    if not known or not isfinite(median(known)):
        return None, None, None
    return median(known), min(finite), max(finite)


def _model_ms(record: Record) -> float:
    clock: list[float] = record["seconds"]
    spent: list[float] = record["optimizer_seconds"]
    return 1000 * median(clock[i] - clock[i - 1] - spent[i] for i in range(1, len(clock)))


def _optimizer_ms(record: Record) -> float:
    spent: list[float] = record["optimizer_seconds"]
    return 1000 * fmean(spent[1:])


def _each(records: Sequence[Record], measure: Callable[[Record], float]) -> list[float]:
    """The measure of each run of two steps and more."""
    return [measure(r) for r in records if len(r["optimizer_seconds"]) > 1]


def _over(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    """The standard deviation; `None` of fewer than two, and where a value is not finite, as after a last bad step."""
    return stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows as a table with a header; empty cells are values that there are not.

    By unit there are the verdict against the reference, in words, and mean and ends of the interval of the ratio to it;
    `best` holds the names of its fields, parted by blanks.
    """
    plain = [f.name for f in fields(Row) if f.name not in ("compared", "best", "reaches")]
    beside = [f"{unit}_{what}" for unit in UNITS for what in ("verdict", "ratio", "ratio_low", "ratio_high")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*plain, *beside, "best"])
        for row in rows:
            found = [value for unit in UNITS for value in _beside_cells(row.compared.get(unit))]
            writer.writerow([*(getattr(row, name) for name in plain), *found, " ".join(sorted(row.best))])


def _beside_cells(found: Comparison | None) -> list[object]:
    if found is None:
        return [None] * 4
    return [WORDS[found.verdict] if found.verdict else None, found.ratio, found.low, found.high]
