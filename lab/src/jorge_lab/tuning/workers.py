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
        others: whether other commands work on the same storage.
    """

    tasks: Sequence[str]
    size: Size
    optimizers: Sequence[str]
    trials: int
    url: str
    device: str
    threads: int
    others: bool = False


def search(share: Share, workers: int) -> None:
    """Run trials until there are enough, in several processes where `workers` is above 1."""
    if workers > 1:
        context = processes(share.threads)
        started = [context.Process(target=_quietly, args=(share,)) for _ in range(workers)]
        for process in started:
            process.start()
        for process in started:
            process.join()
    if workers == 1 or not share.others:
        work(share, several=share.others)  # alone, or what a process that was killed has begun and not finished


def work(share: Share, several: bool) -> None:
    """Run trials until there are enough; as one of several processes, which have begun some, or alone."""
    torch.set_num_threads(share.threads)
    tune(
        [find_task(name, share.size) for name in share.tasks],
        [find_contender(name) for name in share.optimizers],
        share.trials,
        open_storage(share.url),
        device=torch.device(share.device),
        share=several,
        tell=partial(print, flush=True),
    )


def _quietly(share: Share) -> None:
    """The keyboard's interrupt reaches every process; the parent says what it means."""
    end_with_parent()
    try:
        work(share, several=True)
    except KeyboardInterrupt:
        sys.exit(130)
