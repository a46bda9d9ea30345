"""Rules of a step that only show where something unusual comes together: each by a case of its own."""

from typing import Any

import pytest
import torch
from torch import nn

from jorge import Jorge, arrange
from jorge.arrange import ParamSpec
from jorge.methods.whitening import whiten
from jorge.options import Options


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def train(optimizer: Jorge, params: list[nn.Parameter], steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_a_gradient_that_is_not_finite_freezes_every_group_of_its_device(bad: float, where: int) -> None:
    params = parameters((6, 4), (5, 3), (7,))
    groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], "grafting": "adam"}]
    optimizer = Jorge(groups, lr=0.05, weight_decay=0.1)
    train(optimizer, params, 3)
    before = [p.detach().clone() for p in params]
    states = [{k: v.clone() for k, v in optimizer.state[p].items() if k != "step"} for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    grad = params[where].grad
    assert grad is not None
    grad[0] = bad
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    for p, state in zip(params, states, strict=True):
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state.items())
        assert optimizer.state[p]["step"] == 4
    train(optimizer, params, 1)
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_a_gradient_whose_length_overflows_is_not_taken() -> None:
    params = parameters((6, 4), (5,), dtype=torch.float32)
    optimizer = Jorge(params, lr=1e-20)
    for length, taken in ((1e18, True), (3e19, False), (1e18, True)):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.full_like(p, length)
        optimizer.step()
        assert [not torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [taken, taken]


@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial"])
def test_the_first_precision_is_the_refreshs_and_the_second_the_directions(method: Any) -> None:
    ends = {}
    for pair in (("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")):
        params = parameters((16, 12), (12, 12), dtype=torch.float32)
        optimizer = Jorge(params, lr=0.05, method=method, matmul_precision=pair)
        train(optimizer, params, 4)
        ends[pair] = (params, [optimizer.state[p]["left.0"].clone() for p in params])
    (plain, roots), (_, coarse_roots), (coarse, same_roots) = ends.values()
    assert all(torch.equal(a, b) for a, b in zip(roots, same_roots, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(roots, coarse_roots, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(plain, coarse, strict=True))


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("method", ["whitening", "exact"])
def test_blocks_that_are_refreshed_a_few_at_a_time_are_as_all_at_once(
    method: Any, absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for few in (False, True):
        if few:
            monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
            monkeypatch.setattr(arrange, "_PIECES", 1e9)
        params = parameters((20, 8), (8, 20), (12, 8), (8, 8))
        options: dict[str, Any] = {"method": method, "block_size": 4, "interval": 2, "warmup_refreshes": 2}
        options["workspace"] = 1e-3 if few else None
        specs = [ParamSpec(tuple(p.shape), p.dtype, p.stride()) for p in params]
        chunks = {s.chunk for w in arrange.arrange(specs, Options(lr=0.1, **options)) for s in w.stacks}
        assert (chunks == {1}) == few
        optimizer = Jorge(params, lr=0.05, **options)
        for step in range(9):
            train(optimizer, params, 1, seed=step)
            if absent:
                params[step % 3].grad = None
                optimizer.step()
        ends.append((params, [optimizer.state[p] for p in params]))
    (some, states), (others, others_states) = ends
    assert all(torch.allclose(p, q, rtol=1e-9) for p, q in zip(some, others, strict=True))
    for state, other in zip(states, others_states, strict=True):
        assert all(torch.allclose(state[k], other[k], rtol=1e-8) for k in state if k != "step")


def test_statistics_of_the_exact_method_are_symmetric_to_the_bit() -> None:
    (p,) = parameters((40, 30), dtype=torch.float32)
    optimizer = Jorge([p], lr=0.05, method="exact")
    train(optimizer, [p], 6)
    for name in ("left_factor.0", "right_factor.0"):
        factor = optimizer.state[p][name]
        assert torch.equal(factor, factor.mT)


@pytest.mark.parametrize("shape", [(6, 6), (24, 4)])
def test_the_damping_of_a_refresh_is_applied_at_its_first_substep(shape: tuple[int, int]) -> None:
    grad = torch.randn(1, *shape, dtype=torch.float64)
    roots = [torch.eye(d, dtype=torch.float64)[None] for d in shape]
    k = torch.full((1,), 20.0, dtype=torch.float64)
    options: dict[str, Any] = {"beta2": 0.95, "damping": 1e-2}
    both = whiten(roots[0], grad, roots[1], k, substeps=2, damping_refreshes=3, **options)
    first = whiten(roots[0], grad, roots[1], k, substeps=1, damping_refreshes=6, **options)
    second = whiten(first[0], grad, first[1], k, substeps=1, damping_refreshes=0, **options)
    for mine, theirs in zip(both[:2], second[:2], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)


def test_a_tensor_lr_of_low_precision_is_read_and_not_calculated_with() -> None:
    """`1 − lr·λ` in bfloat16 would be 1."""
    lr = torch.tensor(0.01, dtype=torch.bfloat16)
    params, plain = parameters((4, 3), (5,)), parameters((4, 3), (5,))
    optimizer, other = Jorge(params, lr=lr, weight_decay=0.1), Jorge(plain, lr=float(lr), weight_decay=0.1)
    train(optimizer, params, 6)
    train(other, plain, 6)
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(params, plain, strict=True))


def test_a_parameter_of_low_precision_is_rounded_once_a_step() -> None:
    """Decay and update together: the float32 result, rounded."""
    start = 1 + torch.arange(64, dtype=torch.float32) / 128
    p = nn.Parameter(start.bfloat16())
    optimizer = Jorge([p], lr=0.01, momentum=0.0, weight_decay=0.3)
    p.grad = torch.linspace(0.1, 0.9, 64).bfloat16()
    expected = (p.detach().float() * (1 - 0.01 * 0.3) - 0.01 * p.grad.float()).bfloat16()
    optimizer.step()
    assert torch.equal(p, expected)
