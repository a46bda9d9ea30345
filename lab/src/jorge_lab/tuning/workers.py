"""The processes that share the trials of a search."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.workers import end_with_parent, processes
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Size
from jorge_lab.tuning.search import open_storage, tune


@dataclass(frozen=True)
class Share:
    """What every process is told, in plain values.

    Args:
        tasks: names of the tasks.
        size: of each.
        optimizers: names of what is tuned.
        trials: of each on each task in all.
        url: of the storage.
        device: to train on.
        threads: of each process.
    """

    tasks: Sequence[str]
    size: Size
    optimizers: Sequence[str]
    trials: int
    url: str
    device: str
    threads: int


def search(share: Share, workers: int) -> None:
    """Run trials until there are enough, in several processes where `workers` is above 1."""
    if workers > 1:
        context = processes(share.threads)
        started = [context.Process(target=_quietly, args=(share, number)) for number in range(1, workers + 1)]
        for process in started:
            process.start()
        for process in started:
            process.join()
    work(share)  # alone, or what a process that was killed has begun and not finished


def work(share: Share, worker: int | None = None) -> None:
    """Run trials until there are enough; as one of several processes where `worker` is its number, from 1."""
    torch.set_num_threads(share.threads)
    tune(
        [find_task(name, share.size) for name in share.tasks],
        [find_contender(name) for name in share.optimizers],
        share.trials,
        open_storage(share.url),
        device=torch.device(share.device),
        worker=worker or 0,
        share=worker is not None,
        tell=partial(print, flush=True),
    )


def _quietly(share: Share, worker: int) -> None:
    """The keyboard's interrupt reaches every process; the parent says what it means."""
    end_with_parent()
    try:
        work(share, worker)
    except KeyboardInterrupt:
        sys.exit(130)
