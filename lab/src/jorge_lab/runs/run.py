"""One run of a comparison: a task, an optimizer and a seed in, a plain record out.

All optimizers get the same initial weights and the same batches for the same seed. Seconds are those of training
(batch, forward, backward, step), without evaluation and checkpoints, on the wall's clock and on the processor's; the
first step, which sets up state, is also reported apart. Several processes may train one run together
(:mod:`jorge_lab.runs.team`), of which each calls :func:`train` and the first has the record.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any, Literal

import torch
from torch import nn

from jorge_lab.contenders import Contender, Setting, settings, state_bytes
from jorge_lab.runs.averaging import Averaged
from jorge_lab.runs.checkpoints import Checkpoint, Checkpoints, restore_states, states
from jorge_lab.runs.environment import environment
from jorge_lab.runs.store import Record
from jorge_lab.runs.team import Team, Told
from jorge_lab.tasks.task import Batch, Data, Task

#: Version of the records' layout; a change of meaning raises it, and records of another version are trained again.
RECORD_VERSION = 2
#: Evaluations in a run.
EVALUATIONS = 10

#: A loss so many times the first one, or 1 where that is less, is divergence, though it be finite.
HOPELESS = 1e6

#: What a watcher is told after each step: the step (from 1), its loss, and the newest metric or None.
Watcher = Callable[[int, float, float | None], None]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def key(task: Task, contender: Contender, setting: Setting, seed: int, steps: int, repetition: int = 0) -> list[Any]:
    """What identifies a run: one with the same key, and the same settings in its record, is not trained again."""
    found = [RECORD_VERSION, task.name, task.size, contender.name, setting, seed, steps, task.batch_size]
    found += [f"repetition {repetition}"] if repetition else []
    processes = Team.here().size
    return [*found, f"{processes} processes"] if processes > 1 else found


def describe(task: Task, contender: Contender, setting: Setting, steps: int) -> dict[str, Any]:
    """The settings that a contender gets on a task, without training; raises what :meth:`Contender.build` raises."""
    optimizer, _ = contender.build(task, task.model(), steps, setting)
    return settings_on(task, optimizer)


def settings_on(task: Task, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's settings, with those of the task that all share."""
    return settings(optimizer) | {"task's schedule": task.recipe.schedule, "task's warmup": task.recipe.warmup}


def first_loss(task: Task, seed: int, data: Data) -> float:
    """The loss of a run's first batch: the same for all optimizers, and another if network, loss or data are others."""
    torch.manual_seed(seed)
    model = task.model().to(data.train[0].device)
    batch, size = next(task.batches(data, seed)), Team.here().size
    return fmean(task.loss(model, Team(rank, size).share(batch, seed, 1)).item() for rank in range(size))


def _switch(optimizer: torch.optim.Optimizer, mode: Literal["train", "eval"]) -> None:
    """Schedule-free optimizers keep other weights for evaluation than for training."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def _capture(model: nn.Module, batch: Batch) -> None:
    """Let the model replay its forward and backward pass of a batch from graphs of CUDA, in training mode.

    Running means are those of a model that has seen the batch a few times before, with all optimizers alike.
    """
    torch.cuda.make_graphed_callables(model, (batch[0],))


@dataclass
class _Measured:
    """What a run has measured so far: a number a step in each list but the last, seconds from the beginning on."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Measured:
        return cls(**{each.name: checkpoint[each.name] for each in fields(cls)})


