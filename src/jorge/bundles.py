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

    def __init__(self, device: torch.device, most: int = 32) -> None:
        self.device = device
        self.most = most
        self._kept: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def get(self, values: tuple[Any, ...]) -> Tensor:
        """`[len(values)]` on the device."""
        if values in self._kept:
            self._kept.move_to_end(values)
            return self._kept[values]
        made = torch.tensor(values)
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
        self.buffers = {name: _dense_like(first, len(params), dtype) for name, dtype in dtypes.items()}
        if group["grafting"] == "adam":
            self.buffers["adam_step"] = torch.zeros(len(params), dtype=torch.float32, device=first.device)
        self.steps = [0] * len(params)  # steps in which each parameter had a gradient, on the host
        self.present: tuple[bool, ...] = (True,) * len(params)  # who has a gradient in this step
        self._masks = Constants(first.device)

    @property
    def bytes(self) -> int:
        """Bytes of the tensor that a step works on."""
        return len(self.params) * self.params[0].numel() * self.compute.itemsize

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

    def room(self) -> tuple[Tensor, list[Tensor]]:
        """A working tensor, and its slices for the gradients that are there; the others' slices are zero."""
        make = torch.empty if all(self.present) else torch.zeros
        work = make((len(self.params), *self.layout[0]), dtype=self.compute, device=self.params[0].device)
        return work, [view for view, present in zip(work.unbind(0), self.present, strict=True) if present]

    def matrices(self, work: Tensor) -> Tensor:
        """The working tensor as `[count, M, N]`."""
        assert self.blocking is not None
        return work.view(len(self.params), *self.blocking.matrix)

    def graft(self, work: Tensor, active: Tensor, group: Group) -> Tensor:
        """Advance the graft optimizer by the gradients; its direction."""
        if group["grafting"] == "sgd":
            buffer = self.buffers["graft_momentum_buffer"]
            return grafting.sgd(buffer, work, active, momentum=group["momentum"], nesterov=group["nesterov"])
        names = ("exp_avg", "exp_avg_sq", "adam_step")
        exp_avg, exp_avg_sq, steps = (self.buffers[name] for name in names)
        decay = group["beta2_decay"] if self.blocking else None  # vectors and scalars take Adam's own step
        rule = {"betas": group["betas"], "eps": group["eps"], "beta2_decay": decay}
        return grafting.adam(exp_avg, exp_avg_sq, steps, work, active, **rule)

    def update(self, work: Tensor, length: Tensor, active: Tensor, group: Group) -> Tensor:
        """The update from the direction, of the graft's `length`, in the memory of `work`: `M ← μM + (1−μ)D`.

        With Nesterov momentum the update looks ahead once more, as the graft's does: `μM + (1−μ)D`.
        """
        buffer = self.buffers["momentum_buffer"]
        grafting.average(buffer, work, active, group["momentum"])
        ahead = work
        if group["nesterov"]:
            grafting.blend(work, buffer, group["momentum"])
        else:
            ahead = buffer
        return torch.mul(ahead, grafting.ratio(ahead, length, active), out=work)
