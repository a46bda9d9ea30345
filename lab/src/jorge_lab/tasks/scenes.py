"""Detection with instance masks: pieces of clothing over brick, grass and gravel, found by a small Mask R-CNN."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from jorge_lab.tasks.data.scenes import load
from jorge_lab.tasks.nets.detector import MaskRCNN, Shape
from jorge_lab.tasks.task import Batch, FirstOrder, Size, Task

_CLASSES = 10
_SHAPES: dict[Size, Shape] = {
    "smoke": Shape(edge=64, widths=(8, 16, 32), hidden=64, sizes=(24.0,)),
    "small": Shape(edge=64, widths=(16, 32, 64), hidden=128, sizes=(16.0, 24.0)),
    "full": Shape(edge=96, widths=(32, 64, 128), hidden=256, sizes=(16.0, 24.0, 36.0)),
}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The five losses of Mask R-CNN, summed."""
    total: Tensor = model(*batch)
    return total


def panoptic_quality(model: nn.Module, batch: Batch) -> Tensor:
    """Each scene's panoptic quality (Kirillov et al. 2019), summed over scenes.

    A detection is right if it has the class of an object and more than half in common with it, as intersection over
    union of masks; the quality is the sum of those overlaps over the mean of the counts of detections and objects.
    Objects' masks are disjoint, so that a detection can be right about one object alone; of several detections that
    are right about the same object the best counts.
    """
    assert isinstance(model, MaskRCNN)
    images, _, labels, masks = batch
    found, found_masks = model.detect(images)
    truth, guess = masks.flatten(2).float(), found_masks.flatten(2).float()
    both = truth @ guess.transpose(1, 2)
    overlap = both / (truth.sum(2)[:, :, None] + guess.sum(2)[:, None, :] - both).clamp(min=1)
    same = (labels[:, :, None] == found[:, None, :]) & (labels[:, :, None] > 0)
    right = torch.where(same & (overlap > 0.5), overlap, 0).amax(2).sum(1)
    counts = ((labels > 0).sum(1) + (found > 0).sum(1)) / 2
    return torch.div(right, counts.clamp(min=0.5)).sum()


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="scenes",
        title="Fashion scenes, Mask R-CNN",
        origin="Fashion-MNIST (Zalando Research, MIT) as packaged by Debian in dataset-fashion-mnist, over photographs "
        "of brick, grass and gravel (CC0) as shipped by scikit-image (BSD-3-Clause)",
        why="Detection, the third kind of network that Jorge was introduced with: five losses at once, of which some "
        "see few examples.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            adamw={"lr": 3e-3, "weight_decay": 1e-2},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 40, "small": 600, "full": 16000}[size],
        batch_size=8,
        metric=("panoptic quality", "higher"),
        load=partial(load, size),
        model=partial(MaskRCNN, _SHAPES[size], _CLASSES),
        loss=loss,
        score=panoptic_quality,
    )
