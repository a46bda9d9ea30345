"""What a task of the laboratory is: data, model, loss and metric, with the first-order recipe that was tuned for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jorge.transfer import Schedule
from jorge_lab.errors import LabError

#: Tensors whose first dim counts examples: inputs, targets, and whatever else the loss needs.
Batch = tuple[Tensor, ...]
#: Seconds, at most about a minute, and an hour or two of first-order training on one CPU core.
Size = Literal["smoke", "small", "full"]
SIZES: tuple[Size, ...] = ("smoke", "small", "full")


class DataMissingError(LabError):
    """A task's data is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Data:
    """Training and validation examples; the first dim of each tensor counts examples, such as images or rows."""

    train: Batch
    validation: Batch

    def to(self, device: torch.device) -> Data:
        """The same data on a device."""
        return Data(tuple(t.to(device) for t in self.train), tuple(t.to(device) for t in self.validation))


@dataclass(frozen=True)
class FirstOrder:
    """A tuned first-order recipe.

    Args:
        baseline: the better of the two, whose best loss is the target.
        sgd: options of `torch.optim.SGD`.
        adamw: options of `torch.optim.AdamW`.
        schedule: of all optimizers.
        warmup: share of the steps in which the lr rises.
        transfer: which of the two Jorge and Shampoo take theirs from: AdamW's where both are tuned, as it is the better
            one for them (docs/generated/ablations/grafting.md), and SGD's where there is no other.
    """

    baseline: Literal["sgd", "adamw"]
    sgd: dict[str, Any]
    adamw: dict[str, Any]
    schedule: Schedule
    warmup: float = 0.0
    transfer: Literal["sgd", "adamw"] = "adamw"


@dataclass(frozen=True, eq=False)
class Task:
    """A training problem that every optimizer is given alike.

    Args:
        name: its name on the command line.
        title: what it is, in a line.
        origin: where the data comes from, and its licence.
        why: why it is among the tasks.
        size: which of its sizes this is.
        recipe: the first-order recipe.
        steps: optimizer steps of a default run.
        batch_size: examples a step.
        metric: name of the validation metric, and whether higher is better.
        load: reads the data (raises :class:`DataMissingError` where it is not installed).
        model: builds the model; the caller seeds torch before.
        loss: training loss of a model on a batch, a scalar tensor.
        score: sum of the metric over a batch, as a scalar tensor; it is divided by the number of examples.
    """

    name: str
    title: str
    origin: str
    why: str
    size: Size
    recipe: FirstOrder
    steps: int
    batch_size: int
    metric: tuple[str, Literal["higher", "lower"]]
    load: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module, Batch], Tensor]

    def batches(self, data: Data, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Endless shuffled batches, the same for the same seed; a rest shorter than a batch is left out.

        The first `skip` are left out too, at the price of drawing the orders of the epochs that they are in.
        """
        count, device = len(data.train[0]), data.train[0].device
        size = min(self.batch_size, count)
        epoch = count // size
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(count, generator=generator)
            for chosen in torch.split(order[: epoch * size].to(device), size)[skip:]:
                yield tuple(part[chosen] for part in data.train)
            skip = max(0, skip - epoch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Data) -> float:
        """The validation metric, in evaluation mode."""
        model.eval()
        batches = zip(*(torch.split(part, self.batch_size) for part in data.validation), strict=True)
        total = sum((float(self.score(model, batch)) for batch in batches), 0.0)
        model.train()
        return total / len(data.validation[0])