def train(
    task: Task,
    contender: Contender,
    seed: int,
    steps: int,
    data: Data,
    watch: Watcher,
    setting: Setting = "transferred",
    checkpoints: Checkpoints | None = None,
    repetition: int = 0,
    capture: bool = False,
) -> Record:
    """Train and return the record; a loss that is not finite, or beyond all hope, ends it as diverged.

    Args:
        task: what is trained.
        contender: the optimizer.
        seed: of weights and batches.
        steps: of the run.
        data: the task's, on the device to train on.
        watch: is told of each step.
        setting: where the optimizer's hyperparameters come from.
        checkpoints: where to write the run's, and where it goes on from if there is one, which the caller has seen to
            fit and removes when the record is kept. None: the run begins at its first step.
        repetition: 0 for the run; n where it is trained once more for the n-th time, which the record then says.
        capture: whether the model's two passes are replayed from graphs of CUDA, as `--capture` says.

    Raises:
        ModuleNotFoundError, LookupError, UnsuitableError: as :meth:`Contender.build`.
        CheckpointError: the checkpoint cannot be read.
    """
    device, team = data.train[0].device, Team.here()
    options = contender.options(task, setting)
    team.tell(Told(task.name, contender.name, options, seed, steps, setting, repetition, capture))
    which = key(task, contender, setting, seed, steps, repetition)
    with team.together():
        torch.manual_seed(seed)
        model = task.model().to(device)
        if capture:
            _capture(model, team.share(next(task.batches(data, seed)), seed, 0))
        averaged = Averaged(model, contender.average, steps) if contender.average else None
        optimizer, scheduler = contender.build(task, model, steps, setting)
        chosen = settings_on(task, optimizer)
        checkpoint = checkpoints.read(which) if checkpoints is not None else None
    measured = _Measured()
    if (checkpoint := team.shared(checkpoint)) is not None:
        restore_states(checkpoint, model, optimizer, scheduler, device)
        measured = _Measured.of(checkpoint)
        if averaged:
            averaged.model.load_state_dict(checkpoint["averaged"])
    losses, done = measured.losses, len(measured.losses)
    elapsed, busy = (measured.seconds[-1], measured.cpu_seconds[-1]) if done else (0.0, 0.0)
    metric = measured.evaluations[-1][1] if measured.evaluations else None
    diverged_at, kept_at = None, elapsed
    batches = task.batches(data, seed, skip=done)
    every = max(1, steps // EVALUATIONS)
    _switch(optimizer, "train")
    for step in range(done + 1, steps + 1):
        with team.together():
            started, started_cpu = _clock(device), time.process_time()
            loss = task.loss(model, team.share(next(batches), seed, step))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        loss = team.average(model, loss)
        with team.together():
            before = _clock(device)
            with team.same_draws(seed, step, device):
                optimizer.step()
            after = _clock(device)
            scheduler.step()
            value = loss.item()
            elapsed += _clock(device) - started
            busy += time.process_time() - started_cpu
            if not math.isfinite(value) or abs(value) > HOPELESS * max(1.0, abs(losses[0] if losses else value)):
                diverged_at = step
                break
            losses.append(value)
            measured.seconds.append(elapsed)
            measured.cpu_seconds.append(busy)
            measured.optimizer_seconds.append(after - before)
            if averaged:
                averaged.take(model, step)
            if step % every == 0 or step == steps:
                _switch(optimizer, "eval")
                if team.first:
                    metric = task.evaluate(model, data)
                    measured.evaluations.append((step, metric))
                _switch(optimizer, "train")
            if checkpoints is not None and elapsed - kept_at >= checkpoints.every and step < steps:
                about = {"key": which, "seed": seed, "settings": chosen, "environment": environment(device)}
                about |= {"averaged": averaged.model.state_dict() if averaged else None}
                checkpoints.write(which, about | vars(measured) | states(model, optimizer, scheduler, device))
                kept_at = elapsed
            watch(step, value, metric)
    team.check_alike(model, contender.name)
    return {
        "key": which,
        "task": task.name,
        "size": task.size,
        "task_info": {
            "title": task.title,
            "origin": task.origin,
            "why": task.why,
            "baseline": task.recipe.baseline,
            "metric": list(task.metric),
            "schedule": task.recipe.schedule,
            "batch_size": task.batch_size,
        },
        "optimizer": contender.name,
        "label": contender.label,
        "setting": setting,
        "seed": seed,
        "steps": steps,
        "diverged_at": diverged_at,
        "losses": [float(f"{x:.5g}") for x in losses],
        "seconds": [round(x, 4) for x in measured.seconds],
        "cpu_seconds": [round(x, 4) for x in measured.cpu_seconds],
        "optimizer_seconds": [round(x, 5) for x in measured.optimizer_seconds],
        "evaluations": measured.evaluations,
        "state_bytes": state_bytes(optimizer),
        "settings": chosen,
        "environment": environment(device),
        **({"repetition": repetition} if repetition else {}),
        **({"captured": True} if capture else {}),
        **({"averaged": averaged.measured(task, data, seed, steps)} if averaged and diverged_at is None else {}),
    }
