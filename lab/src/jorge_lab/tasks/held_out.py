"""Five tasks that no default of Jorge's was chosen on, and none may be: kinds of network that the suite does not have.

    jorge compare jorge_lab.tasks.held_out:lstm jorge_lab.tasks.held_out:vae --optimizers jorge,sgd,adamw --seeds 3

They were committed before the first comparison on them, one seed with the usual learning rates (1e-3 or 2e-3 for Adam,
0.1 for SGD). These are now the best of a small grid for the first-order baseline alone:
`python -m jorge_lab.tuning.recipes`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from skimage import data as photographs
from torch import Tensor, nn

from jorge_lab.tasks.data import fashion, mnist, shakespeare
from jorge_lab.tasks.nets import transformer
from jorge_lab.tasks.nets.residual import stem
from jorge_lab.tasks.task import Size


class CharacterLSTM(nn.Module):
    """Embedding, two recurrent layers and a linear one: codes `[batch, length]` to logits `[batch, length, 128]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of the next character."""
        logits: Tensor = self.head(self.lstm(self.embedding(codes))[0])
        return logits


def lstm(size: Size) -> dict[str, Any]:
    """Recurrent weights, which are used at every place of a text and share a gradient of many time steps."""
    texts = shakespeare.load(32, 256)
    return {
        "model": lambda: CharacterLSTM(32 if size == "smoke" else 128),
        "data": (texts.train, texts.validation),
        "loss": transformer.loss,
        "adamw": {"lr": 0.02},
        "steps": {"smoke": 20, "small": 600, "full": 20000}[size],
        "batch_size": 32,
        "title": "Shakespeare's plays, character LSTM",
        "origin": "as the suite's task shakespeare",
        "why": "Recurrent weights: the suite has none.",
    }


class VariationalAutoencoder(nn.Module):
    """Strided convolutions to 16 latent features, and transposed ones back to the logits of pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 49, 32),
        )
        self.decoder = nn.Sequential(
            nn.Linear(16, 2 * width * 49),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, 7, 7)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )


def evidence_bound(model: VariationalAutoencoder, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean negative evidence lower bound in nats an image (Kingma and Welling 2014), with one draw of the latents."""
    images = batch[0]
    mean, log_variance = model.encoder(images).chunk(2, 1)
    latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    pixels = F.binary_cross_entropy_with_logits(model.decoder(latent), images, reduction="sum")
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    return torch.div(pixels + divergence, len(images))


def vae(size: Size) -> dict[str, Any]:
    """A loss of hundreds of nats whose gradients carry noise of its own, and transposed convolutions."""
    digits = mnist.load()
    return {
        "model": lambda: VariationalAutoencoder(8 if size == "smoke" else 32),
        "data": (digits.train[:1], digits.validation[:1]),
        "loss": evidence_bound,
        "adamw": {"lr": 3e-3},
        "steps": {"smoke": 20, "small": 600, "full": 20000}[size],
        "batch_size": 64,
        "title": "MNIST-5k, variational autoencoder",
        "origin": "as the suite's task mnist",
        "why": "A loss of hundreds of nats, noise that no batch size removes, and transposed convolutions.",
    }


def photograph(name: str) -> Tensor:
    """One that scikit-image ships, `[height, width, …]` in [0, 1]."""
    load: Any = getattr(photographs, name)
    return torch.from_numpy(load().copy()).float() / 255


class Denoiser(nn.Module):
    """Convolutions with batch normalization that predict the noise, which is taken off (DnCNN, Zhang et al. 2017)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        deeper = (stem(width, width, 1) for _ in range(layers - 1))
        self.noise = nn.Sequential(stem(3, width, 1), *deeper, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        """Pictures `[batch, 3, height, width]` without their noise."""
        return torch.sub(noisy, self.noise(noisy))


def denoising(size: Size) -> dict[str, Any]:
    """Regression on pictures, where batch normalization and a squared error meet."""
    generator = torch.Generator().manual_seed(0)
    side = 32
    crops = []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        tiles = photograph(name).permute(2, 0, 1).unfold(1, side, 16).unfold(2, side, 16)
        crops.append(tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, side, side))
    clean = torch.cat(crops)
    clean = clean[torch.randperm(len(clean), generator=generator)]
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    return {
        "model": lambda: Denoiser(8 if size == "smoke" else 32, 5),
        "data": ((noisy[256:], clean[256:]), (noisy[:256], clean[:256])),
        "loss": nn.MSELoss(),
        "adamw": {"lr": 3e-3},
        "steps": {"smoke": 20, "small": 300, "full": 20000}[size],
        "batch_size": 16,
        "title": "Photographs, denoising",
        "origin": "four colour photographs that scikit-image ships (public domain or CC0), in crops of 32 × 32",
        "why": "Regression of pixels, with losses of a hundredth.",
    }


class Sine(nn.Module):
    """A linear layer and a sine of thirty times it, with the initialization of SIREN (Sitzmann et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, *, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else (6 / inputs) ** 0.5 / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs]` to `[batch, outputs]`."""
        return torch.sin(30 * self.linear(x))


def coordinates(size: Size) -> dict[str, Any]:
    """A network that is a picture: no generalization, only optimization, and weights of unusual scale."""
    picture = F.avg_pool2d(photograph("camera")[None, None], 4)[0, 0]
    axes = [torch.linspace(-1, 1, count) for count in picture.shape]
    places = torch.cartesian_prod(*axes)
    values = picture.reshape(-1, 1) - 0.5
    width = 32 if size == "smoke" else 128
    return {
        "model": lambda: nn.Sequential(Sine(2, width, first=True), Sine(width, width), nn.Linear(width, 1)),
        "data": ((places, values), (places[::7], values[::7])),
        "loss": nn.MSELoss(),
        "adamw": {"lr": 3e-3},
        "steps": {"smoke": 20, "small": 1000, "full": 20000}[size],
        "batch_size": 4096,
        "title": "A photograph, sine network of coordinates",
        "origin": "the camera man that scikit-image ships (CC0), 128 × 128",
        "why": "A network that is a picture: optimization without generalization.",
    }


def separable(before: int, after: int, stride: int) -> list[nn.Module]:
    """A depthwise and a pointwise convolution, each with batch normalization and a ReLU."""
    return [
        nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before, bias=False),
        nn.BatchNorm2d(before),
        nn.ReLU(),
        nn.Conv2d(before, after, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]


def mobile_network(width: int) -> nn.Module:
    """A small MobileNet (Howard et al. 2017) for one channel of 28 × 28 and ten classes."""
    blocks = [
        *separable(width, 2 * width, 1),
        *separable(2 * width, 4 * width, 2),
        *separable(4 * width, 4 * width, 1),
        *separable(4 * width, 8 * width, 2),
    ]
    return nn.Sequential(stem(1, width), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def accuracy(logits: Tensor, classes: Tensor) -> Tensor:
    """Share of pictures that are classified right."""
    return torch.eq(logits.argmax(1), classes).float().mean()


def depthwise(size: Size) -> dict[str, Any]:
    """Depthwise filters of nine numbers, and SGD's recipe alone, which Jorge's settings then come from."""
    pictures = fashion.load(size)
    return {
        "model": lambda: mobile_network(8 if size == "smoke" else 24),
        "data": (pictures.train, pictures.validation),
        "loss": nn.CrossEntropyLoss(),
        "metric": accuracy,
        "sgd": {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4},
        "steps": {"smoke": 20, "small": 400, "full": 20000}[size],
        "batch_size": 64,
        "title": "Fashion-MNIST, depthwise-separable network",
        "origin": "as the suite's task fashion",
        "why": "Depthwise filters, and a recipe for SGD only.",
    }
