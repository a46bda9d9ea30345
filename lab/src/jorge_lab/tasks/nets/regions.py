"""Boxes for detection networks: anchors, overlap, offsets, suppression, and cutting maps by boxes and pasting back.

A box is `(left, top, right, bottom)` in pixels of a square picture; all functions work on batches of a fixed number of
boxes, so that no shape depends on the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: A box may grow by no more than this factor (Girshick et al.), so that no exponential overflows.
_MOST_GROWTH = math.log(1000 / 16)


def anchors(edge: int, places: int, sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Boxes `[places² × len(sizes) × len(ratios), 4]` about the centres of a map of places × places over a picture.

    Their area is that of a square of one of the sizes, their height over width one of the ratios.
    """
    centre = (torch.arange(places) + 0.5) * (edge / places)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    shapes = torch.tensor([(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios])
    middle = torch.stack([x, y], -1).view(-1, 1, 2)
    return torch.cat([middle - shapes / 2, middle + shapes / 2], -1).view(-1, 4)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes `[…, m, 4]` with boxes `[…, n, 4]`, `[…, m, n]`; 0 where both are empty."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    return both / (areas[0][..., :, None] + areas[1][..., None, :] - both).clamp(min=1e-6)


def encode(boxes: Tensor, reference: Tensor) -> Tensor:
    """Boxes as offsets from reference boxes: shift of the middle in widths and heights, log of the growth."""
    size, base = (part[..., 2:] - part[..., :2] for part in (boxes, reference))
    shift = (boxes[..., :2] + size / 2 - reference[..., :2] - base / 2) / base
    return torch.cat([shift, (size.clamp(min=1) / base).log()], -1)


def decode(offsets: Tensor, reference: Tensor, edge: int) -> Tensor:
    """The inverse of :func:`encode`, cut to the picture; boxes are at least a pixel wide and high."""
    # a diverging model's boxes have to be somewhere: grid_sample's backward pass crashes at places that are no number
    offsets = offsets.nan_to_num()
    base = reference[..., 2:] - reference[..., :2]
    middle = reference[..., :2] + base / 2 + offsets[..., :2] * base
    half = base * offsets[..., 2:].clamp(max=_MOST_GROWTH).exp() / 2
    low = (middle - half).clamp(0, edge - 1)
    return torch.cat([low, torch.maximum((middle + half).clamp(max=edge), low + 1)], -1)


def shifted(boxes: Tensor, edge: int) -> Tensor:
    """Boxes `[batch, n, 4]` and copies a fifth of their size to each side, cut to the picture, `[batch, 5 × n, 4]`.

    A copy overlaps its box by two thirds.
    """
    size = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    ways = boxes.new_tensor([(0, 0), (0.2, 0), (-0.2, 0), (0, 0.2), (0, -0.2)]).repeat(1, 2)
    return (boxes[:, None] + ways[:, None] * size[:, None]).clamp(0, edge).flatten(1, 2)


def suppress(boxes: Tensor, most: float) -> Tensor:
    """Which boxes `[batch, n, 4]`, the best first, overlap no better one that stays by more than `most`: `[batch, n]`.

    Greedy non-maximum suppression of each picture's boxes, all pictures at once.
    """
    rivals = (overlap(boxes, boxes) > most).triu(1)
    stays = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for i in range(boxes.shape[1]):
        stays = stays & ~(rivals[:, i] & stays[:, i : i + 1])
    return stays


def _grid(x: Tensor, y: Tensor) -> Tensor:
    """Places `[batch, n, row, column, 2]` of columns' x and rows' y, `[batch, n, column]` and `[batch, n, row]`."""
    rows, columns = y.shape[-1], x.shape[-1]
    return torch.stack([x[:, :, None, :].expand(-1, -1, rows, -1), y[..., None].expand(-1, -1, -1, columns)], -1)


def align(maps: Tensor, boxes: Tensor, edge: int, out: int) -> Tensor:
    """RoIAlign: each box `[batch, n, 4]` cut from its picture's maps, one bilinear sample in each of `out × out` bins.

    Args:
        maps: `[batch, channel, height, width]`, over a picture of `edge × edge` pixels at any resolution.
        boxes: in pixels of the picture.
        edge: of the picture.
        out: bins a side.

    Returns:
        `[batch, n, channel, out, out]`.
    """
    bins = (torch.arange(out, device=boxes.device) + 0.5) / out
    x, y = (boxes[..., i, None] + bins * (boxes[..., i + 2] - boxes[..., i])[..., None] for i in (0, 1))
    batch, count = boxes.shape[:2]
    grid = _grid(x, y) * (2 / edge) - 1
    cut = F.grid_sample(maps, grid.view(batch, count * out, out, 2), padding_mode="border", align_corners=False)
    return cut.view(batch, -1, count, out, out).transpose(1, 2)


def paste(masks: Tensor, boxes: Tensor, edge: int) -> Tensor:
    """The way back: masks `[batch, n, out, out]` of boxes as maps `[batch, n, edge, edge]`, 0 outside."""
    pixels = torch.arange(edge, device=boxes.device) + 0.5
    x, y = ((pixels - boxes[..., i, None]) / (boxes[..., i + 2] - boxes[..., i])[..., None] * 2 - 1 for i in (0, 1))
    grid = _grid(x, y)
    pasted = F.grid_sample(masks.flatten(0, 1).unsqueeze(1), grid.flatten(0, 1), align_corners=False)
    return pasted.view(*boxes.shape[:2], edge, edge)
