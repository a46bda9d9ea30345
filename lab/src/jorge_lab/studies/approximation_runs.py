"""The runs behind the ablation `error`: each method on each task with each seed, those that are finished kept."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from jorge_lab.studies.approximation import OPTIMIZERS, follow, key
from jorge_lab.runs.compare import append_record
from jorge_lab.runs.jobs import UsageError, find_contender, find_task, prepare_worker, with_data, worker_environment
from jorge_lab.runs.progress import progress
from jorge_lab.runs.records import Record
from jorge_lab.runs.run import describe
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
        return bool(record["settings"] == describe(task, find_contender(self.optimizer), "transferred", self.steps))


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
    """Do the runs that are not in the folder yet; the records of all that are done, and the exit status.

    The status is 0 where all are done, 1 where one failed and the others were done, and 130 where the keyboard stopped
    them.

    Raises:
        UsageError: the folder cannot be written, or no task's data is installed.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UsageError(f"cannot write to --out {folder}: {error.strerror}. name another folder") from None
    done = {run: record for record in _read(path) for run in runs if run.matches(record)}
    left = [run for run in runs if run not in done]
    if done:
        console.print(f"{len(done)} of {len(runs)} runs are in {path} already and are not trained again")
    tell = partial(console.print, soft_wrap=True)
    there = with_data(((run.task, run.size) for run in left), tell, needed=not done)
    left = [run for run in left if (run.task, run.size) in there]
    status = 0
    finished = _side_by_side(left, device, workers) if workers > 1 else _in_turn(left, device, console)
    try:
        for run, outcome in finished:
            if isinstance(outcome, Exception):
                status = 1
                console.print(f"{run.title}: failed, the others go on. {type(outcome).__name__}: {outcome}")
                continue
            append_record(path, outcome)
            done[run] = outcome
            came = f"diverged at step {outcome['diverged_at']}" if outcome["diverged_at"] else "done"
            console.print(f"{run.title}: {came}, {len(done)} of {len(runs)} runs")
    except KeyboardInterrupt:
        status = 130
        console.print(f"\nstopped: {len(done)} of {len(runs)} runs are kept in {path}; the same command goes on")
    return [done[run] for run in runs if run in done], status


def _read(path: Path) -> list[Record]:
    """The records of a file; a line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _in_turn(runs: Sequence[Run], device: torch.device, console: Console) -> Iterator[tuple[Run, Record | Exception]]:
    with progress(console, len(runs)) as watch:
        for run in runs:
            task = find_task(run.task, run.size)
            with watch(run.title, run.steps, task.metric[0]) as step:
                try:
                    data = task.load().to(device)
                    outcome: Record | Exception = follow(task, run.optimizer, run.seed, run.steps, data, step)
                except Exception as error:  # what is still to be run is not to be lost
                    outcome = error
            yield run, outcome


def _side_by_side(runs: Sequence[Run], device: torch.device, workers: int) -> Iterator[tuple[Run, Record | Exception]]:
    """Some runs at a time, each in a process; as they finish."""
    threads = torch.get_num_threads()
    worker_environment(threads)
    context = multiprocessing.get_context("spawn")  # a fork of a process whose torch has threads may hang
    pool = ProcessPoolExecutor(workers, context, prepare_worker, (threads,))
    try:
        futures = {pool.submit(_work, run, str(device)): run for run in runs}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield futures[future], future.result() if error is None else error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _work(run: Run, device: str) -> Record:
    task = find_task(run.task, run.size)
    return follow(task, run.optimizer, run.seed, run.steps, task.load().to(torch.device(device)))
