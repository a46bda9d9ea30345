"""One run of a comparison: a task, an optimizer and a seed in, a plain record out.

All optimizers get the same initial weights and the same batches for the same seed. Seconds are those of training
(batch, forward, backward, step), without evaluation; the first step, which sets up state, is also reported apart.
"""

from __future__ import annotations

import datetime as dt
import math
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import jorge
from jorge.lab.contenders import Contender, settings
from jorge.lab.task import Data, Task

Record = dict[str, Any]

#: Version of the records' layout; a change of meaning raises it, and records of another version are trained again.
RECORD_VERSION = 1
#: Evaluations in a run.
EVALUATIONS = 10

#: What a watcher is told after each step: the step (from 1), its loss, and the newest metric or None.
Watcher = Callable[[int, float, float | None], None]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def key(task: Task, contender: Contender, seed: int, steps: int) -> list[Any]:
    """What identifies a run: one with the same key, and the same settings in its record, is not trained again."""
    return [RECORD_VERSION, task.name, contender.name, seed, steps, task.batch_size]


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions and date of a run."""
    return {
        "jorge": jorge.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def describe(task: Task, contender: Contender, steps: int) -> dict[str, Any]:
    """The settings that a contender gets on a task, without training."""
    optimizer, _ = contender.build(task, task.model(), steps)
    return settings(optimizer)


def train(task: Task, contender: Contender, seed: int, steps: int, data: Data, watch: Watcher) -> Record:
    """Train and return the record; a loss that is not finite ends the run and is recorded as divergence."""
    device = data.train[0].device
    torch.manual_seed(seed)
    model = task.model().to(device)
    optimizer, scheduler = contender.build(task, model, steps)
    chosen = settings(optimizer)
    losses: list[float] = []
    seconds: list[float] = []
    optimizer_seconds: list[float] = []
    evaluations: list[tuple[int, float]] = []
    elapsed, metric, diverged_at = 0.0, None, None
    batches = task.batches(data, seed)
    every = max(1, steps // EVALUATIONS)
    for step in range(1, steps + 1):
        started = _clock(device)
        loss = task.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        before = _clock(device)
        optimizer.step()
        after = _clock(device)
        scheduler.step()
        value = loss.item()
        elapsed += _clock(device) - started
        if not math.isfinite(value):
            diverged_at = step
            break
        losses.append(value)
        seconds.append(elapsed)
        optimizer_seconds.append(after - before)
        if step % every == 0 or step == steps:
            metric = task.evaluate(model, data)
            evaluations.append((step, metric))
        watch(step, value, metric)
    return {
        "key": key(task, contender, seed, steps),
        "task": task.name,
        "optimizer": contender.name,
        "seed": seed,
        "steps": steps,
        "diverged_at": diverged_at,
        "losses": [float(f"{x:.6g}") for x in losses],
        "seconds": [round(x, 6) for x in seconds],
        "optimizer_seconds": [round(x, 6) for x in optimizer_seconds],
        "evaluations": evaluations,
        "state_bytes": state_bytes(optimizer),
        "settings": chosen,
        "environment": environment(device),
    }
