"""Fashion-MNIST, all 70,000 pictures of clothes, with a small residual network."""

from __future__ import annotations

import os
from functools import cache, partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.task import Data, DataMissingError, FirstOrder, Size, Task
from jorge_lab.tasks.data import idx
from jorge_lab.tasks import mnist

#: Environment variable that names the folder of the data where it is not Debian's.
FOLDER = "JORGE_FASHION_MNIST"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
ORIGIN = "Fashion-MNIST (Zalando Research), 70,000 pictures as packaged by Debian in dataset-fashion-mnist (MIT)"


@cache
def pictures() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60,000 training pictures, uint8 `[60000, 28, 28]`, their classes, int64, then the same of the 10,000 for tests.

    Raises:
        DataMissingError: the data is not installed, or not what it should be.
    """
    folder = Path(os.environ.get(FOLDER, _DEBIAN))
    found: list[Tensor] = []
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        for name, shape in ((f"{part}-images-idx3-ubyte", (count, 28, 28)), (f"{part}-labels-idx1-ubyte", (count,))):
            path = folder / name
            try:
                array = idx.read(path if path.exists() else path.with_name(f"{name}.gz"))
            except (OSError, ValueError) as error:
                raise _missing(folder, str(error)) from None
            if array.shape != shape:
                raise _missing(folder, f"{name} has the shape {tuple(array.shape)}, not {shape}")
            found.append(array)
    train, train_classes, test, test_classes = found
    return train, train_classes.long(), test, test_classes.long()


def _missing(folder: Path, reason: str) -> DataMissingError:
    return DataMissingError(
        f"Fashion-MNIST is not in {folder} ({reason}). On Debian and Ubuntu: apt-get install dataset-fashion-mnist. "
        f"Elsewhere put its four files, {{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte, gzipped or not, into a "
        f"folder and name that in the environment variable {FOLDER}"
    )


#: Mean and standard deviation of the training pictures' pixels in [0, 1].
_MEAN, _SD = 0.286, 0.353
_VALIDATION = {"smoke": 500, "small": 2000, "full": 10_000}
#: Residual blocks in each of the three stages.
_BLOCKS = {"smoke": 1, "small": 1, "full": 3}
_WIDTHS = (16, 32, 64)


@cache
def _normalised() -> tuple[Tensor, Tensor]:
    """Training and test pictures as floats `[count, 1, 28, 28]` of mean 0 and standard deviation 1."""
    train, _, test, _ = pictures()
    scaled = [part.unsqueeze(1).float().div_(255).sub_(_MEAN).div_(_SD) for part in (train, test)]
    return scaled[0], scaled[1]


def load(size: Size) -> Data:
    """All training pictures, normalised, and their classes; the first test pictures, as many as the size says.

    Raises:
        DataMissingError: the data is not installed.
    """
    _, train_classes, _, test_classes = pictures()
    train, test = _normalised()
    kept = _VALIDATION[size]
    return Data((train, train_classes), (test[:kept], test_classes[:kept]))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch normalization and a way around, a 1 × 1 convolution where shapes differ."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, before, height, width]` to `[batch, after, height / stride, width / stride]`."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.around(x))


def build(blocks: int) -> nn.Module:
    """A residual network for small pictures (He et al. 2016, section 4.2) of `6 × blocks + 2` layers."""
    width = _WIDTHS[0]
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage, after in enumerate(_WIDTHS):
        for block in range(blocks):
            layers.append(BasicBlock(width, after, stride=2 if stage and not block else 1))
            width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="fashion",
        title="Fashion-MNIST, residual network",
        origin=ORIGIN,
        why="Batch normalization, skip connections and SGD with step decay: the setting that Jorge was introduced in.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
            adamw={"lr": 1e-2, "weight_decay": 1e-2},
            schedule="step",
        ),
        steps={"smoke": 30, "small": 300, "full": 20000}[size],
        batch_size=128,
        metric=("accuracy", "higher"),
        load=partial(load, size),
        model=partial(build, _BLOCKS[size]),
        loss=mnist.loss,
        score=mnist.correct,
    )
