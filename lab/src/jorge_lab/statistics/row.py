"""What is known of one optimizer, under one setting, on one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from jorge_lab.statistics.paired import Comparison, Verdict
from jorge_lab.statistics.reaching import Reach, Unit


@dataclass(frozen=True)
class Row:
    """One optimizer with one setting on one task, over its seeds.

    Losses are smoothed (:func:`jorge_lab.statistics.reaching.smooth`). `target` is the mean over seeds where it is the
    baseline's best loss, which differs by seed; `tested` counts the seeds that have one. Amounts to the target are
    medians over these seeds, a seed that does not reach it counting as infinitely late: None where the median is, or
    where there is no target. `_low` and `_high` are the least and the most of the seeds that reach it. `step_ratio` is
    the steps over the baseline's, `speedup` and `cpu_speedup` the baseline's seconds over this optimizer's.

    `model_ms` is the median of a step's batch, forward and backward pass, `optimizer_ms` the mean of `optimizer.step`,
    since many optimizers work harder at every k-th step; both leave out the first step, which is `first_step_ms`.
    `step_ms` is their sum and `optimizer_share` the optimizer's part of it. `seconds` and `cpu_seconds` are those of
    the whole training.

    `compared` sets the row beside the reference, another row, by unit (:data:`jorge_lab.statistics.paired.RULE`); it is
    empty for the reference itself, and where there is none. `best` names the fields in which no row is shown to be
    ahead of this one.
    """

    task: str
    size: str
    optimizer: str
    setting: str
    label: str
    baseline: str
    metric_name: str
    runs: int
    diverged: str
    final_loss: float | None
    final_loss_sd: float | None
    metric: float | None
    metric_sd: float | None
    target: float | None
    tested: int
    reached: int
    steps_to_target: float | None
    steps_low: float | None
    steps_high: float | None
    seconds_to_target: float | None
    seconds_low: float | None
    seconds_high: float | None
    cpu_seconds_to_target: float | None
    cpu_seconds_low: float | None
    cpu_seconds_high: float | None
    step_ratio: float | None
    speedup: float | None
    cpu_speedup: float | None
    step_ms: float | None
    model_ms: float | None
    optimizer_ms: float | None
    optimizer_share: float | None
    first_step_ms: float | None
    seconds: float | None
    cpu_seconds: float | None
    state_bytes: int
    reference: str
    compared: Mapping[Unit, Comparison]
    best: frozenset[str]
    reaches: Mapping[int, Reach]

    @property
    def key(self) -> tuple[str, str]:
        """Optimizer and setting."""
        return self.optimizer, self.setting

    @property
    def name(self) -> str:
        """Label and setting, as a sentence or a legend names the row."""
        return f"{self.label} ({self.setting})"

    @property
    def verdicts(self) -> dict[Unit, Verdict | None]:
        """By unit, "ahead" if this optimizer is ahead of the reference."""
        return {unit: found.verdict for unit, found in self.compared.items()}

    @property
    def is_baseline(self) -> bool:
        """Whether the target and the ratios come from this row."""
        return self.baseline == (self.label if self.setting == "transferred" else self.name)


def one_each(rows: Sequence[Row]) -> list[Row]:
    """One row an optimizer.

    It is the reference, and of the others the setting that reaches the target with the most seeds, then in the fewest
    steps, then in the least time, then with the lowest final loss.
    """

    def place(row: Row) -> tuple[bool, float, float, float, float]:
        amounts = row.steps_to_target, row.seconds_to_target, row.final_loss
        steps, seconds, loss = (inf if amount is None else amount for amount in amounts)
        return row.name != row.reference, -row.reached, steps, seconds, loss

    best = {min((row for row in rows if row.optimizer == name), key=place).key for name in {r.optimizer for r in rows}}
    return [row for row in rows if row.key in best]
