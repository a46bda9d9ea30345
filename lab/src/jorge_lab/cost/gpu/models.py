"""Three trainings in the precisions that people train in: ResNet-50, ViT-S/16 and GPT-2 small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[], Tensor]


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        shortcut: Tensor = self.down(x)
        return functional.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


class ResNet50(nn.Module):
    """As torchvision's: 25,557,032 parameters at its width of 64 (He et al., arXiv 1512.03385)."""

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        layers: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                layers.append(_Bottleneck(inputs, width << stage, 2 if stage and i == 0 else 1))
                inputs = 4 * (width << stage)
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of `[batch, 3, side, side]`."""
        x = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layers(functional.max_pool2d(x, 3, 2, 1))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """Norms first, attention with one matrix for q, k and v, an MLP of four widths."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, tokens, width))
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return out


class ViT(nn.Module):
    """ViT-S/16 at its width of 384: 22,050,664 parameters (Dosovitskiy et al., arXiv 2010.11929)."""

    def __init__(self, width: int = 384, depth: int = 12, side: int = 224, classes: int = 1000) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, (side // 16) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(width, max(1, width // 64), causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of `[batch, 3, side, side]`."""
        x = self.patch(images).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


class GPT(nn.Module):
    """GPT-2 small with tied embeddings: 124,439,808 parameters (Radford et al. 2019)."""

    def __init__(self, width: int = 768, depth: int = 12, context: int = 1024, vocabulary: int = 50257) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.Sequential(*(_Block(width, max(1, width // 64), causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[batch · context, vocabulary]`."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        return functional.linear(self.norm(self.blocks(x)), self.wte.weight).flatten(0, 1)


@dataclass(frozen=True)
class Training:
    """A model and a batch of noise.

    Args:
        title: sizes and precisions, for the table.
        baseline: whose recipe it has.
        build: from whether it is tiny, on the device.
        shape: the model and its input in full size, for torch's default device.
    """

    title: str
    baseline: Literal["sgd", "adamw"]
    build: Callable[[bool, torch.device], tuple[nn.Module, Loss]]
    shape: Callable[[], tuple[nn.Module, Tensor]]


def _loss(model: nn.Module, x: Tensor, y: Tensor, *, autocast: bool) -> Loss:
    def loss() -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
            return functional.cross_entropy(model(x), y)

    return loss


def _pictures(tiny: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    batch, side = (4, 32) if tiny else (256, 224)
    return torch.randn(batch, 3, side, side, device=device), torch.randint(10, (batch,), device=device)


def _resnet50(tiny: bool, device: torch.device) -> tuple[nn.Module, Loss]:
    model = (ResNet50(8, (1, 1, 1, 1), 10) if tiny else ResNet50()).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = _pictures(tiny, device)
    return model, _loss(model, x.to(memory_format=torch.channels_last), y, autocast=True)


def _vit(tiny: bool, device: torch.device) -> tuple[nn.Module, Loss]:
    model = (ViT(32, 2, 32, 10) if tiny else ViT()).to(device)
    return model, _loss(model, *_pictures(tiny, device), autocast=True)


def _gpt2(tiny: bool, device: torch.device) -> tuple[nn.Module, Loss]:
    batch, context, vocabulary = (2, 16, 600) if tiny else (32, 1024, 50257)
    model = (GPT(32, 2, context, vocabulary) if tiny else GPT()).to(device, torch.bfloat16)
    tokens = torch.randint(vocabulary, (batch, context), device=device)
    return model, _loss(model, tokens, tokens.roll(-1, 1).flatten(), autocast=False)


TRAININGS = {
    "resnet50": Training(
        "ResNet-50, batch 256 of 224 × 224, bfloat16 autocast, channels_last",
        "sgd",
        _resnet50,
        lambda: (ResNet50(), torch.empty(256, 3, 224, 224)),
    ),
    "vit-s": Training(
        "ViT-S/16, batch 256 of 224 × 224, bfloat16 autocast",
        "adamw",
        _vit,
        lambda: (ViT(), torch.empty(256, 3, 224, 224)),
    ),
    "gpt2": Training(
        "GPT-2 small, 32 × 1024 tokens, bfloat16 weights",
        "adamw",
        _gpt2,
        lambda: (GPT().to(torch.bfloat16), torch.empty(32, 1024, dtype=torch.long)),
    ),
}


def build(name: str, session_tiny: bool, device: torch.device) -> tuple[nn.Module, Loss]:
    """The model and its loss, from a seed."""
    torch.manual_seed(0)
    return TRAININGS[name].build(session_tiny, device)
