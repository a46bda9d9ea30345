"""The numbers that schedules change, as tensors on the device: what is compiled or captured then holds no value."""

from __future__ import annotations

import torch
from torch import Tensor

from jorge.options import Options

#: What schedules change.
NAMES = ("lr", "momentum", "weight_decay", "beta2")


class DeviceScalars:
    """0-dim tensors that stay where they are, and take a number over where it has changed.

    Args:
        device: where they are.
        dtype: of them.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            self._tensors = {name: torch.zeros((), dtype=dtype, device=device) for name in NAMES}
        self._values: dict[str, float] = {}

    def options(self, options: Options) -> Options:
        """The options with tensors for the numbers that schedules change.

        A weight decay of 0 stays a number, as a step without decay has fewer operators.
        """
        given = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
        given["beta2"] = options.betas[1]  # the first is the momentum
        for name, value in given.items():
            if isinstance(value, Tensor):
                self._tensors[name].copy_(value.reshape(()), non_blocking=True)
                self._values.pop(name, None)
            elif self._values.get(name) != value:
                self._tensors[name].fill_(value)
                self._values[name] = value
        decay = self._tensors["weight_decay"] if options.decays else options.weight_decay
        momentum = self._tensors["momentum"]
        betas = (momentum, self._tensors["beta2"])
        return options.replace(lr=self._tensors["lr"], momentum=momentum, weight_decay=decay, betas=betas)
