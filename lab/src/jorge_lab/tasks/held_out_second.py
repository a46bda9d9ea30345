"""Five more tasks that no default of Jorge's was chosen on, of kinds that neither the suite nor the first five have.

    jorge compare jorge_lab.tasks.held_out_second:tabular --optimizers jorge,sgd,adamw --seeds 3

They were committed before Jorge was run on them, but for a few steps at their smallest size. The learning rates are the
best of a small grid for the first-order baseline alone: `python -m jorge_lab.tuning.recipes`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from jorge_lab.tasks.data import fashion, shakespeare
from jorge_lab.tasks.data.text import ALPHABET
from jorge_lab.tasks.nets.residual import stem
from jorge_lab.tasks.task import Size


class TabularBlock(nn.Module):
    """A wide and a narrow layer around which the input goes (the residual network of Gorishniy et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, width]` to the same."""
        return torch.add(x, self.layers(x))


def tabular(size: Size) -> dict[str, Any]:
    """Few rows of few numbers, a squared error of standardised targets, dropout."""
    features, targets = (torch.from_numpy(array).float() for array in load_diabetes(return_X_y=True))
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    rows, held = order[88:], order[:88]
    features, targets = ((x - x[rows].mean(0)) / x[rows].std(0) for x in (features, targets[:, None]))
    width = 16 if size == "smoke" else 128
    return {
        "model": lambda: nn.Sequential(
            nn.Linear(10, width),
            *(TabularBlock(width) for _ in range(3)),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, 1),
        ),
        "data": ((features[rows], targets[rows]), (features[held], targets[held])),
        "loss": nn.MSELoss(),
        "adamw": {"lr": 3e-3, "weight_decay": 1e-2},
        "steps": {"smoke": 20, "small": 1500, "full": 20000}[size],
        "batch_size": 64,
        "title": "Diabetes, tabular residual network",
        "origin": "442 patients' ten measurements and the disease's progression (Efron et al. 2004), of scikit-learn",
        "why": "A table: few rows, standardised targets, dropout.",
    }


class NoisyBlock(nn.Module):
    """Two convolutions with group normalization, to the first of which the time is added."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(4, after), nn.GroupNorm(4, after)
        self.time = nn.Linear(32, after)
        self.around = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`[batch, before, height, width]` and `[batch, 32]` to `[batch, after, height, width]`."""
        h = F.silu(self.norm1(self.conv1(x)) + self.time(time)[:, :, None, None])
        return torch.add(F.silu(self.norm2(self.conv2(h))), self.around(x))


class DenoisingUNet(nn.Module):
    """The noise in a picture, at a known time: three resolutions, and a way around each (Ho et al. 2020, small)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, 32), nn.SiLU())
        self.down1, self.down2 = NoisyBlock(1, width), NoisyBlock(width, 2 * width)
        self.middle = NoisyBlock(2 * width, 2 * width)
        self.up2, self.up1 = NoisyBlock(4 * width, width), NoisyBlock(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Pictures `[batch, 1, 28, 28]` and times `[batch]` in [0, 1] to the noise in them."""
        angles = time[:, None] * torch.logspace(0, 2, 16, device=time.device)
        embedded = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        whole = self.down1(noisy, embedded)
        half = self.down2(F.avg_pool2d(whole, 2), embedded)
        quarter = self.middle(F.avg_pool2d(half, 2), embedded)
        half = self.up2(torch.cat([half, F.interpolate(quarter, scale_factor=2.0)], 1), embedded)
        whole = self.up1(torch.cat([whole, F.interpolate(half, scale_factor=2.0)], 1), embedded)
        noise: Tensor = self.out(whole)
        return noise


def noise_error(model: DenoisingUNet, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean square of what the network misses of the noise at times drawn evenly (Ho et al. 2020), cosine schedule."""
    clean = batch[0]
    time, noise = torch.rand(len(clean), device=clean.device), torch.randn_like(clean)
    angle = (time * torch.pi / 2)[:, None, None, None]
    return F.mse_loss(model(angle.cos() * clean + angle.sin() * noise, time), noise)


def diffusion(size: Size) -> dict[str, Any]:
    """A loss that is an average over levels of noise and can never be low at all of them."""
    pictures = fashion.load(size)
    return {
        "model": lambda: DenoisingUNet(4 if size == "smoke" else 16),
        "data": (pictures.train[:1], pictures.validation[:1]),
        "loss": noise_error,
        "adamw": {"lr": 2e-3},
        "steps": {"smoke": 20, "small": 600, "full": 20000}[size],
        "batch_size": 32,
        "title": "Fashion-MNIST, diffusion",
        "origin": "as the suite's task fashion",
        "why": "A network for many levels of noise at once, and noise that no batch size removes.",
    }


class Encoder(nn.Module):
    """Three convolutions, and a projection of two layers on the unit sphere (Chen et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            stem(1, width),
            stem(width, 2 * width),
            stem(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, 32),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """`[batch, 1, 28, 28]` to `[batch, 32]`, of length 1."""
        return F.normalize(self.layers(pictures), dim=1)


def distorted(pictures: Tensor) -> Tensor:
    """Each moved, enlarged and mirrored at random, with noise."""
    count = len(pictures)
    scale, mirror = 0.6 + 0.4 * torch.rand(count), torch.randint(0, 2, (count,)) * 2 - 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * mirror, scale
    theta[:, :, 2] = (torch.rand(count, 2) * 2 - 1) * (1 - scale)[:, None]
    grid = F.affine_grid(theta.to(pictures.device), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, align_corners=False)
    return moved + 0.2 * torch.randn_like(moved)


def agreement(model: Encoder, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy of finding each picture's other view among the batch's (SimCLR, Chen et al. 2020; at 0.2)."""
    views = torch.cat([distorted(batch[0]), distorted(batch[0])])
    points = model(views)
    likeness = points @ points.T / 0.2
    likeness = likeness.masked_fill(torch.eye(len(points), dtype=torch.bool, device=points.device), -torch.inf)
    other = torch.arange(len(points), device=points.device).roll(len(batch[0]))
    return F.cross_entropy(likeness, other)


def contrastive(size: Size) -> dict[str, Any]:
    """A loss of the whole batch, without targets, that noise of its own enters twice."""
    pictures = fashion.load(size)
    return {
        "model": lambda: Encoder(4 if size == "smoke" else 24),
        "data": (pictures.train[:1], pictures.validation[:1]),
        "loss": agreement,
        "adamw": {"lr": 3e-3},
        "steps": {"smoke": 20, "small": 500, "full": 20000}[size],
        "batch_size": 128,
        "title": "Fashion-MNIST, contrastive",
        "origin": "as the suite's task fashion",
        "why": "A loss of pairs of pictures, without targets.",
    }


class WordVectors(nn.Module):
    """A word from the mean of its neighbours' vectors (the continuous bag of words, Mikolov et al. 2013)."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, width)
        self.head = nn.Linear(width, words)

    def forward(self, neighbours: Tensor) -> Tensor:
        """Numbers of words `[batch, neighbours]` to logits of the word between them."""
        logits: Tensor = self.head(self.vectors(neighbours).mean(1))
        return logits


def between_neighbours(codes: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """For each word of a text its two neighbours on each side, and itself, as numbers below `words`; 0 is rare."""
    letters = [ALPHABET[code] for code in codes.flatten().tolist()]
    text = "".join(c if c.isalpha() else " " for c in letters).lower().split()
    known = {word: i for i, (word, _) in enumerate(Counter(text).most_common(words - 1), 1)}
    numbers = torch.tensor([known.get(word, 0) for word in text]).unfold(0, 5, 1)
    numbers = numbers[numbers[:, 2] > 0]
    return numbers[:, [0, 1, 3, 4]], numbers[:, 2]


def words(size: Size) -> dict[str, Any]:
    """Two tables of vectors and nothing else, of which a step moves some rows much and most hardly."""
    neighbours, between = between_neighbours(shakespeare.load(32, 256).train[0], 100 if size == "smoke" else 2000)
    held = len(between) // 50
    return {
        "model": lambda: WordVectors(100 if size == "smoke" else 2000, 8 if size == "smoke" else 64),
        "data": ((neighbours[held:], between[held:]), (neighbours[:held], between[:held])),
        "loss": nn.CrossEntropyLoss(),
        "adamw": {"lr": 0.03},
        "steps": {"smoke": 40, "small": 1500, "full": 20000}[size],
        "batch_size": 256,
        "title": "Shakespeare's plays, word vectors",
        "origin": "as the suite's task shakespeare",
        "why": "Nothing but tables of vectors, whose rows have gradients of very different size.",
    }


def potential(points: Tensor) -> Tensor:
    """`sin(πx) sin(2πy) + x y`: what the network is to find, `[batch, 2]` to `[batch, 1]`."""
    x, y = points.unbind(1)
    return ((torch.pi * x).sin() * (2 * torch.pi * y).sin() + x * y)[:, None]


def residual(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean square of `Δu − f` inside, in units of f's, and 10 times that of `u − u₀` on the boundary.

    Both are of a physics-informed network (Raissi et al. 2019); derivatives are by automatic differentiation.
    """
    inside, boundary = batch[0].detach().requires_grad_(), batch[1]
    with torch.enable_grad():
        value = model(inside)
        (slope,) = torch.autograd.grad(value.sum(), inside, create_graph=True)
        curvature = sum(torch.autograd.grad(slope[:, i].sum(), inside, create_graph=True)[0][:, i] for i in range(2))
    x, y = inside.unbind(1)
    wanted = -5 * torch.pi**2 * (torch.pi * x).sin() * (2 * torch.pi * y).sin()
    scale = (5 * torch.pi**2 / 2) ** 2
    return (curvature - wanted).square().mean() / scale + 10 * F.mse_loss(model(boundary), potential(boundary))


def physics(size: Size) -> dict[str, Any]:
    """A loss that contains the network's own second derivatives; double differentiation, and hardly any noise."""
    generator = torch.Generator().manual_seed(0)
    inside, boundary = torch.rand(4096, 2, generator=generator), torch.rand(4096, 2, generator=generator)
    side = torch.arange(4096) % 4
    boundary[torch.arange(4096), side % 2] = (side // 2).float()
    width = 16 if size == "smoke" else 64

    def model() -> nn.Module:
        inner = (layer for _ in range(3) for layer in (nn.Linear(width, width), nn.Tanh()))
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), *inner, nn.Linear(width, 1))

    def error(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.mse_loss(model(batch[0]), potential(batch[0]))

    return {
        "model": model,
        "data": ((inside[:3584], boundary[:3584]), (inside[3584:], boundary[3584:])),
        "loss": residual,
        "metric": ("squared error", error, "lower"),
        "adamw": {"lr": 0.01},
        "steps": {"smoke": 20, "small": 1500, "full": 20000}[size],
        "batch_size": 256,
        "title": "Poisson's equation, physics-informed network",
        "origin": "random points of the unit square",
        "why": "A loss of second derivatives of the network, with hardly any noise.",
    }
