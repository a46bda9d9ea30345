"""Averages of a run's weights, which any optimizer may end with: over its last part, or with exponential weights."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn

from jorge_lab.contenders.contender import Average
from jorge_lab.runs.records import window
from jorge_lab.tasks.task import Data, Task


class Averaged:
    """The average of a model's weights and buffers during a run.

    Args:
        model: as it is at the start of the run, before an optimizer puts hooks on it.
        average: which.
        steps: of the run.
    """

    def __init__(self, model: nn.Module, average: Average, steps: int) -> None:
        ema = average.kind == "ema"
        # One tensor at a time: the functions for lists do not divide counts, which batch norms have, on a GPU.
        rule: Any = get_ema_avg_fn(average.value) if ema else get_swa_avg_fn()  # type: ignore[no-untyped-call]
        self.model = AveragedModel(model, avg_fn=rule, use_buffers=True)
        self.model.requires_grad_(False)
        self._first = 1 if ema else min(steps, steps - round(average.value * steps) + 1)

    def take(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step, from 1, if they count."""
        if step >= self._first:
            self.model.update_parameters(model)

    @torch.no_grad()
    def measured(self, task: Task, data: Data, seed: int, steps: int) -> dict[str, float]:
        """Loss and metric at the end of the run: the loss is the mean over the batches that the smoothed one is of.

        These have been trained on by then, while each term of the smoothed loss is of a batch before its step.
        """
        model: Any = self.model.module
        metric = task.evaluate(model, data)  # before the losses, which move the statistics of batch norms
        count = window(steps)
        batches = task.batches(data, seed, skip=steps - count)
        losses = [task.loss(model, next(batches)).item() for _ in range(count)]
        return {"loss": fmean(losses), "metric": metric}
