"""The runs of a comparison that are not done yet: which they are, and all of them done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from jorge_lab.contenders import UnsuitableError
from jorge_lab.errors import UsageError
from jorge_lab.runs.checkpoints import Checkpoints
from jorge_lab.runs.jobs import Job, is_stale
from jorge_lab.runs.records import usable
from jorge_lab.runs.resuming import see_checkpoints
from jorge_lab.runs.runner import do
from jorge_lab.runs.store import Record, Store

#: The file of the records in an output folder.
FILE = "runs.jsonl"


def open_records(folder: Path) -> Store:
    """The records of a comparison in an output folder.

    Raises:
        UsageError: the folder cannot be written.
    """
    return Store.open(folder, FILE)


def train_all(
    jobs: Sequence[Job],
    store: Store,
    device: torch.device,
    console: Console,
    workers: int = 1,
    checkpoints: Checkpoints | None = None,
    capture: bool = False,
) -> tuple[list[Record], int]:
    """Do the jobs that are not done; the records of all that are, in order, and the exit status of the runner.

    Args:
        jobs: the runs.
        store: of their records.
        device: to run on.
        console: is told what happens.
        workers: runs side by side.
        checkpoints: from which runs that were cut off go on; None: they begin again.
        capture: whether the models' passes are replayed from graphs of CUDA.

    Raises:
        UsageError: nothing can be run: no optimizer suits, or no data is installed.
    """
    jobs, settings = _suitable([replace(job, checkpoints=checkpoints, capture=capture) for job in jobs], console)
    twins = _twins(jobs, settings)
    done: dict[Job, Record] = {}
    for record in filter(usable, store.read()):
        for job in jobs:
            if job.optimizer == record["optimizer"] and job.matches(record, settings[job]):
                done[job] = record
    stale = [job for job, record in done.items() if is_stale(job.task, job.size, record, device)]
    for name in dict.fromkeys(job.task for job in stale):
        console.print(f"{name} has another network, loss or data than the runs in {store.path}: they are trained again")
    done = {job: record for job, record in done.items() if job not in stale}
    for others in twins.values():
        if known := next((done[other] for other in others if other in done), None):
            for other in others:
                if other not in done:
                    done[other] = other.renamed(known)
                    store.add(done[other])

    def kept(job: Job, record: Record) -> dict[Job, Record]:
        return {job: record} | {twin: twin.renamed(record) for twin in twins[job][1:]}

    def stored(job: Job) -> None:
        for twin in twins[job]:
            _remove_checkpoint(twin)

    for job in done:  # a command may have been cut off when the record was kept, and its checkpoint not yet removed
        _remove_checkpoint(job)
    left = [job for job in jobs if job not in done and job in twins]
    see_checkpoints(left, settings, device, console)
    status = do(left, done, len(jobs), store, device, console, workers, kept, stored)
    return [done[job] for job in jobs if job in done], status


def _remove_checkpoint(job: Job) -> None:
    if job.checkpoints is not None:
        job.checkpoints.remove(job.key())


def _twins(jobs: Sequence[Job], settings: Mapping[Job, dict[str, object]]) -> dict[Job, list[Job]]:
    """Jobs that are one run under the names of several settings, by the first of them, which is among them."""
    found: dict[tuple[Job, str], list[Job]] = {}
    for job in jobs:
        same = replace(job, setting="transferred"), json.dumps(settings[job], sort_keys=True)
        found.setdefault(same, []).append(job)
    return {same[0]: same for same in found.values()}


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
