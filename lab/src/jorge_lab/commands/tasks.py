"""`jorge tasks`: what there is to compare on."""

from __future__ import annotations

import argparse

from jorge_lab.commands.arguments import said_missing


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "tasks",
        help="list the tasks and optimizers of the laboratory",
        description="List the tasks that jorge compare knows, with the origin of their data, and the optimizers.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List; the exit status."""
    try:
        from jorge_lab.contenders import CONTENDERS
        from jorge_lab.tasks import TASKS
    except ModuleNotFoundError as error:
        raise SystemExit(said_missing(error)) from None
    for name, build in TASKS.items():
        task = build("small")
        print(
            f"{name}: {task.title}. {task.why}\n    {task.origin}. Baseline {task.recipe.baseline}, {task.steps} steps."
        )
    print()
    for name, contender in CONTENDERS.items():
        print(f"{name}: {contender.label}{'' if contender.missing() is None else f' ({contender.missing()})'}")
    return 0
