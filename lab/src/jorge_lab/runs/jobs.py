"""The runs of a comparison: which they are, by names that another process understands, and how one is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import torch

from jorge_lab.contenders import SETTINGS, Setting, comparable
from jorge_lab.contenders.finding import find_contender
from jorge_lab.errors import UsageError
from jorge_lab.runs.checkpoints import Checkpoints
from jorge_lab.runs.run import Watcher, describe, first_loss, key, train
from jorge_lab.runs.store import Record
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import DataMissingError, Size


@cache
def _first_loss(name: str, size: Size, seed: int, device: torch.device) -> float:
    task = find_task(name, size)
    return first_loss(task, seed, task.load().to(device))


def is_stale(name: str, size: Size, record: Record, device: torch.device) -> bool:
    """Whether the task has another network, loss or data than when the run was recorded.

    It shows in the loss of the first batch. Where the data is not installed, the record is taken as it is.
    """
    if not record["losses"]:
        return False
    try:
        now = _first_loss(name, size, record["seed"], device)
    except DataMissingError:
        return False
    except Exception:  # a user's code may raise anything; the run that follows says what
        return True
    return not math.isclose(now, record["losses"][0], rel_tol=1e-4, abs_tol=1e-7)  # which has five digits


@dataclass(frozen=True)
class Job:
    """One run of a comparison, in plain values.

    Args:
        task: name of the task, or `module:function`.
        size: of the task.
        optimizer: name of the optimizer, with options.
        setting: where its hyperparameters come from.
        seed: of weights and batches.
        steps: of the run.
        repetition: 0 for the run; n for the n-th time that it is trained once more, for its seconds alone.
        checkpoints: where the run's is, None for a run that has none; not part of which run it is.
        capture: whether the model's passes are replayed from graphs of CUDA; not part of it either.
    """

    task: str
    size: Size
    optimizer: str
    setting: Setting
    seed: int
    steps: int
    repetition: int = 0
    checkpoints: Checkpoints | None = field(default=None, compare=False)
    capture: bool = field(default=False, compare=False)

    @property
    def title(self) -> str:
        """What messages call it."""
        chosen = "" if self.setting == "transferred" else f", {self.setting}"
        again = f", once more ({self.repetition})" if self.repetition else ""
        return f"{self.task} · {self.optimizer}{chosen} · seed {self.seed}{again}"

    def key(self) -> list[Any]:
        """What identifies the run in its record."""
        task, contender = find_task(self.task, self.size), find_contender(self.optimizer)
        return key(task, contender, self.setting, self.seed, self.steps, self.repetition)

    def matches(self, record: Record, settings: dict[str, Any]) -> bool:
        """Whether a record is of this very run, with the same settings."""
        recorded = record.get("settings")
        return (
            record.get("key") == self.key()
            and isinstance(recorded, dict)
            and comparable(recorded) == comparable(settings)
        )

    def renamed(self, record: Record) -> Record:
        """The record of this run, made of one with the same settings that was found under another setting's name.

        Where tuning finds nothing better than the transferred settings, the two are one run.
        """
        return {**record, "setting": self.setting, "key": self.key()}

    def settings(self) -> dict[str, Any]:
        """The settings that the optimizer gets; raises what :meth:`Contender.build` raises."""
        return describe(find_task(self.task, self.size), find_contender(self.optimizer), self.setting, self.steps)

    def run(self, device: torch.device, watch: Watcher) -> Record:
        """Train; from the checkpoint on if there is one, which stays until its caller has kept the record."""
        task, contender = find_task(self.task, self.size), find_contender(self.optimizer)
        data = task.load().to(device)
        which = (self.setting, self.checkpoints, self.repetition)
        return train(task, contender, self.seed, self.steps, data, watch, *which, capture=self.capture)


def jobs_for(
    tasks: Sequence[str],
    size: Size,
    optimizers: Sequence[str],
    settings: Sequence[Setting],
    seeds: int,
    steps: int | None = None,
    epochs: float | None = None,
    repeat: int = 1,
) -> list[Job]:
    """Every run, seed by seed and task by task, so that what is finished at any time is comparable.

    An optimizer `name@setting` is run in that setting alone, the others in each of `settings`. With `repeat` the runs
    of the first seed are there so many times, the repetitions after all seeds.

    Raises:
        UsageError: there is no such task, optimizer or setting.
        TaskError: a user's task cannot be used.
    """
    chosen: list[tuple[str, Setting]] = []
    for text in optimizers:
        name, at, only = text.partition("@")
        if at and only not in SETTINGS:
            raise UsageError(f"{text!r}: there is no setting {only!r}, only {', '.join(SETTINGS)}")
        find_contender(name)
        chosen += [(name, setting) for setting in SETTINGS if setting == only or (not at and setting in settings)]
    lengths: dict[str, int] = {}
    for name in tasks:
        task = find_task(name, size)
        lengths[name] = steps or task.steps
        if epochs is not None:  # a batch is never larger than the data
            lengths[name] = max(1, round(epochs * max(1, len(task.load().train[0]) // task.batch_size)))
    times = [(seed, 0) for seed in range(seeds)] + [(0, again) for again in range(1, repeat)]
    return [
        Job(task, size, name, setting, seed, lengths[task], again)
        for (seed, again), task, (name, setting) in product(times, tasks, chosen)
    ]
