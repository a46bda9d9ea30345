"""What the commands share of their arguments: kinds of values, and what several of them take."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from rich.console import Console


def at_least(least: int) -> Callable[[str], int]:
    """A kind of argument: a whole number of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return parse


def above_zero(text: str) -> float:
    """A kind of argument: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


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
        help="a task of the laboratory (jorge tasks), module:function of your own (docs/own-tasks.md), or all; "
        f"default: {' '.join(default)}",
    )
    parser.add_argument(
        "--size",
        choices=("smoke", "small", "full"),
        default="small",
        help="first-order training of seconds, up to about a minute (default), up to an hour or two",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add what a command runs on."""
    parser.add_argument("--threads", type=at_least(1), default=1, metavar="N", help="CPU threads of a run (default: 1)")
    parser.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="runs side by side (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")


def tasks_named(given: Sequence[str]) -> list[str]:
    """Each task once, `all` as the laboratory's."""
    from jorge_lab.tasks import TASKS

    return list(dict.fromkeys(name for word in given for name in (TASKS if word == "all" else [word])))


def optimizers_named(text: str) -> list[str]:
    """Each optimizer once, `all` as the laboratory's."""
    from jorge_lab.contenders import CONTENDERS

    return list(dict.fromkeys(name for word in names(text) for name in (CONTENDERS if word == "all" else [word])))


def console() -> Console:
    """Where commands write; a pipe, which has no width, gets tables in full."""
    try:
        from rich.console import Console
    except ModuleNotFoundError as error:
        raise SystemExit(said_missing(error)) from None
    return Console(highlight=False, width=None if sys.stdout.isatty() else 320)


def said_missing(error: ModuleNotFoundError) -> str:
    """What to say where the packages of the laboratory are not installed."""
    extra = "this command needs the extra packages of the laboratory: pip install '.[lab]' in Jorge's folder"
    return f"jorge: {error.name} is not installed; {extra}"


def device_named(name: str) -> torch.device:
    """The device, which is there.

    Raises:
        ValueError: it is not.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device
