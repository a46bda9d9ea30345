"""Which checkpoints the runs of a command go on from: those that fit them; the others are told and removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.console import Console

from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.checkpoints import Checkpoint, CheckpointError, restore_states
from jorge_lab.runs.environment import environment
from jorge_lab.runs.jobs import Job, is_stale
from jorge_lab.tasks.finding import find_task


def see_checkpoints(
    jobs: Iterable[Job], settings: Mapping[Job, dict[str, Any]], device: torch.device, console: Console
) -> None:
    """Say after which step each job that has a checkpoint goes on; remove a checkpoint that does not fit, and say why.

    Args:
        jobs: that are to be run.
        settings: which they get now.
        device: to run on.
        console: is told a line about each checkpoint.
    """
    for job in jobs:
        if job.checkpoints is None:
            continue
        key, reached = job.key(), 0
        try:
            checkpoint = job.checkpoints.read(key)
            if checkpoint is None:
                continue
            problem = _unfit(job, checkpoint, settings[job], device)
            reached = len(checkpoint.get("losses", ()))
        except CheckpointError as error:
            problem = str(error)
        if problem is None:
            console.print(f"{job.title}: goes on after step {reached} of {job.steps}", soft_wrap=True)
        else:
            place = job.checkpoints.path(key)
            console.print(f"{job.title}: begins again, as the checkpoint {place} {problem}", soft_wrap=True)
            job.checkpoints.remove(key)


def _unfit(job: Job, checkpoint: Checkpoint, settings: dict[str, Any], device: torch.device) -> str | None:
    """Why a run cannot go on from a checkpoint to the losses that it would have had; None where it can."""
    if not job.matches(checkpoint, settings):
        return "is of other settings"
    now = environment(device)
    others = [name for name in now if name != "date" and now[name] != checkpoint["environment"].get(name)]
    if others:
        return f"was written under another {' and another '.join(others)}"
    if is_stale(job.task, job.size, checkpoint, device):
        return "is of another network, loss or data"
    task = find_task(job.task, job.size)
    model = task.model().to(device)
    optimizer, scheduler = find_contender(job.optimizer).build(task, model, job.steps, job.setting)
    try:
        restore_states(checkpoint, model, optimizer, scheduler, device)
    except Exception as error:  # each package says in its own way that a state is not of its kind
        return f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
    return None
