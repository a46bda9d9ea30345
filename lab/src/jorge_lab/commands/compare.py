"""`jorge compare`: train each optimizer on each task with each seed, keep what is finished, and report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jorge.cli import above_zero, at_least
from jorge_lab.commands.arguments import (
    add_machine,
    add_optimizers,
    add_out,
    add_target,
    add_tasks,
    add_wide,
    console,
    given_targets,
    names,
    optimizers_named,
    tasks_named,
    train_together,
)
from jorge_lab.commands.frame import Command

if TYPE_CHECKING:
    import torch

    from jorge_lab.runs.jobs import Job

#: The suite that our claims rest on: us without tuning, the others as `jorge tune` found them best.
SUITE = "jorge,sgd@tuned,adamw@tuned,shampoo@tuned,soap@tuned,muon@tuned,psgd@tuned"

#: Seconds of training between two checkpoints of a run at size full; writing one takes up to half a second of CPU.
EVERY = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_tasks(parser, default=["mnist"])
    add_optimizers(
        parser,
        "names, ours with options (jorge:interval=5), each followed by @SETTING where it has a setting of its own; "
        f"all; or suite: {SUITE}",
    )
    parser.add_argument(
        "--settings",
        default="transferred",
        metavar="A,B,…",
        help="where hyperparameters come from: transferred from the task's recipe (default), tuned by jorge tune, "
        "default of each package",
    )
    parser.add_argument(
        "--tuned", type=Path, metavar="FILE", help="of jorge tune --tuned (default: the file that comes with jorge-lab)"
    )
    parser.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="seeds 0 … N-1 (default: 1)")
    parser.add_argument(
        "--repeat",
        type=at_least(1),
        default=1,
        metavar="N",
        help="train the runs of the first seed N times in all: below the tables stands how far their seconds differ "
        "(default: 1)",
    )
    add_out(parser)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=at_least(1), metavar="N", help="optimizer steps (default: the task's)")
    length.add_argument("--epochs", type=above_zero, metavar="X", help="passes over the training data instead of steps")
    add_target(parser)
    parser.add_argument(
        "--checkpoint-every",
        type=above_zero,
        metavar="SECONDS",
        help="of training between two checkpoints of a run, from which it goes on when it was cut off "
        f"(default: {EVERY:.0f} at size full, else no checkpoints)",
    )
    parser.add_argument(
        "--capture",
        action="store_true",
        help="on CUDA: replay the forward and backward pass from graphs, for models that take a batch's first tensor; "
        "what launches cost then hides no optimizer's own time",
    )
    add_machine(parser)
    add_wide(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; the exit status."""
    return train_together(args, partial(_compare, args))


def _compare(args: argparse.Namespace, device: torch.device) -> int:
    import torch

    from jorge_lab.contenders import SETTINGS
    from jorge_lab.contenders.tuned import use_tuned
    from jorge_lab.errors import UsageError
    from jorge_lab.report.terminal import report
    from jorge_lab.runs.checkpoints import Checkpoints
    from jorge_lab.runs.compare import open_records, train_all
    from jorge_lab.runs.jobs import jobs_for

    tasks = tasks_named(args.tasks)
    asked_for_suite = args.optimizers == "suite"
    optimizers = optimizers_named(SUITE if asked_for_suite else args.optimizers)
    settings = names(args.settings)
    if not optimizers or not settings:
        raise UsageError("--optimizers or --settings is empty")
    for name in settings:
        if name not in SETTINGS:
            raise UsageError(f"there is no setting {name!r}, only {', '.join(SETTINGS)}")
    if args.tuned is not None:
        use_tuned(args.tuned)
    if args.capture and device.type != "cuda":
        raise UsageError("--capture is for --device cuda: a CPU has no graphs to replay")
    torch.set_num_threads(args.threads)
    store = open_records(args.out)
    chosen = [setting for setting in SETTINGS if setting in settings]
    out = console()

    def jobs_of(some: Sequence[str], names: Sequence[str]) -> list[Job]:
        return jobs_for(some, args.size, names, chosen, args.seeds, args.steps, args.epochs, args.repeat)

    untuned = _not_tuned(tasks, args.size) if asked_for_suite else []
    jobs = jobs_of([name for name in tasks if name not in untuned], optimizers)
    if untuned:
        out.print(
            f"{', '.join(untuned)}: nobody was tuned there, so all are as transferred; for the suite run `jorge tune "
            f"{' '.join(untuned)} --optimizers {','.join(map(_alone, optimizers[1:]))} --tuned FILE` first",
            soft_wrap=True,
        )
        jobs += jobs_of(untuned, [_alone(name) for name in optimizers])
    targets = given_targets(args.target, [{"task": name} for name in tasks])
    every = args.checkpoint_every or (EVERY if args.size == "full" else None)
    checkpoints = Checkpoints(args.out / "checkpoints", every) if every else None
    records, status = train_all(jobs, store, device, out, args.workers, checkpoints, args.capture)
    report(records, args.out, "jorge " + shlex.join(sys.argv[1:]), targets, out, wide=args.wide)
    return status


def _alone(optimizer: str) -> str:
    """An optimizer without its setting."""
    return optimizer.partition("@")[0]


def _not_tuned(tasks: Sequence[str], size: str) -> list[str]:
    """The tasks on which nobody was tuned at a size: a user's own, mostly."""
    from jorge_lab.contenders.tuned import read_tuned

    found = read_tuned()
    return [name for name in tasks if not found.get(name, {}).get(size)]


COMMAND = Command(
    "compare",
    "train one model with several optimizers: which reaches the target first, and at what cost?",
    "Train the same model from the same weights on the same batches with each optimizer, and report which reaches the "
    "target first, in steps and in seconds. Runs that are finished are kept in --out and not trained again, so the "
    "command can be stopped and repeated; long runs go on from checkpoints. Under torchrun all processes train each "
    "run together.",
    arguments,
    run,
)
