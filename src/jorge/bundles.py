"""What is elementwise: parameters of one shape together, with their momentum and graft buffers.

The buffers of a :class:`Bundle` are `[count, *shape]`, so that the number of operators does not grow with the number
of layers; readers of the state see a view a parameter.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from jorge import grafting
from jorge.blocks import Blocking
from jorge.routing import compute_dtype

Group = dict[str, Any]


def _dense_like(param: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Zeros `[count, *shape]` whose every slice has the memory format of `param`."""
    strides = torch.empty_like(param, device="meta").stride()
    flat = torch.zeros(count * param.numel(), dtype=dtype, device=param.device)
    return flat.as_strided((count, *param.shape), (param.numel(), *strides))


class Constants:
    """Small constant tensors on a device by what is in them, the last few that were asked for.

    They are copied there without waiting for the device.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None, most: int = 32) -> None:
        self.device = device
        self.dtype = dtype
        self.most = most
        self._kept: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def get(self, values: tuple[Any, ...]) -> Tensor:
        """`[len(values)]` on the device."""
        if values in self._kept:
            self._kept.move_to_end(values)
            return self._kept[values]
        made = torch.tensor(values, dtype=self.dtype, device="cpu")  # whatever torch's defaults are
        if self.device.type == "cuda":
            made = made.pin_memory()
        self._kept[values] = made = made.to(self.device, non_blocking=True)
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return made


class Bundle:
    """Equal-shaped parameters with their buffers.

    What a step works on is a tensor `[count, *shape]`: the gradients, then the directions, then the updates.
    """

    def __init__(self, params: list[Tensor], blocking: Blocking | None, group: Group) -> None:
        first = params[0]
        self.params = params
        self.layout = (first.shape, first.dtype)
        self.blocking = blocking
        self.compute = compute_dtype(first.dtype)
        stored = group["preconditioner_dtype"] if blocking else None
        dtypes = grafting.buffer_dtypes(group["grafting"], self.compute, stored)
        if blocking:
            dtypes["momentum_buffer"] = self.compute
        #: Beside these there is what lies in a tensor of the bucket's, one part a bundle (:mod:`jorge.buckets`).
        self.buffers = {name: _dense_like(first, len(params), dtype) for name, dtype in dtypes.items()}
        self.steps = [0] * len(params)  # steps in which each parameter had a gradient, on the host
        self.present: tuple[bool, ...] = (True,) * len(params)  # who has a gradient in this step
        self._masks = Constants(first.device)

    @property
    def bytes(self) -> int:
        """Bytes of the tensor that a step works on."""
        return self.numel * self.compute.itemsize

    def look(self) -> list[Tensor]:
        """See who has a gradient, and count the step for them; their gradients."""
        grads = [p.grad for p in self.params]
        self.present = tuple(grad is not None for grad in grads)
        self.steps = [step + present for step, present in zip(self.steps, self.present, strict=True)]
        return [grad for grad in grads if grad is not None]

    def mask(self) -> Tensor | None:
        """Which parameters have a gradient, `[count, 1, …]`; `None` where all have one."""
        if all(self.present):
            return None
        return self._masks.get(self.present).view(-1, *(1,) * self.params[0].dim())

    @property
    def numel(self) -> int:
        """Elements of the tensor that a step works on."""
        return len(self.params) * self.params[0].numel()

    def matrices(self, work: Tensor) -> Tensor:
        """The working tensor as `[count, M, N]`."""
        assert self.blocking is not None
        return work.view(len(self.params), *self.blocking.matrix)
