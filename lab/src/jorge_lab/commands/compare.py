"""`jorge compare`: its options, and what is wrong with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jorge_lab.commands.arguments import (
    above_zero,
    add_machine,
    add_tasks,
    at_least,
    console,
    device_named,
    names,
    optimizers_named,
    said_missing,
    tasks_named,
)
from jorge_lab.errors import LabError
from jorge_lab.commands.report import add_target, given_targets

#: The suite that our claims rest on: us without tuning, the others as `jorge tune` found them best.
SUITE = "jorge,sgd@tuned,adamw@tuned,shampoo@tuned,soap@tuned,muon@tuned,psgd@tuned"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "compare",
        help="train one model with several optimizers: which reaches the target first, and at what cost?",
        description="Train the same model from the same weights on the same batches with each optimizer, and report "
        "which reaches the target first, in steps and in seconds. Runs that are finished are kept in --out and not "
        "trained again, so the command can be stopped and repeated.",
    )
    add_tasks(parser, default=["mnist"])
    parser.add_argument(
        "--optimizers",
        default="jorge,sgd,adamw,shampoo",
        metavar="A,B,…",
        help="names, ours with options (jorge:interval=5), each followed by @SETTING where it has a setting of its "
        f"own; all; or suite: {SUITE} (default: %(default)s)",
    )
    parser.add_argument(
        "--settings",
        default="transferred",
        metavar="A,B,…",
        help="where hyperparameters come from: transferred from the task's recipe (default), tuned by jorge tune, "
        "default of each package",
    )
    parser.add_argument(
        "--tuned", type=Path, metavar="FILE", help="of jorge tune --tuned (default: the file that comes with jorge)"
    )
    parser.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="seeds 0 … N-1 (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=at_least(1), metavar="N", help="optimizer steps (default: the task's)")
    length.add_argument("--epochs", type=above_zero, metavar="X", help="passes over the training data instead of steps")
    add_target(parser)
    add_machine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare; the exit status."""
    try:
        import torch

        from jorge_lab.runs import compare
        from jorge_lab.runs.jobs import UsageError, jobs_for
        from jorge_lab.contenders import SETTINGS
        from jorge_lab.contenders.tuned import use_tuned
    except ModuleNotFoundError as error:
        raise SystemExit(said_missing(error)) from None
    try:
        tasks = tasks_named(args.tasks)
        optimizers = optimizers_named(SUITE if args.optimizers == "suite" else args.optimizers)
        settings = names(args.settings)
        if not optimizers or not settings:
            raise UsageError("--optimizers or --settings is empty")
        for name in settings:
            if name not in SETTINGS:
                raise UsageError(f"there is no setting {name!r}, only {', '.join(SETTINGS)}")
        if args.tuned is not None:
            use_tuned(args.tuned)
        device = device_named(args.device)
        torch.set_num_threads(args.threads)
        compare.open_folder(args.out)
        chosen = [setting for setting in SETTINGS if setting in settings]
        jobs = jobs_for(tasks, args.size, optimizers, chosen, args.seeds, args.steps, args.epochs)
        targets = given_targets(args.target, [{"task": name} for name in tasks])
        return compare.compare(jobs, args.out, targets, device, console(), args.workers)
    except (LabError, ValueError) as error:
        print(f"jorge compare: {error}", file=sys.stderr)
        return 2
