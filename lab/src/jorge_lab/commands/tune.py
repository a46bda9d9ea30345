"""`jorge tune`: its options, and the processes that share the trials."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from jorge_lab.commands.arguments import (
    add_machine,
    add_tasks,
    at_least,
    device_named,
    optimizers_named,
    said_missing,
    tasks_named,
)
from jorge_lab.errors import LabError

if TYPE_CHECKING:
    from jorge_lab.tasks.task import Size


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "tune",
        help="search lr and weight decay of each optimizer, with the same effort for all",
        description="Search lr and weight decay of each optimizer on each task with Optuna: the same number of "
        "trials, within a factor of 10 of the transferred values each way, with a seed that no comparison uses. "
        "Trials are kept, so the command can be stopped and repeated, and several may share a --storage. The best go "
        "where `jorge compare --settings tuned` reads them.",
    )
    add_tasks(parser, default=["mnist"])
    parser.add_argument(
        "--optimizers", default="jorge,sgd,adamw,shampoo", metavar="A,B,…", help="names, or all (default: %(default)s)"
    )
    parser.add_argument(
        "--trials", type=at_least(1), default=8, metavar="N", help="of each optimizer on each task (default: 8)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--storage", metavar="URL", help="an Optuna storage URL or a journal file (default: tune.journal in --out)"
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="FILE",
        help="JSON file for the best, as compare takes it (default: the one that comes with jorge)",
    )
    add_machine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune; the exit status."""
    try:
        from jorge_lab.runs.jobs import UsageError, find_contender, find_task, with_data
        from jorge_lab.contenders.tuned import tuned_file
        from jorge_lab.tuning.tuned_file import see_writable, write_tuned
        from jorge_lab.tuning.search import open_storage, open_study, study_name
    except ModuleNotFoundError as error:
        raise SystemExit(said_missing(error)) from None
    url = args.storage or str(args.out / "tune.journal")
    try:
        tasks = tasks_named(args.tasks)
        optimizers = optimizers_named(args.optimizers)
        if not optimizers:
            raise UsageError("--optimizers is empty")
        device = device_named(args.device)
        storage = open_storage(url)
        tuned = args.tuned or tuned_file()
        see_writable(tuned)
        there = with_data(((name, args.size) for name in tasks), partial(print, file=sys.stderr), needed=True)
        tasks = [name for name in tasks if (name, args.size) in there]
        found, contenders = [find_task(name, args.size) for name in tasks], [find_contender(n) for n in optimizers]
        # What is wrong is said, and every study is there, before workers start.
        for task in found:
            data = task.load().to(device)
            for contender in contenders:
                if contender.missing() is None:
                    open_study(task, contender, storage, data)
        try:
            if args.workers > 1:
                _side_by_side(tasks, args.size, optimizers, args.trials, url, args.device, args.threads, args.workers)
            # Alone, or what a worker that was killed has begun and not finished.
            work(tasks, args.size, optimizers, args.trials, url, args.device, args.threads)
        except KeyboardInterrupt:
            print(f"\nstopped: finished trials are kept in {url}; the same command goes on", file=sys.stderr)
            return 130
        write_tuned(storage, tuned, [study_name(*pair) for pair in product(found, contenders)])
    except (LabError, ValueError, OSError) as error:
        print(f"jorge tune: {error}", file=sys.stderr)
        return 2
    return 0


def work(
    tasks: Sequence[str],
    size: Size,
    optimizers: Sequence[str],
    trials: int,
    url: str,
    device: str,
    threads: int,
    worker: int | None = None,
) -> None:
    """Run trials until there are enough; as one of several processes where `worker` is its number, from 1."""
    import torch

    from jorge_lab.runs.jobs import find_contender, find_task
    from jorge_lab.tuning.search import open_storage, tune

    torch.set_num_threads(threads)
    tune(
        [find_task(name, size) for name in tasks],
        [find_contender(name) for name in optimizers],
        trials,
        open_storage(url),
        device=torch.device(device),
        worker=worker or 0,
        share=worker is not None,
        tell=lambda line: print(line, flush=True),
    )


def _side_by_side(
    tasks: Sequence[str],
    size: Size,
    optimizers: Sequence[str],
    trials: int,
    url: str,
    device: str,
    threads: int,
    workers: int,
) -> None:
    from jorge_lab.runs.jobs import worker_environment

    worker_environment(threads)
    context = multiprocessing.get_context("spawn")  # a fork of a process whose torch has threads may hang
    processes = [
        context.Process(target=_quietly, args=(tasks, size, optimizers, trials, url, device, threads, number))
        for number in range(1, workers + 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _quietly(*arguments: object) -> None:
    """The keyboard's interrupt reaches every worker; the parent says what it means."""
    from jorge_lab.runs.jobs import end_with_parent

    end_with_parent()
    try:
        work(*arguments)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        sys.exit(130)
