"""DeepLabv3 (Chen et al. 2017): a residual network with dilation and a pyramid, which predicts every pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.nets.residual import stage, stem


def _unit(before: int, after: int, dilation: int = 0) -> nn.Sequential:
    """A 1 × 1 convolution, or a dilated 3 × 3 one, with batch normalization and ReLU."""
    edge = 3 if dilation else 1
    conv = nn.Conv2d(before, after, edge, padding=dilation, dilation=max(1, dilation), bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017): views of several widths, and the whole picture's mean."""

    def __init__(self, before: int, after: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.views = nn.ModuleList([_unit(before, after), *(_unit(before, after, rate) for rate in rates)])
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), _unit(before, after))
        self.project = _unit((len(rates) + 2) * after, after)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, before, height, width]` to `[batch, after, height, width]`."""
        views = [view(x) for view in self.views]
        whole = self.whole(x).expand_as(views[0])
        projected: Tensor = self.project(torch.cat([*views, whole], dim=1))
        return projected


class DeepLab(nn.Module):
    """DeepLabv3: a residual network whose last stage is dilated, so that it stays at an eighth, and a pyramid on it.

    The pyramid's rates are the paper's 6, 12 and 18, which are for maps of 65 places, in proportion to the map.

    Args:
        widths: channels of the four stages.
        blocks: in each stage but the first.
        places: of the map along an edge, an eighth of the picture's pixels.
        classes: that a pixel can have.
    """

    def __init__(self, widths: tuple[int, ...], blocks: int, places: int, classes: int) -> None:
        super().__init__()
        one, two, three, four = widths
        self.backbone = nn.Sequential(
            stem(1, one),
            stage(one, two, blocks, stride=2),
            stage(two, three, blocks, stride=2),
            stage(three, four, blocks, dilation=2),
        )
        rates = tuple(max(1, round(rate * places / 65)) for rate in (6, 12, 18))
        self.pyramid, self.head = Pyramid(four, three, rates), nn.Conv2d(three, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """`[batch, 1, height, width]` to logits `[batch, class, height, width]`."""
        logits = self.head(self.pyramid(self.backbone(images)))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
