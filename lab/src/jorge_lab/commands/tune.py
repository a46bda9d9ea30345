"""`jorge tune`: search the options of each optimizer, with the same effort for all."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from jorge.cli import at_least
from jorge_lab.commands.arguments import (
    add_machine,
    add_optimizers,
    add_out,
    add_tasks,
    optimizers_named,
    tasks_named,
    train_together,
)
from jorge_lab.commands.frame import Command

if TYPE_CHECKING:
    import torch


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_tasks(parser, default=["mnist"])
    add_optimizers(parser, "names, or all")
    parser.add_argument(
        "--trials", type=at_least(1), default=8, metavar="N", help="of each optimizer on each task (default: 8)"
    )
    add_out(parser)
    parser.add_argument(
        "--storage", metavar="URL", help="an Optuna storage URL or a journal file (default: tune.journal in --out)"
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="the same command runs elsewhere, on the same --storage: leave the trials that it has begun to it",
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="FILE",
        help="JSON file for the best, as compare takes it (default: the one that comes with jorge-lab)",
    )
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Tune; the exit status."""
    return train_together(args, partial(_tune, args))


def _tune(args: argparse.Namespace, device: torch.device) -> int:
    from jorge_lab.contenders.finding import find_contender
    from jorge_lab.contenders.tuned import tuned_file
    from jorge_lab.errors import UsageError
    from jorge_lab.tasks.finding import find_task, with_data
    from jorge_lab.tuning.search import open_storage, open_study, study_name
    from jorge_lab.tuning.tuned_file import see_writable, write_tuned
    from jorge_lab.tuning.workers import Share, search

    url = args.storage or str(args.out / "tune.journal")
    tasks = tasks_named(args.tasks)
    optimizers = optimizers_named(args.optimizers)
    if not optimizers:
        raise UsageError("--optimizers is empty")
    storage = open_storage(url)
    tuned = args.tuned or tuned_file()
    see_writable(tuned)
    there = with_data(((name, args.size) for name in tasks), partial(print, file=sys.stderr), needed=True)
    tasks = [name for name in tasks if (name, args.size) in there]
    found, contenders = [find_task(name, args.size) for name in tasks], [find_contender(n) for n in optimizers]
    if averaged := [contender.name for contender in contenders if contender.average]:
        raise UsageError(f"{', '.join(averaged)}: tune without an average; compare takes what is tuned with one, too")
    # What is wrong is said, and every study is there, before workers start.
    for task in found:
        data = task.load().to(device)
        for contender in contenders:
            if contender.missing() is None:
                open_study(task, contender, storage, data)
    try:
        share = Share(tasks, args.size, optimizers, args.trials, url, str(device), args.threads, args.shared)
        search(share, args.workers)
    except KeyboardInterrupt:
        print(f"\nstopped: finished trials are kept in {url}; the same command goes on", file=sys.stderr)
        return 130
    write_tuned(storage, tuned, [study_name(*pair) for pair in product(found, contenders)])
    return 0


COMMAND = Command(
    "tune",
    "search lr and weight decay of each optimizer, with the same effort for all",
    "Search lr and weight decay of each optimizer on each task with Optuna: the same number of trials, within a factor "
    "of 10 of the transferred values each way, with a seed that no comparison uses. Trials are kept, so the command "
    "can be stopped and repeated, and several may share a --storage. The best go where `jorge compare --settings "
    "tuned` reads them.",
    arguments,
    run,
)
