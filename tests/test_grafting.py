"""The average that is preconditioned is the graft's own: what looks ahead of it, before it is written."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, grafting
from jorge.grafting import Mask

MASK = Mask(torch.ones(()), [None, None])


def some(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, generator=generator), torch.randn(1, 5, 2, generator=generator)]


@pytest.mark.parametrize("number", [float, torch.tensor, lambda value: torch.tensor([value], dtype=torch.float64)])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_what_looks_ahead_is_what_the_graft_is_about_to_have(kind: str, nesterov: bool, number: Any) -> None:
    """With Nesterov momentum: what it would have, were the gradient the same once more."""
    buffers, grads = some(0), some(1)
    kept = [tensor.clone() for tensor in [*buffers, *grads]]
    found = grafting.ahead(kind, buffers, grads, number(0.9), nesterov=nesterov)
    assert all(torch.equal(now, before) for now, before in zip([*buffers, *grads], kept, strict=True))
    assert not {each.data_ptr() for each in found} & {each.data_ptr() for each in [*buffers, *grads]}
    for _ in range(1 + nesterov):
        if kind == "sgd":
            grafting.sgd(buffers, grads, MASK, 0.9)
        else:
            squares, steps = [torch.zeros_like(grad) for grad in grads], torch.zeros(3)
            grafting.adam(buffers, squares, steps, grads, MASK, aheads=[], betas=(0.9, 0.99), eps=1e-8)
    for one, other in zip(found, buffers, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"capturable": True}])
@pytest.mark.parametrize("number", [float, torch.tensor])
def test_momentum_takes_the_place_of_the_first_of_betas(number: Any, options: dict[str, Any]) -> None:
    ends = []
    numbers: list[dict[str, Any]] = [
        {"momentum": number(0.7), "betas": (number(0.9), number(0.99))},
        {"betas": (number(0.7), number(0.99))},
    ]
    for given in numbers:
        torch.manual_seed(0)
        matrix, vector = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))
        optimizer = Jorge([matrix, vector], lr=0.1, **given, **options)
        for _ in range(5):
            matrix.grad, vector.grad = torch.randn(6, 4), torch.randn(6)
            optimizer.step()
        ends.append([matrix, vector, *(optimizer.state[p]["exp_avg"] for p in (matrix, vector))])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)
