"""A small vision transformer (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE, _CLASSES = 28, 10


@dataclass(frozen=True)
class Shape:
    """Pixels along a patch's side, and the transformer's width, blocks and heads."""

    patch: int
    width: int
    blocks: int
    heads: int


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a perceptron four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, patches, width]` to the same."""
        h = self.norm1(x)
        layers = (self.query, self.key, self.value)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return torch.add(x, self.down(F.gelu(self.up(self.norm2(x)))))


class VisionTransformer(nn.Module):
    """Patches with learned positions, transformer blocks, and a classifier of their mean."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, shape.width, shape.patch, stride=shape.patch)
        self.place = nn.Parameter(torch.empty((_SIDE // shape.patch) ** 2, shape.width))
        self.blocks = nn.Sequential(*(Block(shape.width, shape.heads) for _ in range(shape.blocks)))
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, _CLASSES)
        nn.init.normal_(self.place, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[batch, 1, 28, 28]` to logits `[batch, 10]`."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits
