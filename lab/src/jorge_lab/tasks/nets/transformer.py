"""A causal transformer over characters, and its loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.data.text import ALPHABET
from jorge_lab.tasks.task import Batch


def rotated(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): each pair of features turned by an angle that grows with its place.

    `[batch, heads, time, features]` to the same; the features are paired first half to second half.
    """
    time, features = x.shape[-2:]
    rates = 10000.0 ** -(torch.arange(0, features, 2, device=x.device) / features)
    angles = torch.arange(time, device=x.device)[:, None] * rates
    a, b = x.chunk(2, -1)
    return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)


class Perceptron(nn.Module):
    """Up to four times the width, GELU, and down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[…, width]` to the same."""
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class GatedPerceptron(nn.Module):
    """SwiGLU (Shazeer 2020): 8/3 of the width, so that it has as many parameters as the plain perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * width // 3
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[…, width]` to the same."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Block(nn.Module):
    """A pre-norm transformer block: causal attention, then a perceptron; `modern` as in :class:`Transformer`."""

    def __init__(self, width: int, heads: int, *, modern: bool) -> None:
        super().__init__()
        norm = nn.RMSNorm if modern else nn.LayerNorm
        self.heads, self.modern = heads, modern
        self.norm1, self.norm2 = norm(width), norm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.perceptron = GatedPerceptron(width) if modern else Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, time, width]` to the same."""
        h, split = self.norm1(x), (self.heads, -1)
        q, k, v = (layer(h).unflatten(-1, split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if self.modern:
            q, k = rotated(q), rotated(k)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return torch.add(x, self.perceptron(self.norm2(x)))


class Transformer(nn.Module):
    """A decoder-only character model, `[batch, time]` of codes to `[batch, time, alphabet]` of logits.

    Plain, it is GPT-2's: learned positions, LayerNorm, GELU and a head of its own. `modern` is Llama's: rotary
    positions, RMSNorm, SwiGLU, no biases; and its head is the embedding again.
    """

    def __init__(self, context: int, width: int, layers: int, heads: int, *, modern: bool = False) -> None:
        super().__init__()
        self.token = nn.Embedding(len(ALPHABET), width)
        self.place = None if modern else nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, modern=modern) for _ in range(layers)))
        self.norm = nn.RMSNorm(width) if modern else nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)
        if modern:
            self.head.weight = self.token.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of the next character at each place."""
        x = self.token(codes)
        if self.place is not None:
            x = x + self.place.weight[: codes.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next character, in nats."""
    codes, following = batch
    return F.cross_entropy(model(codes).flatten(0, 1), following.flatten())


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss times the number of rows."""
    return torch.mul(loss(model, batch), len(batch[0]))
