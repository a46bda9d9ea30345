import pytest
import torch

from jorge import Jorge
from jorge.reference import reference_init, reference_root, reference_step
from jorge.roots import binomial


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(6, 6), (12, 3), (3, 12)])
def test_the_optimizer_is_the_paper_for_one_matrix(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    weight = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    expected = weight.detach().clone()
    state = reference_init(expected)
    optimizer = Jorge(
        [weight], lr=0.01, weight_decay=0.1, method="binomial", init="paper", interval=1, warmup_refreshes=0
    )
    for _ in range(20):
        grad = torch.randn(shape, dtype=dtype)
        weight.grad = grad.clone()
        optimizer.step()
        expected = reference_step(expected, grad, state, lr=0.01, momentum=0.9, weight_decay=0.1)
    mine = optimizer.state[weight]
    assert (mine["left.0"] - state.L).norm() <= tolerance * state.L.norm()
    assert (mine["right.0"] - state.R).norm() <= tolerance * state.R.norm()
    assert (weight.detach() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("narrow", [False, True])
def test_both_forms_are_the_reference(narrow: bool) -> None:
    root = torch.eye(9, dtype=torch.float64) + 0.1 * torch.randn(9, 9, dtype=torch.float64)
    grad = torch.randn(9, 2, dtype=torch.float64)
    expected = reference_root(root, grad @ grad.T)
    assert torch.allclose(binomial(root[None], grad[None], narrow=narrow)[0], expected, rtol=1e-10, atol=1e-12)


def test_the_guard_keeps_the_root() -> None:
    root = torch.eye(3)
    assert torch.equal(reference_root(root, torch.zeros(3, 3)), root)
    assert torch.equal(reference_root(root, torch.full((3, 3), torch.nan)), root)
    assert torch.equal(binomial(root[None], torch.zeros(1, 3, 2))[0], root)
