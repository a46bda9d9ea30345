"""MNIST-1D (Greydanus and Kobak 2024): digits as curves of 40 points, with a perceptron and with a 1-D conv net."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.data.mnist1d import load
from jorge_lab.tasks.task import Batch, FirstOrder, Size, Task

_POINTS, _DIGITS = 40, 10


def perceptron(hidden: int) -> nn.Module:
    """A linear layer of 40 to 256, as many of 256 to 256 as make `hidden` with it, and one to 10; ReLU between."""
    layers: list[nn.Module] = []
    for before, after in pairwise((_POINTS, *[256] * hidden)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, _DIGITS))


def convolutional(channels: int) -> nn.Module:
    """Three convolutions, then a linear layer: with 25 channels the network of the data's authors."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, _POINTS))]
    for before, kernel in ((1, 5), (channels, 3), (channels, 3)):
        layers += [nn.Conv1d(before, channels, kernel, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 5, _DIGITS))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats."""
    curves, digits = batch
    return F.cross_entropy(model(curves), digits)


def correct(model: nn.Module, batch: Batch) -> Tensor:
    """How many curves are classified right."""
    curves, digits = batch
    return torch.eq(model(curves).argmax(1), digits).sum()


_COUNTS: dict[Size, int] = {"smoke": 5000, "small": 20_000, "full": 50_000}
_COPIES: dict[Size, int] = {"smoke": 1, "small": 5, "full": 10}
_HIDDEN: dict[Size, int] = {"smoke": 2, "small": 3, "full": 3}
_CHANNELS: dict[Size, int] = {"smoke": 25, "small": 64, "full": 64}
#: The perceptron's large batch: its step is otherwise quicker than anything that an optimizer does.
_MLP_BATCH: dict[Size, int] = {"smoke": 100, "small": 2000, "full": 2000}
_CONV_BATCH: dict[Size, int] = {"smoke": 100, "small": 500, "full": 500}
_ORIGIN = (
    "MNIST-1D (Greydanus and Kobak 2024), generated offline by the package mnist1d (Apache-2.0); from the size "
    "small on rolled copies of the curves, too"
)


def mlp_task(size: Size) -> Task:
    """The task mnist1d-mlp at a size."""
    return Task(
        name="mnist1d-mlp",
        title="MNIST-1D, perceptron",
        origin=_ORIGIN,
        why="The plainest deep network: its layers are matrices and its step is quick, so optimizers' own cost shows.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4},
            adamw={"lr": 1e-2, "weight_decay": 1e-2},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 100, "small": 800, "full": 50_000}[size],
        batch_size=_MLP_BATCH[size],
        metric=("accuracy", "higher"),
        load=partial(load, _COUNTS[size], _COPIES[size]),
        model=partial(perceptron, _HIDDEN[size]),
        loss=loss,
        score=correct,
    )


def conv_task(size: Size) -> Task:
    """The task mnist1d-conv at a size."""
    return Task(
        name="mnist1d-conv",
        title="MNIST-1D, 1-D conv net",
        origin=_ORIGIN,
        why="Kernels of three dims, which no image task has.",
        size=size,
        recipe=FirstOrder(
            baseline="adamw",
            sgd={"lr": 0.3, "momentum": 0.9, "weight_decay": 5e-4},
            adamw={"lr": 3e-2, "weight_decay": 1e-2},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 100, "small": 1500, "full": 100_000}[size],
        batch_size=_CONV_BATCH[size],
        metric=("accuracy", "higher"),
        load=partial(load, _COUNTS[size], _COPIES[size]),
        model=partial(convolutional, _CHANNELS[size]),
        loss=loss,
        score=correct,
    )
