"""The runs behind the ablation `error`: each method on each task with each seed, those that are finished kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from jorge_lab.contenders import comparable
from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.run import Watcher, describe
from jorge_lab.runs.runner import do
from jorge_lab.runs.store import Record, Store
from jorge_lab.studies.approximation import OPTIMIZERS, follow, key
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Size

#: The file of the records in an output folder, a line a run.
FILE = "approximation.jsonl"


@dataclass(frozen=True)
class Run:
    """One run, in plain values that another process understands."""

    task: str
    size: Size
    optimizer: str
    seed: int
    steps: int

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.task} · {self.optimizer} · seed {self.seed}"

    def matches(self, record: Record) -> bool:
        """Whether a record is of this very run, with the same settings."""
        task = find_task(self.task, self.size)
        if record.get("key") != key(task, self.optimizer, self.seed, self.steps):
            return False
        now = describe(task, find_contender(self.optimizer), "transferred", self.steps)
        return comparable(record["settings"]) == comparable(now)

    def run(self, device: torch.device, watch: Watcher) -> Record:
        """Train and measure."""
        task = find_task(self.task, self.size)
        return follow(task, self.optimizer, self.seed, self.steps, task.load().to(device), watch)


def runs_for(tasks: Sequence[str], size: Size, seeds: int, steps: int | None) -> list[Run]:
    """Every run, seed by seed and task by task.

    Raises:
        UsageError: there is no such task.
        TaskError: a user's task cannot be used.
    """
    lengths = {name: steps or find_task(name, size).steps for name in tasks}
    return [
        Run(name, size, optimizer, seed, lengths[name])
        for seed, name, optimizer in product(range(seeds), tasks, OPTIMIZERS)
    ]


def measure(
    runs: Sequence[Run], folder: Path, device: torch.device, console: Console, workers: int = 1
) -> tuple[list[Record], int]:
    """Do the runs that are not in the folder yet; the records of all that are done, and the runner's exit status.

    Raises:
        UsageError: the folder cannot be written, or no task's data is installed.
    """
    store = Store.open(folder, FILE)
    done = {run: record for record in store.read() for run in runs if run.matches(record)}
    left = [run for run in runs if run not in done]
    status = do(left, done, len(runs), store, device, console, workers)
    return [done[run] for run in runs if run in done], status
