"""The step through `torch.compile`: one graph for each kind of step, whatever the numbers that schedules change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from jorge.methods import Refresh
from jorge.options import Options

#: On CUDA torch 2.11 cannot reorder the loops of what it has made of foreach operators, and fails.
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"loop_ordering_after_fusion": False}
#: What schedules change.
_NUMBERS = ("lr", "momentum", "weight_decay", "beta1", "beta2")


class CompiledSteps:
    """The compiled steps of a param group on one device, and the numbers that they read anew each time.

    Args:
        device: of the parameters.
        dtype: of the numbers.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._tensors = {name: torch.zeros((), dtype=dtype, device=device) for name in _NUMBERS}
        self._values: dict[str, float] = {}
        self._weights: dict[float, Tensor] = {}
        self._steps: dict[int, Callable[..., None]] = {}

    def options(self, options: Options) -> Options:
        """The options with tensors for the numbers that schedules change: no graph then holds their values.

        A weight decay of 0 stays a number, as a step without decay has fewer operators.
        """
        given = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
        given |= {f"beta{i}": beta for i, beta in enumerate(options.betas, start=1)}
        for name, value in given.items():
            if isinstance(value, Tensor):
                self._tensors[name].copy_(value.reshape(()))
                self._values.pop(name, None)
            elif self._values.get(name) != value:
                self._tensors[name].fill_(value)
                self._values[name] = value
        decay = self._tensors["weight_decay"] if options.weight_decay != 0 else options.weight_decay
        betas = (self._tensors["beta1"], self._tensors["beta2"])
        return options.replace(
            lr=self._tensors["lr"], momentum=self._tensors["momentum"], weight_decay=decay, betas=betas
        )

    def refresh(self, refresh: Refresh) -> Refresh:
        """The same with a tensor for the weight, which grows with the gap between refreshes."""
        weight = refresh.weight
        assert not isinstance(weight, Tensor)
        if weight not in self._weights:
            self._weights[weight] = torch.full_like(self._tensors["lr"], weight)
        return replace(refresh, weight=self._weights[weight])

    def step(self, number: int, plain: Callable[..., None]) -> Callable[..., None]:
        """The step of a work set. Each has a code object of its own: torch counts its limit on graphs by these."""
        if number not in self._steps:
            assert isinstance(plain, FunctionType)
            own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
            self._steps[number] = torch.compile(own, dynamic=False, options=_OPTIONS)
        return self._steps[number]
