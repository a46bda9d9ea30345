"""The step through `torch.compile`: one graph for each kind of step, whatever the numbers that schedules change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from jorge.methods import Refresh
from jorge.scalars import DeviceScalars

#: On CUDA torch 2.11 cannot reorder the loops of what it has made of foreach operators, and fails.
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"loop_ordering_after_fusion": False}


class CompiledSteps:
    """The compiled steps of a param group on one device, and the numbers that they read anew each time.

    Args:
        device: of the parameters.
        dtype: of the numbers.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.scalars = DeviceScalars(device, dtype)
        self._device, self._dtype = device, dtype
        self._weights: dict[float, Tensor] = {}
        self._steps: dict[int, Callable[..., None]] = {}

    def refresh(self, refresh: Refresh) -> Refresh:
        """The same with a tensor for the weight, which grows with the gap between refreshes."""
        weight = refresh.weight
        assert not isinstance(weight, Tensor)
        if weight not in self._weights:
            self._weights[weight] = torch.full((), weight, dtype=self._dtype, device=self._device)
        return replace(refresh, weight=self._weights[weight])

    def step(self, number: int, plain: Callable[..., None]) -> Callable[..., None]:
        """The step of a work set. Each has a code object of its own: torch counts its limit on graphs by these."""
        if number not in self._steps:
            assert isinstance(plain, FunctionType)
            own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
            self._steps[number] = torch.compile(own, dynamic=False, options=_OPTIONS)
        return self._steps[number]
