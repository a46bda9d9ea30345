"""What the commands share of their arguments: what several of them take, and what it stands for."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jorge.cli import at_least

if TYPE_CHECKING:
    import torch
    from rich.console import Console


def names(text: str) -> list[str]:
    """`a,b` as a list, each name once; a comma inside parentheses is part of a name.

    >>> names("sgd, jorge:betas=(0.9,0.99),sgd")
    ['sgd', 'jorge:betas=(0.9,0.99)']
    """
    return list(dict.fromkeys(name.strip() for name in re.split(r",(?![^(]*\))", text) if name.strip()))


def add_tasks(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Add the tasks and their size."""
    parser.add_argument(
        "tasks",
        nargs="*",
        metavar="TASK",
        default=list(default),
        help="a task of the laboratory (jorge tasks), module:function of your own (docs/guide/own-tasks.md), or all; "
        f"default: {' '.join(default)}",
    )
    parser.add_argument(
        "--size",
        choices=("smoke", "small", "full"),
        default="small",
        help="first-order training of seconds, up to about a minute (default), up to an hour or two",
    )


def add_optimizers(parser: argparse.ArgumentParser, explained: str) -> None:
    """Add the optimizers; `explained` is what may stand for them."""
    parser.add_argument(
        "--optimizers", default="jorge,sgd,adamw,shampoo", metavar="A,B,…", help=f"{explained} (default: %(default)s)"
    )


def add_out(parser: argparse.ArgumentParser, default: str = "runs", explained: str = "") -> None:
    """Add the folder that is written to."""
    said = f"{explained}; default: %(default)s" if explained else "default: %(default)s"
    parser.add_argument("--out", type=Path, default=Path(default), metavar="DIR", help=said)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the targets."""
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="[TASK=]LOSS",
        help="smoothed training loss to reach (default: the best of the task's first-order baseline)",
    )


def add_wide(parser: argparse.ArgumentParser) -> None:
    """Add how much of the tables is printed."""
    parser.add_argument(
        "--wide", action="store_true", help="print all columns, not the six that fit a terminal of 80 columns"
    )


def given_targets(given: Sequence[str], records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """`[TASK=]LOSS` as losses by task.

    Raises:
        ValueError: it is no number, or the task is not in the records; the message says so.
    """
    tasks = list(dict.fromkeys(str(record["task"]) for record in records))
    targets = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            loss = float(value)
        except ValueError:
            loss = math.nan
        if not math.isfinite(loss):
            raise ValueError(f"--target takes a loss or TASK=LOSS, got {text!r}")
        if name and name not in tasks:
            raise ValueError(f"--target {text!r}: {name!r} is not among the tasks recorded, {', '.join(tasks)}")
        if not name and len(tasks) > 1:
            raise ValueError(f"--target {text!r}: with several tasks, write TASK={text}")
        targets[name or tasks[0]] = loss
    return targets


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add what a command runs on."""
    parser.add_argument("--threads", type=at_least(1), default=1, metavar="N", help="CPU threads of a run (default: 1)")
    parser.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="runs side by side (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")


def tasks_named(given: Sequence[str]) -> list[str]:
    """Each task once, `all` as the laboratory's."""
    from jorge_lab.tasks import TASKS

    return list(dict.fromkeys(name for word in given for name in (TASKS if word == "all" else [word])))


def train_together(args: argparse.Namespace, run: Callable[[torch.device], int]) -> int:
    """Run a command in the first of the processes that `torchrun` has started, or in the one there is; the exit status.

    The others train along.

    Raises:
        UsageError: several processes, and a batch that does not divide among them, or `--workers`.
    """
    import torch

    from jorge_lab.errors import UsageError
    from jorge_lab.runs.following import follow
    from jorge_lab.runs.team import assembled, check_divides
    from jorge_lab.tasks.finding import find_task

    device = device_named(args.device)
    with assembled(device) as team:
        if team.size > 1:
            tasks = [find_task(name, args.size) for name in tasks_named(args.tasks)]
            for task in tasks:
                check_divides(task.batch_size, team.size, task.name)
            if args.workers > 1:
                raise UsageError("--workers is for one process: under torchrun all processes train each run together")
            torch.set_num_threads(args.threads)
            if not team.first:
                follow(tasks, device)
                return 0
        return run(device)


def optimizers_named(text: str) -> list[str]:
    """Each optimizer once, `all` as the laboratory's."""
    from jorge_lab.contenders import CONTENDERS

    return list(dict.fromkeys(name for word in names(text) for name in (CONTENDERS if word == "all" else [word])))


def console() -> Console:
    """Where commands write; a pipe, which has no width, gets tables in full."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 320)


def device_named(name: str) -> torch.device:
    """The device, which is there; of several processes on a machine each has one of its own, where `cuda` is asked for.

    Raises:
        ValueError: it is not.
    """
    import torch

    try:
        device = torch.device(
            f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name
        )
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device
