"""What is known of one optimizer, under one setting, on one task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jorge_lab.statistics.paired import Verdict
from jorge_lab.statistics.reaching import Reach


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

    `verdicts` compares with the reference, another row (:data:`jorge_lab.statistics.paired.RULE`): by unit, "ahead" if
    this optimizer is. `best` names the fields in which no row is shown to be ahead of this one.
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
    verdicts: Mapping[str, Verdict | None]
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
    def is_baseline(self) -> bool:
        """Whether the target and the ratios come from this row."""
        return self.baseline == (self.label if self.setting == "transferred" else self.name)
