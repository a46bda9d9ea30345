"""Scenes: Fashion-MNIST items over photographed brick, grass and gravel, with boxes, labels and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jorge_lab.tasks.data.fashion import pictures
from jorge_lab.tasks.task import Batch, Data, DataMissingError, Size

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
