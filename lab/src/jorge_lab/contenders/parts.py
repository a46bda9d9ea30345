"""Several optimizers as one: for those that take some of a model's parameters alone."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn


class Parts(torch.optim.Optimizer):
    """Optimizers that step together. A scheduler sees the param groups of all of them, the first part's first.

    Args:
        parts: built optimizers, each with some of the parameters.
        views: pairs of a parameter of the model and the matrix that a part has instead, which shares its memory.
    """

    def __init__(
        self, parts: Sequence[torch.optim.Optimizer], views: Sequence[tuple[nn.Parameter, nn.Parameter]] = ()
    ) -> None:
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.parts, self.views = list(parts), list(views)
        self._gather()

    def _gather(self) -> None:
        """Show the groups and the states of the parts, which are other objects after they were loaded."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        states: Any = ChainMap(*(part.state for part in self.parts))
        self.state = states

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts, `{"parts": […]}`."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load each part's."""
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)
        self._gather()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, also those of the parameters behind the views."""
        super().zero_grad(set_to_none)
        for p, _ in self.views:
            if p.grad is not None:
                p.grad = None if set_to_none else p.grad.zero_()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p, matrix in self.views:
            matrix.grad = None if p.grad is None else _in_memory_order(p.grad, p).reshape(matrix.shape)
        for part in self.parts:
            part.step()
        return loss


def the_rest(model: nn.Module, taken: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The model's parameters that are not taken."""
    chosen = {id(p) for p in taken}
    return [p for p in model.parameters() if id(p) not in chosen]


def as_matrix(p: nn.Parameter) -> nn.Parameter:
    """A parameter of two dims or more as a matrix, `[first, all others]`, that shares its memory.

    The others are in the order in which they lie there: of kernels in channels_last the channels come last.
    """
    return nn.Parameter(_in_memory_order(p.detach(), p).view(p.shape[0], -1))


def _in_memory_order(tensor: torch.Tensor, p: nn.Parameter) -> torch.Tensor:
    """A tensor of the shape of a parameter with the dims in the order in which the parameter's lie in memory."""
    return tensor if p.is_contiguous() else tensor.permute(0, *range(2, tensor.dim()), 1)
