"""Networks to measure whole iterations on: ResNet-18 for small pictures, a small ViT and a small GPT, of any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jorge_lab.tasks.nets.residual import stage, stem

#: Width of an attention head.
HEAD = 32


class ResNet18(nn.Module):
    """The usual one for CIFAR: a 3 × 3 stem, no pooling after it, four stages of two blocks, up to `8·width` channels.

    Args:
        width: channels of the first stage.
        classes: of the pictures.
    """

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        deeper = (stage(width << i, width << (i + 1), 2, stride=2) for i in range(3))
        self.features = nn.Sequential(stem(3, width, 1), stage(width, width, 2), *deeper)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of `[batch, 3, 32, 32]` images."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits


def _layers(depth: int, width: int) -> nn.ModuleList:
    heads = max(1, width // HEAD)
    return nn.ModuleList(
        nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        for _ in range(depth)
    )


class SmallViT(nn.Module):
    """Patches of 4 × 4 of 32 × 32 images, a mean over the tokens, a classifier."""

    def __init__(self, width: int = 192, depth: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.pos = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.layers = _layers(depth, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of `[batch, 3, 32, 32]` images."""
        x: Tensor = self.patch(images).flatten(2).mT + self.pos
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits


class SmallGPT(nn.Module):
    """A causal transformer over bytes."""

    def __init__(self, width: int = 256, depth: int = 4, context: int = 128, vocabulary: int = 256) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.layers = _layers(depth, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[batch · context, vocabulary]` of the next byte."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x: Tensor = self.wte(tokens) + self.wpe.weight[:length]
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits.flatten(0, 1)
