"""Fashion-MNIST: 70,000 pictures of clothes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from torch import Tensor

from jorge_lab.tasks.data import idx
from jorge_lab.tasks.task import Data, DataMissingError, Size

#: Environment variable that names the folder of the data where it is not Debian's.
FOLDER = "JORGE_FASHION_MNIST"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
ORIGIN = "Fashion-MNIST (Zalando Research), 70,000 pictures as packaged by Debian in dataset-fashion-mnist (MIT)"
#: Mean and standard deviation of the training pictures' pixels in [0, 1].
_MEAN, _SD = 0.286, 0.353
_VALIDATION = {"smoke": 500, "small": 2000, "full": 10_000}


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
