"""ResNet-18 for 32 × 32 images, of any width: the usual one for CIFAR, with a 3 × 3 stem and no pooling after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(inner: int, out: int, side: int, stride: int) -> nn.Sequential:
    kernel = nn.Conv2d(inner, out, side, stride=stride, padding=side // 2, bias=False)
    return nn.Sequential(kernel, nn.BatchNorm2d(out))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(inner, out, 3, stride), _conv(out, out, 3, 1)
        self.short = _conv(inner, out, 1, stride) if stride != 1 or inner != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inner, h, w]` to `[batch, out, h/stride, w/stride]`."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class ResNet18(nn.Module):
    """Four stages of two blocks, `width` to `8·width` channels."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inner = width
        for stage in range(4):
            for i in range(2):
                out = width << stage
                blocks.append(Block(inner, out, 2 if stage and i == 0 else 1))
                inner = out
        self.stem = _conv(3, width, 3, 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inner, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of `[batch, 3, 32, 32]` images."""
        features: Tensor = self.blocks(torch.relu(self.stem(images))).mean(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits
