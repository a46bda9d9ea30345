"""What the processes of a team do that are not the first: they train along."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import torch

from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.run import train
from jorge_lab.runs.team import Team
from jorge_lab.tasks.task import Task


def follow(tasks: Iterable[Task], device: torch.device) -> None:
    """Train along with the first process until it has no more runs; the records are its own.

    Args:
        tasks: those of the command.
        device: to train on.

    Raises:
        DataMissingError: a task's data is not installed here.
    """
    known = {task.name: task for task in tasks}
    while (told := Team.here().hear()) is not None:
        task, options = known[told.task], told.options
        contender = replace(find_contender(told.contender), options=lambda *_, options=options: options)
        data = task.load().to(device)
        with suppress(Exception):  # the first process has failed too, and says why
            train(
                task,
                contender,
                told.seed,
                told.steps,
                data,
                lambda *_: None,
                told.setting,
                repetition=told.repetition,
                capture=told.capture,
            )
