"""`jorge tasks`: what there is to compare on, and with whom."""

from __future__ import annotations

import argparse

from jorge_lab.commands.frame import Command


def arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(args: argparse.Namespace) -> int:
    """List; the exit status."""
    from jorge_lab.contenders import CONTENDERS
    from jorge_lab.tasks import TASKS

    for name, build in TASKS.items():
        task = build("small")
        print(
            f"{name}: {task.title}. {task.why}\n    {task.origin}. Baseline {task.recipe.baseline}, {task.steps} steps."
        )
    print()
    for name, contender in CONTENDERS.items():
        print(f"{name}: {contender.label}{'' if contender.missing() is None else f' ({contender.missing()})'}")
    return 0


COMMAND = Command(
    "tasks",
    "list the tasks and optimizers of the laboratory",
    "List the tasks that jorge compare knows, with the origin of their data, and the optimizers.",
    arguments,
    run,
)
