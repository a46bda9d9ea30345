"""Detection with instance masks: pieces of clothing over brick, grass and gravel, found by a small Mask R-CNN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.task import Batch, Data, DataMissingError, FirstOrder, Size, Task
from jorge_lab.tasks.nets.detector import MaskRCNN, Shape
from jorge_lab.tasks.fashion import pictures

_CLASSES = 10
#: A pixel of a piece is one that is at least this bright, of 255.
_DARKEST = 16
#: A piece counts if this share of it is not hidden by others, and so many pixels.
_VISIBLE, _LEAST = 0.7, 40


@dataclass(frozen=True)
class _Scenes:
    """Scenes for training and validation, their edge in pixels, objects in one at most, and the edges of objects."""

    train: int
    validation: int
    edge: int
    most: int
    objects: tuple[int, int]


_SCENES: dict[Size, _Scenes] = {
    "smoke": _Scenes(train=200, validation=32, edge=64, most=3, objects=(18, 32)),
    "small": _Scenes(train=3000, validation=100, edge=64, most=3, objects=(18, 32)),
    "full": _Scenes(train=8000, validation=500, edge=96, most=5, objects=(18, 44)),
}
_SHAPES: dict[Size, Shape] = {
    "smoke": Shape(edge=64, widths=(8, 16, 32), hidden=64, sizes=(24.0,)),
    "small": Shape(edge=64, widths=(16, 32, 64), hidden=128, sizes=(16.0, 24.0)),
    "full": Shape(edge=96, widths=(32, 64, 128), hidden=256, sizes=(16.0, 24.0, 36.0)),
}


@cache
def _textures() -> Tensor:
    """Brick, grass and gravel, uint8 `[3, 512, 512]`.

    Raises:
        DataMissingError: scikit-image is not installed.
    """
    if find_spec("skimage") is None:
        raise DataMissingError("the task scenes takes its backgrounds from scikit-image: pip install scikit-image")
    from skimage import data

    photographs: tuple[Callable[[], Any], ...] = (data.brick, data.grass, data.gravel)
    return torch.stack([torch.from_numpy(photograph()) for photograph in photographs])


@cache
def load(size: Size) -> Data:
    """Scenes `[count, 1, edge, edge]` about zero, boxes `[count, most, 4]`, labels `[count, most]` and masks, in uint8.

    Labels are Fashion-MNIST's classes from 1; places without an object are zero. Masks are what can be seen of the
    objects, boxes fit round the masks. Validation scenes are composed of test pictures and of the other half of the
    textures.

    Raises:
        DataMissingError: Fashion-MNIST or scikit-image is not installed.
    """
    scenes, textures = _SCENES[size], _textures()
    pieces, kinds, other_pieces, other_kinds = pictures()
    half = textures.shape[2] // 2
    return Data(
        _compose(scenes, scenes.train, pieces, kinds, textures[..., :half], seed=0),
        _compose(scenes, scenes.validation, other_pieces, other_kinds, textures[..., half:], seed=1),
    )


def _compose(scenes: _Scenes, count: int, pieces: Tensor, kinds: Tensor, textures: Tensor, seed: int) -> Batch:
    """Scenes of one to `most` pieces each; a piece for which no place is found in a few tries is left out."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    edge, most = scenes.edge, scenes.most
    images = torch.zeros(count, 1, edge, edge)
    boxes, labels = torch.zeros(count, most, 4), torch.zeros(count, most, dtype=torch.long)
    masks = torch.zeros(count, most, edge, edge, dtype=torch.uint8)
    for i in range(count):
        texture = textures[draw(0, len(textures))]
        top, left = (draw(0, length - edge + 1) for length in texture.shape)
        image = images[i, 0]
        image.copy_(texture[top : top + edge, left : left + edge])
        wanted, placed = draw(1, most + 1), 0
        # from the front to the back: a piece is seen where none is before it
        free = torch.ones(edge, edge, dtype=torch.bool)
        for _ in range(4 * most):
            which, side = draw(0, len(pieces)), draw(scenes.objects[0], scenes.objects[1] + 1)
            top, left = draw(0, edge - side + 1), draw(0, edge - side + 1)
            place = (slice(top, top + side), slice(left, left + side))
            piece = F.interpolate(pieces[which][None, None].float(), (side, side), mode="bilinear")[0, 0]
            bright = piece >= _DARKEST
            seen = bright & free[place]
            if seen.sum() < max(_LEAST, _VISIBLE * float(bright.sum())):
                continue
            image[place] = torch.where(seen, piece, image[place])
            free[place] &= ~seen
            masks[i, placed][place] = seen
            boxes[i, placed], labels[i, placed] = _around(seen, top, left), kinds[which] + 1
            placed += 1
            if placed == wanted:
                break
    return images.div_(255).sub_(0.5).mul_(4), boxes, labels, masks


def _around(mask: Tensor, top: int, left: int) -> Tensor:
    """The box round a mask whose corner is at `top`, `left`."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    sides = (left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1)
    return torch.stack(sides).float()


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
