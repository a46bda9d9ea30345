"""MNIST-1D: digits as curves of 40 points, made by the package mnist1d."""

from __future__ import annotations

import random
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from jorge_lab.tasks.task import Data, DataMissingError


@cache
def load(count: int, copies: int = 1) -> Data:
    """Curves `[…, 40]` and their digits, `count` in all, generated from the package's templates; a fifth validates.

    The generator takes 0.4 ms a curve, so that many are made of few: in the place of each training curve there are
    `copies` of it, each rolled by 0 to 39 points, drawn evenly. The generator rolls each curve, too.

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
    return Data(train if copies == 1 else rolled(*train, copies), validation)


def rolled(curves: Tensor, digits: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """`[count, points]` and `[count]` to `[copies × count, points]` and `[copies × count]`."""
    generator = torch.Generator().manual_seed(0)
    by = torch.randint(curves.shape[1], (copies * len(curves), 1), generator=generator)
    at = (torch.arange(curves.shape[1]) - by) % curves.shape[1]
    return curves.repeat(copies, 1).gather(1, at), digits.repeat(copies)
