"""Performance profiles over tasks (Dolan and Moré 2002), as AlgoPerf draws them (Dahl et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from jorge_lab.statistics.reaching import Unit
from jorge_lab.statistics.row import Row, one_each


@dataclass(frozen=True)
class Profile:
    """For each optimizer of one setting, how far behind the best of each task it is.

    Args:
        setting: the setting of all of them, or what else each was chosen by.
        unit: what is counted.
        tasks: how many tasks there are.
        factors: label → its amount over the best one's, ascending; infinite for a task whose target it does not reach.
        optimizers: label → the optimizer's name.
        left_out: labels of optimizers that were not run on all tasks.
    """

    setting: str
    unit: Unit
    tasks: int
    factors: Mapping[str, Sequence[float]]
    optimizers: Mapping[str, str]
    left_out: Sequence[str]

    def fraction(self, label: str, tau: float) -> float:
        """Of all tasks, the fraction on which the optimizer is within the factor `tau` of the best."""
        return sum(factor <= tau for factor in self.factors[label]) / self.tasks


def profile(tables: Sequence[Sequence[Row]], setting: str, unit: Unit) -> Profile | None:
    """The profile of a setting over several tasks' rows; None for fewer than two tasks or optimizers.

    The amount of a task is the median over its seeds. Tasks without a target, or without the setting, do not count; an
    optimizer that was not run on every task that counts is left out, for what it lacks is not known.
    """
    return _profile([[row for row in rows if row.setting == setting] for rows in tables], setting, unit)


def best_profile(tables: Sequence[Sequence[Row]], unit: Unit) -> Profile | None:
    """As :func:`profile`, of one row an optimizer and task (:func:`jorge_lab.statistics.row.one_each`)."""
    return _profile([one_each(rows) for rows in tables], "one setting each", unit)


def _profile(tables: Sequence[Sequence[Row]], setting: str, unit: Unit) -> Profile | None:
    known = ([row for row in rows if _known(row, unit)] for rows in tables)
    chosen = [rows for rows in known if len(rows) > 1]
    labels = {row.optimizer: row.label for rows in chosen for row in rows}
    everywhere = [n for n in labels if all(any(row.optimizer == n for row in rows) for rows in chosen)]
    if len(chosen) < 2 or len(everywhere) < 2:
        return None
    factors: dict[str, list[float]] = {labels[name]: [] for name in everywhere}
    for rows in chosen:
        amounts = {row.optimizer: _amount(row, unit) for row in rows if row.optimizer in everywhere}
        best = min(amounts.values())
        for name, amount in amounts.items():
            factors[labels[name]].append(amount / best if isfinite(amount) else inf)
    return Profile(
        setting=setting,
        unit=unit,
        tasks=len(chosen),
        factors={label: sorted(found) for label, found in factors.items()},
        optimizers={labels[name]: name for name in everywhere},
        left_out=[label for name, label in labels.items() if name not in everywhere],
    )


def _known(row: Row, unit: Unit) -> bool:
    return any(reach.amount(unit) is not None for reach in row.reaches.values())


def _amount(row: Row, unit: Unit) -> float:
    value: float | None = getattr(row, f"{unit}_to_target")
    # a clock may stand still for a step that takes no time at all
    return inf if value is None else max(value, 1e-9)


def profiles(tables: Sequence[Sequence[Row]], units: Sequence[Unit]) -> list[list[Profile]]:
    """The profiles that there are, a list a setting; first those of one setting each where there are several."""
    kinds = list(dict.fromkeys(row.setting for rows in tables for row in rows))
    found = [[profile(tables, kind, unit) for unit in units] for kind in kinds]
    if len(kinds) > 1:
        found.insert(0, [best_profile(tables, unit) for unit in units])
    known = ([p for p in row if p is not None] for row in found)
    return [row for row in known if row]
