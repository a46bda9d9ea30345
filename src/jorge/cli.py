"""The command `jorge`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import jorge

_EXTRA = "this command needs the extra packages of the laboratory: pip install 'jorge[lab]'"


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return parse


def _epochs(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jorge", description="Second-order optimization without inverses.")
    parser.add_argument("--version", action="version", version=f"jorge {jorge.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="train one model with several optimizers: which reaches the target first, and at what cost?",
        description="Train the same model from the same weights on the same batches with each optimizer, and report "
        "which reaches the target first, in steps and in seconds. Runs that are finished are kept in --out and not "
        "trained again, so the command can be stopped and repeated.",
    )
    compare.add_argument("tasks", nargs="*", metavar="TASK", default=["mnist"], help="mnist (default), shakespeare")
    compare.add_argument(
        "--optimizers", default="jorge,sgd,adamw,shampoo", metavar="A,B,…", help="default: %(default)s"
    )
    compare.add_argument("--seeds", type=_at_least(1), default=1, metavar="N", help="seeds 0 … N-1 (default: 1)")
    compare.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    length = compare.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_at_least(1), metavar="N", help="optimizer steps (default: the task's)")
    length.add_argument("--epochs", type=_epochs, metavar="X", help="passes over the training data instead of steps")
    compare.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="[TASK=]LOSS",
        help="smoothed training loss to reach (default: the best of the task's first-order baseline)",
    )
    compare.add_argument("--threads", type=_at_least(1), default=1, metavar="N", help="CPU threads (default: 1)")
    compare.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    return parser


def _targets(given: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
    from jorge.lab.compare import UsageError

    targets = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            loss = float(value)
        except ValueError:
            loss = math.nan
        if not math.isfinite(loss):
            raise UsageError(f"--target takes a loss or TASK=LOSS, got {text!r}")
        if name and name not in tasks:
            raise UsageError(f"--target {text!r}: {name!r} is not among the tasks compared, {', '.join(tasks)}")
        if not name and len(tasks) > 1:
            raise UsageError(f"--target {text!r}: with several tasks, write TASK={text}")
        targets[name or tasks[0]] = loss
    return targets


def _compare(args: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from jorge.lab import compare
        from jorge.lab.contenders import CONTENDERS
        from jorge.lab.task import DataMissingError
        from jorge.lab.tasks import TASKS
    except ModuleNotFoundError as error:
        raise SystemExit(f"jorge: {error.name} is not installed; {_EXTRA}") from None
    try:
        names = list(dict.fromkeys(args.tasks))
        chosen = list(dict.fromkeys(name.strip() for name in args.optimizers.split(",") if name.strip()))
        for kind, wanted, known in (("task", names, TASKS), ("optimizer", chosen, CONTENDERS)):
            for name in wanted:
                if name not in known:
                    raise compare.UsageError(f"unknown {kind} {name!r}: there are {', '.join(known)}")
        if not chosen:
            raise compare.UsageError(f"--optimizers is empty: choose among {', '.join(CONTENDERS)}")
        device = _device(args.device)
        torch.set_num_threads(args.threads)
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        compare.open_folder(args.out)
        jobs = compare.jobs_for([TASKS[name] for name in names], chosen, args.seeds, args.steps, args.epochs)
        return compare.compare(jobs, args.out, _targets(args.target, names), device, console)
    except (compare.UsageError, DataMissingError) as error:
        print(f"jorge compare: {error}", file=sys.stderr)
        return 2


def _device(name: str) -> torch.device:
    from jorge.lab.compare import UsageError

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's); returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return _compare(args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
