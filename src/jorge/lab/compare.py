"""`jorge compare`: train each optimizer on each task with each seed, keep what is finished, and report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from jorge.lab import report
from jorge.lab.contenders import CONTENDERS, Contender
from jorge.lab.progress import progress
from jorge.lab.run import Record, describe, key, train
from jorge.lab.summary import Row, cells, markdown, summarize, write_csv
from jorge.lab.task import DataMissingError, Task

#: Columns of a terminal from which the table is a row an optimizer.
_WIDE = 150


class UsageError(Exception):
    """Something that the caller asked for cannot be done; the message says what to do."""


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    task: Task
    contender: Contender
    seed: int
    steps: int

    def matches(self, record: Record, settings: dict[str, object]) -> bool:
        """Whether a record is of this very run, with the same settings."""
        wanted = key(self.task, self.contender, self.seed, self.steps)
        return bool(record["key"] == wanted and record["settings"] == settings)


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


def read_records(path: Path) -> list[Record]:
    """The records of earlier runs; a last line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "key" in record and "settings" in record:
            records.append(record)
    return records


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
    jobs: Sequence[Job], folder: Path, targets: dict[str, float], device: torch.device, console: Console
) -> int:
    """Run the jobs that are not done, then report on all of them; the exit status."""
    path = open_folder(folder)
    earlier = read_records(path)
    settings = {
        (job.task.name, job.contender.name): describe(job.task, job.contender, job.steps)
        for job in {(job.task.name, job.contender.name): job for job in jobs}.values()
    }
    done: dict[Job, Record] = {}
    for job in jobs:
        wanted = settings[job.task.name, job.contender.name]
        for record in earlier:
            if job.matches(record, wanted):
                done[job] = record
    if done:
        console.print(f"{len(done)} of {len(jobs)} runs are in {path} already and are not trained again")
    stopped = False
    try:
        data = {task.name: task.load().to(device) for task in {job.task.name: job.task for job in jobs}.values()}
        with progress(console, len(jobs) - len(done)) as watch:
            for job in jobs:
                if job in done:
                    continue
                title = f"{job.task.name} · {job.contender.name} · seed {job.seed}"
                with watch(title, job.steps, job.task.metric[0]) as step:
                    record = train(job.task, job.contender, job.seed, job.steps, data[job.task.name], step)
                append_record(path, record)
                done[job] = record
                if record["diverged_at"]:
                    console.print(f"{title}: diverged at step {record['diverged_at']}, the others go on")
    except DataMissingError as error:
        raise UsageError(str(error)) from None
    except KeyboardInterrupt:
        stopped = True
        console.print(f"\nstopped: {len(done)} of {len(jobs)} runs are kept in {path}; the same command goes on")
    if done:
        _report([(job, done[job]) for job in jobs if job in done], folder, targets, console)
    return 130 if stopped else 0


def _report(done: Iterable[tuple[Job, Record]], folder: Path, targets: dict[str, float], console: Console) -> None:
    by_task: dict[str, tuple[Task, list[Record]]] = {}
    for job, record in done:
        by_task.setdefault(job.task.name, (job.task, []))[1].append(record)
    sections: list[report.Section] = []
    rows: list[Row] = []
    for name, (task, records) in by_task.items():
        section = report.Section(task, records, summarize(task, records, targets.get(name)), targets.get(name))
        sections.append(section)
        rows += section.rows
        console.print()
        console.print(_table(section, across=console.width >= _WIDE))
        console.print(report.answer(section))
    write_csv(rows, folder / "summary.csv")
    pages = [f"## {s.task.title}\n\n{markdown(s.rows, s.task)}\n{report.answer(s)}\n" for s in sections]
    (folder / "summary.md").write_text("\n".join(pages), encoding="utf-8")
    page = report.write(sections, folder, "jorge " + shlex.join(sys.argv[1:]))
    console.print(f"\nreport: {page}\ntable:  {folder / 'summary.csv'}", soft_wrap=True)


def _table(section: report.Section, *, across: bool) -> Table:
    """A row an optimizer, or on a narrow terminal a column an optimizer."""
    table = Table(title=section.task.title, title_justify="left", title_style="bold")
    shown = [cells(row, section.task) for row in section.rows]
    lines = [list(shown[0]), *(list(row.values()) for row in shown)]
    if not across:
        lines = [list(line) for line in zip(*lines, strict=True)]
    for i, heading in enumerate(lines[0]):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for line in lines[1:]:
        table.add_row(*line)
    return table


def jobs_for(
    tasks: Sequence[Task], optimizers: Sequence[str], seeds: int, steps: int | None, epochs: float | None
) -> list[Job]:
    """Every run, seed by seed, so that what is finished at any time is comparable."""
    jobs = []
    for task in tasks:
        length = steps or task.steps
        if epochs is not None:
            length = max(1, round(epochs * (len(task.load().train[0]) // task.batch_size)))
        jobs += [Job(task, CONTENDERS[name], seed, length) for seed in range(seeds) for name in optimizers]
    return jobs
