"""`jorge compare`: train each optimizer on each task with each seed, keep what is finished, and report."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from jorge_lab.report import page as report
from jorge_lab.runs.jobs import Job, UsageError, find_task, is_stale, prepare_worker, with_data, work, worker_environment
from jorge_lab.contenders import UnsuitableError
from jorge_lab.runs.progress import Counter, progress
from jorge_lab.runs.records import read_file
from jorge_lab.statistics.row import Row
from jorge_lab.runs.run import Record
from jorge_lab.statistics.summary import cells

#: Columns of a terminal from which the table is a row an optimizer.
_WIDE = 240


def open_folder(folder: Path) -> Path:
    """Make the output folder and see that it can be written; the path of the records in it."""
    path = folder / "runs.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to --out {folder}: {error.strerror}. name another folder") from None
    return path


def append_record(path: Path, record: Record) -> None:
    """Add a line, on the disk before the next run starts; a line that was cut off is ended first."""
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(record, separators=(",", ":")) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def compare(
    jobs: Sequence[Job],
    folder: Path,
    targets: Mapping[str, float],
    device: torch.device,
    console: Console,
    workers: int = 1,
) -> int:
    """Run the jobs that are not done, then report on all of them; the exit status.

    0: all are done. 1: a run failed, and the others were done. 130: stopped by the keyboard.

    Raises:
        UsageError: nothing can be run: no optimizer suits, or no data is installed.
    """
    path = open_folder(folder)
    jobs, settings = _suitable(jobs, console)
    twins = _twins(jobs, settings)
    done: dict[Job, Record] = {}
    for record in read_file(path):
        for job in jobs:
            if job.optimizer == record["optimizer"] and job.matches(record, settings[job]):
                done[job] = record
    stale = [job for job, record in done.items() if is_stale(job.task, job.size, record, device)]
    for name in dict.fromkeys(job.task for job in stale):
        console.print(f"{name} has another network, loss or data than the runs in {path}: they are trained again")
    done = {job: record for job, record in done.items() if job not in stale}
    for others in twins.values():
        if known := next((done[other] for other in others if other in done), None):
            _share(known, [other for other in others if other not in done], done, path)
    left = [job for job in jobs if job not in done and job in twins]
    if done:
        console.print(f"{len(done)} of {len(jobs)} runs are in {path} already and are not trained again")
    failed, stopped = 0, False
    try:
        tell = partial(console.print, soft_wrap=True)
        there = with_data(((job.task, job.size) for job in left), tell, needed=not done)
        left = [job for job in left if (job.task, job.size) in there]
        finished = _side_by_side(left, device, console, workers) if workers > 1 else _in_turn(left, device, console)
        for job, outcome in finished:
            if isinstance(outcome, Exception):
                failed += 1
                console.print(f"{job.title}: failed, the others go on. {type(outcome).__name__}: {outcome}")
                continue
            done[job] = outcome  # first: what is interrupted here is in the report, too
            append_record(path, outcome)
            _share(outcome, twins[job][1:], done, path)
            if outcome["diverged_at"]:
                console.print(f"{job.title}: diverged at step {outcome['diverged_at']}, the others go on")
    except KeyboardInterrupt:
        stopped = True
        console.print(f"\nstopped: {len(done)} of {len(jobs)} runs are kept in {path}; the same command goes on")
    if done:
        _report([done[job] for job in jobs if job in done], folder, targets, console)
    return 130 if stopped else int(failed > 0)


def _twins(jobs: Sequence[Job], settings: Mapping[Job, dict[str, object]]) -> dict[Job, list[Job]]:
    """Jobs that are one run under the names of several settings, by the first of them, which is among them."""
    found: dict[tuple[Job, str], list[Job]] = {}
    for job in jobs:
        same = replace(job, setting="transferred"), json.dumps(settings[job], sort_keys=True)
        found.setdefault(same, []).append(job)
    return {same[0]: same for same in found.values()}


def _share(record: Record, jobs: Iterable[Job], done: dict[Job, Record], path: Path) -> None:
    for job in jobs:
        done[job] = job.renamed(record)
        append_record(path, done[job])


def _suitable(jobs: Iterable[Job], console: Console) -> tuple[list[Job], dict[Job, dict[str, object]]]:
    """The jobs that can be run, with their settings; a line for each optimizer that cannot be."""
    known: dict[tuple[str, str, str], dict[str, object] | None] = {}
    said: set[str] = set()
    kept: dict[Job, dict[str, object]] = {}
    for job in jobs:
        what = (job.task, job.optimizer, job.setting)
        if what not in known:
            try:
                known[what] = job.settings()
            except (ModuleNotFoundError, LookupError, UnsuitableError) as error:
                known[what] = None
                reason = error.args[0] if isinstance(error, KeyError) else error
                if str(reason) not in said:
                    console.print(f"left out: {reason}", soft_wrap=True)
                    said.add(str(reason))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{job.optimizer}: {error}") from None
        found = known[what]
        if found is not None:
            kept[job] = found
    if not kept:
        raise UsageError("nothing is left to run")
    return list(kept), kept


def _in_turn(jobs: Sequence[Job], device: torch.device, console: Console) -> Iterator[tuple[Job, Record | Exception]]:
    """One run after the other in this process, shown step by step."""
    with progress(console, len(jobs)) as watch:
        for job in jobs:
            with watch(job.title, job.steps, find_task(job.task, job.size).metric[0]) as step:
                try:
                    outcome: Record | Exception = job.run(device, step)
                except Exception as error:  # an opponent's fault must not cost what is still to be run
                    outcome = error
            yield job, outcome


def _side_by_side(
    jobs: Sequence[Job], device: torch.device, console: Console, workers: int
) -> Iterator[tuple[Job, Record | Exception]]:
    """Some runs at a time, each in a process; as they finish."""
    threads = torch.get_num_threads()
    worker_environment(threads)
    context = multiprocessing.get_context("spawn")  # a fork of a process whose torch has threads may hang
    pool = ProcessPoolExecutor(workers, context, prepare_worker, (threads,))
    counter = Counter(console, len(jobs))
    futures: dict[Future[Record], Job] = {}
    try:
        for job in jobs:
            futures[pool.submit(work, job, str(device))] = job
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


def _report(records: Sequence[Record], folder: Path, targets: Mapping[str, float], console: Console) -> None:
    for title, rows, answer in report.tables(records, targets):
        console.print()
        console.print(_table(title, rows, across=console.width >= _WIDE))
        console.print(answer)
    page = report.write(records, folder, "jorge " + shlex.join(sys.argv[1:]), targets)
    console.print(f"\nreport: {page}\ntable:  {folder / 'summary.csv'}", soft_wrap=True)


def _table(title: str, rows: Sequence[Row], *, across: bool) -> Table:
    """A row an optimizer, or on a narrow terminal a column an optimizer."""
    table = Table(title=title, title_justify="left", title_style="bold")
    shown = [cells(row) for row in rows]
    lines = [list(shown[0]), *(list(row.values()) for row in shown)]
    if not across:
        lines = [list(line) for line in zip(*lines, strict=True)]
    for i, heading in enumerate(lines[0]):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for line in lines[1:]:
        table.add_row(*line)
    return table
