"""The basic block of residual networks (He et al. 2016), with a dilation for networks that predict every pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch normalization and a way around them, a 1 × 1 one where shapes differ."""

    def __init__(self, before: int, after: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, before, height, width]` to `[batch, after, height / stride, width / stride]`."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.around(x))


def stem(before: int, after: int, stride: int = 2) -> nn.Sequential:
    """A 3 × 3 convolution with batch normalization and ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def stage(before: int, after: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """`blocks` basic blocks in a row, of which the first has the stride."""
    first = BasicBlock(before, after, stride, dilation)
    return nn.Sequential(first, *(BasicBlock(after, after, dilation=dilation) for _ in range(blocks - 1)))
