"""MNIST-1D (Greydanus and Kobak 2024): digits as curves of 40 points, with a perceptron and with a 1-D conv net."""

from __future__ import annotations

import random
from functools import cache, partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge.lab.task import Batch, Data, DataMissingError, FirstOrder, Size, Task

_POINTS, _DIGITS = 40, 10


@cache
def load(count: int) -> Data:
    """Curves `[…, 40]` and their digits, `count` in all, generated from the package's templates; a fifth validates.

    Raises:
        DataMissingError: mnist1d is not installed.
    """
    if find_spec("mnist1d") is None:
        raise DataMissingError(
            "the tasks mnist1d-… generate their curves with the package mnist1d: pip install mnist1d"
        )
    import numpy as np
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples = count
    # make_dataset, unlike get_dataset, downloads nothing; it seeds the generators of the whole process.
    states = random.getstate(), np.random.get_state()
    made = make_dataset(arguments)
    random.setstate(states[0])
    np.random.set_state(states[1])
    train, validation = (
        (torch.from_numpy(made[x]).float(), torch.from_numpy(made[y])) for x, y in (("x", "y"), ("x_test", "y_test"))
    )
    return Data(train, validation)


def perceptron() -> nn.Module:
    """40-256-256-10 with ReLU; 78,858 parameters."""
    return nn.Sequential(nn.Linear(_POINTS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, _DIGITS))


def convolutional() -> nn.Module:
    """The network of the data's authors: three convolutions of 25 channels, then a linear layer; 5,210 parameters."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, _POINTS))]
    for before, kernel in ((1, 5), (25, 3), (25, 3)):
        layers += [nn.Conv1d(before, 25, kernel, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(25 * 5, _DIGITS))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats."""
    curves, digits = batch
    return F.cross_entropy(model(curves), digits)


def correct(model: nn.Module, batch: Batch) -> Tensor:
    """How many curves are classified right."""
    curves, digits = batch
    return torch.eq(model(curves).argmax(1), digits).sum()


_COUNTS: dict[Size, int] = {"smoke": 5000, "small": 20000, "full": 50000}
_ORIGIN = "MNIST-1D (Greydanus and Kobak 2024), generated offline by the package mnist1d (Apache-2.0)"


def mlp_task(size: Size) -> Task:
    """The task mnist1d-mlp at a size."""
    return Task(
        name="mnist1d-mlp",
        title="MNIST-1D, perceptron",
        origin=_ORIGIN,
        why="The plainest deep network: its layers are matrices and its step is quick, so optimizers' own cost shows.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4},
            adamw={"lr": 1e-2, "weight_decay": 1e-2},
            schedule="cosine",
        ),
        steps={"smoke": 100, "small": 1500, "full": 10000}[size],
        batch_size=100,
        metric=("accuracy", "higher"),
        load=partial(load, _COUNTS[size]),
        model=perceptron,
        loss=loss,
        score=correct,
    )


def conv_task(size: Size) -> Task:
    """The task mnist1d-conv at a size."""
    return Task(
        name="mnist1d-conv",
        title="MNIST-1D, 1-D conv net",
        origin=_ORIGIN,
        why="Kernels of three dims, which no image task has.",
        size=size,
        recipe=FirstOrder(
            baseline="adamw",
            sgd={"lr": 0.3, "momentum": 0.9, "weight_decay": 5e-4},
            adamw={"lr": 3e-2, "weight_decay": 1e-2},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 100, "small": 1000, "full": 10000}[size],
        batch_size=100,
        metric=("accuracy", "higher"),
        load=partial(load, _COUNTS[size]),
        model=convolutional,
        loss=loss,
        score=correct,
    )
