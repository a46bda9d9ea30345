"""Semantic segmentation of brain tissue with DeepLabv3: slices of the MNI ICBM152 template, as in nilearn."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.data.brain import CLASSES, PIXEL, TILE, load
from jorge_lab.tasks.nets.deeplab import DeepLab
from jorge_lab.tasks.task import Batch, FirstOrder, Size, Task

#: Channels of the four stages of the backbone, and blocks in each but the first.
_WIDTHS: dict[Size, tuple[int, ...]] = {
    "smoke": (8, 16, 32, 64),
    "small": (16, 32, 64, 128),
    "full": (32, 64, 128, 256),
}
_BLOCKS: dict[Size, int] = {"smoke": 1, "small": 1, "full": 2}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the pixels, in nats."""
    images, classes = batch
    return F.cross_entropy(model(images), classes.long())


def mean_iou(model: nn.Module, batch: Batch) -> Tensor:
    """Each image's intersection over union, mean over the classes that are in it or are predicted; summed."""
    images, classes = batch
    codes = torch.arange(len(CLASSES), device=images.device).view(-1, 1, 1)
    truth, predicted = classes.unsqueeze(1) == codes, model(images).argmax(1, keepdim=True) == codes
    both, either = (truth & predicted).sum((2, 3)), (truth | predicted).sum((2, 3))
    return torch.div(both / either.clamp(min=1), (either > 0).sum(1, keepdim=True)).sum()


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="brain",
        title="Brain slices, DeepLabv3",
        origin="MNI ICBM152 2009a nonlinear symmetric template (McConnell Brain Imaging Centre, McGill University; "
        "free to use, copy, modify and distribute with its copyright notice) as shipped by nilearn (BSD-3-Clause)",
        why="Segmentation, the second kind of network that Jorge was introduced with: dilated convolutions, every "
        "pixel a prediction.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            adamw={"lr": 3e-3, "weight_decay": 1e-2},
            schedule="cosine",
        ),
        steps={"smoke": 30, "small": 600, "full": 20000}[size],
        batch_size=8,
        metric=("mean IoU", "higher"),
        load=partial(load, size),
        model=partial(DeepLab, _WIDTHS[size], _BLOCKS[size], TILE // PIXEL[size] // 8, len(CLASSES)),
        loss=loss,
        score=mean_iou,
    )
