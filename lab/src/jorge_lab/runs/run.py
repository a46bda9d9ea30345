"""One run of a comparison: a task, an optimizer and a seed in, a plain record out.

All optimizers get the same initial weights and the same batches for the same seed. Seconds are those of training
(batch, forward, backward, step), without evaluation, on the wall's clock and on the processor's; the first step, which
sets up state, is also reported apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from jorge_lab.contenders import Contender, Setting, settings, state_bytes
from jorge_lab.runs.environment import environment
from jorge_lab.runs.store import Record
from jorge_lab.tasks.task import Data, Task

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


def key(task: Task, contender: Contender, setting: Setting, seed: int, steps: int) -> list[Any]:
    """What identifies a run: one with the same key, and the same settings in its record, is not trained again."""
    return [RECORD_VERSION, task.name, task.size, contender.name, setting, seed, steps, task.batch_size]


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
    return task.loss(model, next(task.batches(data, seed))).item()


def _switch(optimizer: torch.optim.Optimizer, mode: Literal["train", "eval"]) -> None:
    """Schedule-free optimizers keep other weights for evaluation than for training."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def train(
    task: Task,
    contender: Contender,
    seed: int,
    steps: int,
    data: Data,
    watch: Watcher,
    setting: Setting = "transferred",
) -> Record:
    """Train and return the record; a loss that is not finite, or beyond all hope, ends it as diverged.

    Raises:
        ModuleNotFoundError, LookupError, UnsuitableError: as :meth:`Contender.build`.
    """
    device = data.train[0].device
    torch.manual_seed(seed)
    model = task.model().to(device)
    optimizer, scheduler = contender.build(task, model, steps, setting)
    chosen = settings_on(task, optimizer)
    losses: list[float] = []
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    optimizer_seconds: list[float] = []
    evaluations: list[tuple[int, float]] = []
    elapsed, busy, metric, diverged_at = 0.0, 0.0, None, None
    batches = task.batches(data, seed)
    every = max(1, steps // EVALUATIONS)
    _switch(optimizer, "train")
    for step in range(1, steps + 1):
        started, started_cpu = _clock(device), time.process_time()
        loss = task.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        before = _clock(device)
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
        seconds.append(elapsed)
        cpu_seconds.append(busy)
        optimizer_seconds.append(after - before)
        if step % every == 0 or step == steps:
            _switch(optimizer, "eval")
            metric = task.evaluate(model, data)
            _switch(optimizer, "train")
            evaluations.append((step, metric))
        watch(step, value, metric)
    return {
        "key": key(task, contender, setting, seed, steps),
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
        "seconds": [round(x, 4) for x in seconds],
        "cpu_seconds": [round(x, 4) for x in cpu_seconds],
        "optimizer_seconds": [round(x, 5) for x in optimizer_seconds],
        "evaluations": evaluations,
        "state_bytes": state_bytes(optimizer),
        "settings": chosen,
        "environment": environment(device),
    }
