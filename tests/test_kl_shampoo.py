"""KL-Shampoo by `eigh`, the oracle of `whitening`: known factors, its formula, and `whitening` near it."""

import math

import pytest
import torch
from torch import Tensor

from jorge.methods import METHODS, Refresh
from jorge.methods.kl_shampoo import KLShampoo
from jorge.options import Options
from jorge.stacking import Blocks, refresh_blocks
from jorge.trace import Trace

CPU = torch.device("cpu")


def power(factor: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(factor)
    found: Tensor = (vectors * values**exponent) @ vectors.mT
    return found


def factor(d: int, condition: float) -> Tensor:
    """A symmetric matrix of this condition number, `[d, d]`."""
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    found: Tensor = (turn * torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)) @ turn.mT
    return found


def gradients(count: int, a: Tensor, b: Tensor) -> Tensor:
    """`A^(1/2) Z B^(1/2)` of white noise Z, `[count, m, n]`."""
    return power(a, 0.5) @ torch.randn(count, len(a), len(b), dtype=torch.float64) @ power(b, 0.5)


def relative(root: Tensor, exact: Tensor) -> float:
    """Distance of two roots after scaling both to a mean diagonal of 1."""
    root, exact = root / root.diagonal().mean(), exact / exact.diagonal().mean()
    return float((root - exact).norm() / exact.norm())


def followed(grads: Tensor, damping: float = 0.0, beta2: float = 1.0) -> dict[str, Tensor]:
    """The roots after all of these gradients; with β2 = 1 each counts alike."""
    oracle = KLShampoo(tuple(grads.shape[1:]), CPU, damping=damping)  # type: ignore[arg-type]
    for k, grad in enumerate(grads):
        share = max(1 - beta2, 1 / (k + 2))  # 1 would leave the second refresh a singular factor
        oracle.refresh(grad, Refresh(), {"left": share, "right": share})
    return oracle.roots()


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_it_finds_the_factors_that_the_gradients_were_made_of(condition: float) -> None:
    a, b = factor(8, condition), factor(6, condition)
    roots = followed(gradients(3000, a, b))
    assert relative(roots["left"], power(a, -0.5)) < 0.03
    assert relative(roots["right"], power(b, -0.5)) < 0.03


def test_it_is_the_formula() -> None:
    a, b, share, damping = torch.eye(4, dtype=torch.float64), torch.eye(3, dtype=torch.float64), 0.25, 1e-2
    oracle = KLShampoo((4, 3), CPU, damping=damping)
    for grad in torch.randn(5, 4, 3, dtype=torch.float64):
        oracle.refresh(grad, Refresh(), {"left": share, "right": share})
        noise = damping * grad.square().mean()
        x = grad @ b.inverse() @ grad.T + noise * b.inverse().trace() * torch.eye(4)
        y = grad.T @ a.inverse() @ grad + noise * a.inverse().trace() * torch.eye(3)
        tau, other = (a.inverse() @ x).trace() / 4, (b.inverse() @ y).trace() / 3
        a, b = (1 - share) * a + share * x / tau, (1 - share) * b + share * y / other
    torch.testing.assert_close(oracle.roots(), {"left": power(a, -0.5), "right": power(b, -0.5)})


def test_gradients_count_alike_whatever_their_size() -> None:
    grads = gradients(50, factor(8, 1e3), factor(6, 1e3))
    sizes = 10.0 ** torch.randint(-8, 8, (50, 1, 1))
    torch.testing.assert_close(followed(sizes * grads, damping=1e-4), followed(grads, damping=1e-4))


def test_a_row_without_gradient_stays_finite_without_damping() -> None:
    grads = gradients(2000, factor(8, 10), factor(6, 10))
    grads[:, 3] = 0
    roots = followed(grads, beta2=0.95)
    assert all(root.isfinite().all() for root in roots.values())
    assert roots["left"][3, 3] > 1e4 * roots["left"][0, 0]


@pytest.mark.parametrize("shape", [(24, 32), (48, 12)])  # the wide form, and the narrow one for the left side
@pytest.mark.parametrize("condition", [1e1, 1e2, 1e4, 1e6])
def test_whitening_comes_to_it(condition: float, shape: tuple[int, int]) -> None:
    method, options = METHODS["whitening"], Options(lr=0.0)
    grads = gradients(200, *(factor(d, condition) for d in shape))
    state = method.initial(1, shape, ("full", "full"), dtype=torch.float64)
    oracle, trace = method.counterpart(shape, options, CPU), Trace()
    assert oracle is not None
    for k, grad in enumerate(grads):
        refresh = method.refresh_at(k, 1)
        refresh_blocks(method, [Blocks(state, grad[None], slice(None))], options, refresh, trace)
        oracle.refresh(grad, refresh, {side: float(share) for side, share in trace.refreshes[-1].shares.items()})
    roots = oracle.roots()
    assert max(relative(state[side][0], root) for side, root in roots.items()) < 0.04
    ours, exact = state["left"][0] @ grad @ state["right"][0], roots["left"] @ grad @ roots["right"]
    assert torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) > 0.99
