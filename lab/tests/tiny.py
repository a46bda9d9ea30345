"""Two tasks of a second, with every kind of parameter that the laboratory's models have."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.task import Batch, Data, FirstOrder, Task


class Images(nn.Module):
    """`[batch, 1, 6, 6]` to 4 logits: 4-D and 3-D kernels, BatchNorm, and a matrix in the middle and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.along, self.middle, self.head = nn.Conv1d(6, 8, 3), nn.Linear(8 * 14, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(images))).flatten(2)
        logits: Tensor = self.head(F.relu(self.middle(F.relu(self.along(x)).flatten(1))))
        return logits


class Tokens(nn.Module):
    """`[batch, 5]` of codes to 8 logits each: an embedding, LayerNorm and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.norm, self.head = nn.Embedding(8, 12), nn.LayerNorm(12), nn.Linear(12, 8, bias=False)
        self.mix, self.up = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 12)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.token(codes)
        h = self.norm(x)
        x = x + self.mix(h, h, h, need_weights=False)[0]
        logits: Tensor = self.head(F.relu(self.up(x)))
        return logits


class WithUnused(Images):
    """A layer that is never called, whose parameters have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(8, 8)


def _images() -> Data:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(80) % 4
    stripes = torch.stack([torch.sin((k + 1) * torch.arange(36.0)).view(1, 6, 6) for k in range(4)])
    images = stripes[kinds] + 0.3 * torch.randn(80, 1, 6, 6, generator=generator)
    return Data((images[:60], kinds[:60]), (images[60:], kinds[60:]))


def _tokens() -> Data:
    codes = torch.randint(8, (80, 5), generator=torch.Generator().manual_seed(0))
    return Data((codes[:60], (3 * codes[:60] + 1) % 8), (codes[60:], (3 * codes[60:] + 1) % 8))


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def _summed(model: nn.Module, batch: Batch) -> Tensor:
    return torch.mul(_loss(model, batch), len(batch[0]))


def tiny(model: type[nn.Module] = Images, steps: int = 40) -> Task:
    """The task of a model of this module."""
    return Task(
        name=f"tiny-{model.__name__.lower()}",
        title="tiny",
        origin="made up",
        why="for tests",
        size="smoke",
        recipe=FirstOrder(
            baseline="adamw" if model is Tokens else "sgd",
            transfer="adamw" if model is Tokens else "sgd",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
            adamw={"lr": 1e-2, "weight_decay": 0.0},
            schedule="cosine",
            warmup=0.1,
        ),
        steps=steps,
        batch_size=20,
        metric=("loss", "lower"),
        load=_tokens if model is Tokens else _images,
        model=model,
        loss=_loss,
        score=_summed,
    )


def tokens() -> Task:
    """As a command names it."""
    return tiny(Tokens)
