"""What checks are made of: parameters, gradients, and steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jorge.testing.check import Factory, NotApplicable, expect, one_line

Shape = tuple[int, ...]
Params = list[nn.Parameter]

#: The shapes that checks use, where the optimizer takes them: a matrix, a vector, and the kernel of a convolution.
MIXED: tuple[Shape, ...] = ((6, 4), (5,), (4, 3, 2, 2))
#: Those for an optimizer that takes matrices alone, such as Muon.
MATRICES: tuple[Shape, ...] = ((6, 4), (5, 5))


def parameters(shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, seed: int = 1) -> Params:
    """Parameters with values from a normal distribution, the same at each call."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)) for shape in shapes]


def twins(params: Params) -> Params:
    """Other parameters with the same values, contiguous."""
    return [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]


def give_gradients(params: Params, generator: torch.Generator) -> None:
    """Give each parameter a gradient from a normal distribution."""
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype)


def advance(optimizer: torch.optim.Optimizer, params: Params, steps: int = 3, seed: int = 2) -> None:
    """Take steps along gradients that the seed alone decides, as it does what the optimizer draws."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        give_gradients(params, generator)
        optimizer.step()


def one_step(optimizer: torch.optim.Optimizer, params: Params, seed: int) -> None:
    """Take one step along gradients that the seed alone decides."""
    advance(optimizer, params, 1, seed)


def shapes_of(factory: Factory) -> tuple[Shape, ...]:
    """The shapes that the optimizer trains: :data:`MIXED`, or :data:`MATRICES` where it fails at these."""
    params = parameters(MIXED)
    try:
        advance(factory(params), params)
    except Exception:  # the checks of dims say what was wrong
        return MATRICES
    return MIXED


def start(factory: Factory) -> tuple[Params, torch.optim.Optimizer]:
    """Parameters of usual shapes and their optimizer."""
    params = parameters(shapes_of(factory))
    return params, factory(params)


def build(factory: Factory, params: Any, what: str) -> torch.optim.Optimizer:
    """The optimizer of parameters that it may refuse.

    Raises:
        NotApplicable: it refuses them when it is built.
    """
    try:
        return factory(params)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise NotApplicable(f"it refuses {what}: {one_line(error)}") from None


def values(params: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the values of parameters."""
    return [p.detach().clone() for p in params]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether values are the same to the bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def apart(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference between values."""
    pairs = zip(first, second, strict=True)
    return max((float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)


def expect_moved(before: Sequence[Tensor], params: Sequence[Tensor], when: str) -> None:
    """Fail unless each parameter that has elements has moved, to finite values."""
    for old, p in zip(before, params, strict=True):
        if p.numel():
            shape = tuple(p.shape)
            expect(bool(p.isfinite().all()), f"a weight of shape {shape} is not finite {when}")
            expect(not torch.equal(old, p), f"a weight of shape {shape} has not moved {when}")


def expect_unmoved(before: Sequence[Tensor], params: Sequence[Tensor], when: str) -> None:
    """Fail if any parameter has moved."""
    for old, p in zip(before, params, strict=True):
        expect(torch.equal(old, p), f"a weight of shape {tuple(p.shape)} has moved {when}")


def expect_alike(first: Sequence[Tensor], second: Sequence[Tensor], otherwise: str) -> None:
    """Fail unless values are the same to the bit."""
    if not same(first, second):
        raise AssertionError(f"{otherwise}: apart by {apart(first, second):.1e}")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each param group a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def quadratic(params: Params) -> Tensor:
    """The sum of the squares of all weights."""
    return torch.stack([p.float().square().sum() for p in params]).sum()


def descend(optimizer: torch.optim.Optimizer, params: Params, steps: int) -> tuple[float, float]:
    """Take steps on :func:`quadratic`; its value before and after."""
    first = float(quadratic(params))
    for _ in range(steps):
        optimizer.zero_grad()
        quadratic(params).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return first, float(quadratic(params))


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict()`, which nothing changes any more."""
    return copy.deepcopy(optimizer.state_dict())
