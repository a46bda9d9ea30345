"""The curves of a plot: median smoothed loss over seeds against steps and seconds, thinned to what a screen shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jorge_lab.runs.records import setting, window
from jorge_lab.runs.store import Record
from jorge_lab.statistics.reaching import smooth
from jorge_lab.statistics.row import Row, one_each

Axis = Literal["steps", "seconds"]
AXES: tuple[Axis, ...] = ("steps", "seconds")
#: Curves that one picture shows at once; of more rows it shows one an optimizer.
LEGIBLE = 8
#: Points of a curve at most, in a plot that zooms, and in a still picture.
POINTS = 400
STILL_POINTS = 150


@dataclass(frozen=True)
class Curve:
    """One row's curve: arrays of one length, with the seeds' least and greatest loss as a band around the median."""

    row: Row
    steps: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def curve(row: Row, records: Sequence[Record], points: int = POINTS) -> Curve | None:
    """The curve of a row's records; None where no run has two smoothed losses.

    A run that diverged counts from there on as infinitely high: the curve ends where the median diverges.
    """
    losses = [smooth(r["losses"], r["steps"]) for r in records]
    length = max(map(len, losses), default=0)
    before = window(int(records[0]["steps"])) - 1  # steps of the first smoothed loss but its last
    values = np.full((len(losses), length), np.inf)
    clock = np.full((len(losses), length), np.nan)
    for i, (record, loss) in enumerate(zip(records, losses, strict=True)):
        values[i, : len(loss)] = loss
        clock[i, : len(loss)] = record["seconds"][before : before + len(loss)]
    median = np.median(values, axis=0)
    length = int(np.isfinite(median).sum())
    if length < 2:
        return None
    chosen = np.unique(np.linspace(0, length - 1, min(length, points)).round().astype(int))
    shown = values[:, chosen]
    return Curve(
        row=row,
        steps=before + 1 + chosen,
        seconds=np.nanmedian(clock[:, chosen], axis=0),
        loss=median[chosen],
        low=shown.min(0),
        high=np.where(np.isfinite(shown), shown, -np.inf).max(0),
        seeds=len(records),
    )


def curves(records: Sequence[Record], rows: Sequence[Row], points: int = POINTS) -> list[Curve]:
    """The curves of a section, a row each."""
    mine = {row.key: [r for r in records if (r["optimizer"], setting(r)) == row.key] for row in rows}
    found = (curve(row, mine[row.key], points) for row in rows)
    return [c for c in found if c is not None]


def legible(rows: Sequence[Row]) -> list[Row]:
    """The rows that a picture shows: all if they are few, else one an optimizer."""
    return list(rows) if len(rows) <= LEGIBLE else one_each(rows)


def logarithmic(found: Sequence[Curve]) -> bool:
    """Whether the losses want a logarithmic axis: they are above 0 and span more than a factor of two."""
    lowest = min((float(c.low.min()) for c in found), default=0.0)
    return lowest > 0 and max(float(c.high.max()) for c in found) > 2 * lowest
