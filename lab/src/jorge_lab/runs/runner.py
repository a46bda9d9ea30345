"""The runner: jobs one after the other or side by side, each kept in a store as soon as it is done."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

import torch
from rich.console import Console

from jorge.errors import place_of, said
from jorge_lab.runs.progress import Counter, progress
from jorge_lab.runs.run import Watcher
from jorge_lab.runs.store import Record, Store
from jorge_lab.runs.workers import prepare_worker, processes
from jorge_lab.tasks.finding import find_task, with_data
from jorge_lab.tasks.task import Size


class Job(Protocol):
    """What can be done: a run of a task, in plain values that another process understands."""

    @property
    def task(self) -> str:
        """Name of the task, or `module:function`."""
        ...

    @property
    def size(self) -> Size:
        """Of the task."""
        ...

    @property
    def steps(self) -> int:
        """Of the run."""
        ...

    @property
    def title(self) -> str:
        """What messages call it."""
        ...

    def run(self, device: torch.device, watch: Watcher) -> Record:
        """Do it; the record has `diverged_at`, a step or None."""
        ...

    def __hash__(self) -> int: ...


J = TypeVar("J", bound=Job)


def do(
    left: Sequence[J],
    done: dict[J, Record],
    total: int,
    store: Store,
    device: torch.device,
    console: Console,
    workers: int,
    kept: Callable[[J, Record], Mapping[J, Record]] = lambda job, record: {job: record},
    stored: Callable[[J], None] = lambda job: None,
) -> int:
    """Do the jobs that are left, and keep their records; the exit status.

    0: all are done. 1: one failed, and the others were done. 130: stopped by the keyboard.

    Args:
        left: what is to be done; a job whose data is not installed is told and left out.
        done: the records by job, to which those of the jobs are added.
        total: how many jobs there are, done ones among them.
        store: where a record is kept as soon as there is one.
        device: to run on.
        console: is told what happens.
        workers: jobs at a time; more than one have a process each.
        kept: the records that a job's record is kept as, by job; by itself alone if not given.
        stored: is told of a job when its record is in the store.

    Raises:
        UsageError: no job's data is installed, and none is done.
    """
    if done:
        console.print(f"{len(done)} of {total} runs are in {store.path} already and are not trained again")
    there = with_data(((job.task, job.size) for job in left), partial(console.print, soft_wrap=True), needed=not done)
    left = [job for job in left if (job.task, job.size) in there]
    failed = False
    try:
        for job, outcome in (_side_by_side if workers > 1 else _in_turn)(left, device, console, workers):
            if isinstance(outcome, Exception):
                failed = True
                console.print(f"{job.title}: failed, the others go on. {said(outcome)}", soft_wrap=True)
                continue
            found = kept(job, outcome)
            done.update(found)  # first: what is interrupted here is in the report, too
            for record in found.values():
                store.add(record)
            stored(job)
            if outcome["diverged_at"]:
                console.print(f"{job.title}: diverged at step {outcome['diverged_at']}, the others go on")
    except KeyboardInterrupt:
        console.print(f"\nstopped: {len(done)} of {total} runs are kept in {store.path}; the same command goes on")
        return 130
    return int(failed)


def _in_turn(
    jobs: Sequence[J], device: torch.device, console: Console, _: int
) -> Iterator[tuple[J, Record | Exception]]:
    """One after the other in this process, shown step by step."""
    with progress(console, len(jobs)) as watch:
        for job in jobs:
            with watch(job.title, job.steps, find_task(job.task, job.size).metric[0]) as step:
                try:
                    outcome: Record | Exception = _run(job, device, step)
                except Exception as error:  # an opponent's fault must not cost what is still to be run
                    outcome = error
            yield job, outcome


def _side_by_side(
    jobs: Sequence[J], device: torch.device, console: Console, workers: int
) -> Iterator[tuple[J, Record | Exception]]:
    """Some at a time, each in a process; as they finish."""
    threads = torch.get_num_threads()
    pool = ProcessPoolExecutor(workers, processes(threads), prepare_worker, (threads,))
    counter = Counter(console, len(jobs))
    futures: dict[Future[Record], J] = {}
    try:
        for job in jobs:
            futures[pool.submit(_work, job, str(device))] = job
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            counter.finished(futures[future].title)
            yield futures[future], future.result() if error is None else error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _work(job: Job, device: str) -> Record:
    return _run(job, torch.device(device), lambda *_: None)


def _run(job: Job, device: torch.device, watch: Watcher) -> Record:
    """Do a job; an error that a user's code raised has its file and line along, for other processes too."""
    try:
        return job.run(device, watch)
    except Exception as error:
        with suppress(AttributeError):  # an error may have no room
            error.place = place_of(error)  # type: ignore[attr-defined]
        raise
