"""Diagnostics: what they say against what a step does, and that they change nothing."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jorge import Jorge
from jorge.cost import estimate
from jorge.diagnostics import MEASURES
from jorge.spectrum import extreme_eigenvalues, residual

METHODS = ("whitening", "congruence", "binomial", "exact")
STEPS = ("grad_norm", "weight_norm", "update_norm", "update_to_weight", "cosine")


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 20), nn.ReLU(), nn.Linear(20, 5)).to(dtype)


def backward(net: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 3, 6, 6, generator=generator).to(dtype)
    net.zero_grad()
    net(x).square().mean().backward()


def trained(steps: int = 7, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, Jorge]:
    net = model(dtype)
    optimizer = Jorge(net.named_parameters(), **{"lr": 0.01, "interval": 3, "warmup_refreshes": 2, **options})
    for step in range(steps):
        backward(net, step, dtype)
        optimizer.step()
    backward(net, steps, dtype)
    return net, optimizer


def snapshot(net: nn.Module, optimizer: Jorge) -> Any:
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    return copy.deepcopy((net.state_dict(), optimizer.state_dict(), grads, torch.get_rng_state()))


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


OPTIONS: list[dict[str, Any]] = [
    *({"method": method} for method in METHODS),
    {"grafting": "sgd", "momentum": 0.9},
    {"grafting": "sgd", "graft_limit": None, "nesterov": True},
    {"lr": torch.tensor(0.01)},
    {"stagger": True},
    {"block_size": 6},
    {"max_dim": 10},
    {"preconditioner_dtype": torch.bfloat16},
    {"graft_norm": "frobenius", "adapt_variance": False},
    {"maximize": True},
]


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_tells_of_the_step_that_comes_and_changes_nothing(options: dict[str, Any], steps: int) -> None:
    net, optimizer = trained(steps, weight_decay=0.0, **options)
    before = snapshot(net, optimizer)
    seen = optimizer.diagnostics()
    assert same(before, snapshot(net, optimizer))
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    moved, along = 0.0, 0.0
    for name, p in net.named_parameters():
        update, grad, told = weights[name] - p.detach(), p.grad, seen.parameters[name]
        assert grad is not None
        grad = -grad if options.get("maximize") else grad
        assert told["grad_norm"] == pytest.approx(grad.norm().item(), rel=1e-5)
        assert told["weight_norm"] == pytest.approx(weights[name].norm().item(), rel=1e-5)
        assert told["update_norm"] == pytest.approx(update.norm().item(), rel=1e-3)
        assert told["update_to_weight"] == pytest.approx(told["update_norm"] / told["weight_norm"])
        cosine = nn.functional.cosine_similarity(update.flatten(), grad.flatten(), dim=0).item()
        assert told["cosine"] == pytest.approx(cosine, abs=1e-3)
        moved, along = moved + float(update.square().sum()), along + float((update * grad).sum())
    assert seen.overall["update_norm"] == pytest.approx(math.sqrt(moved), rel=1e-3)
    assert seen.overall["cosine"] == pytest.approx(along / math.sqrt(moved) / seen.overall["grad_norm"], abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_what_it_says_of_the_preconditioners(method: str) -> None:
    net, optimizer = trained(8, torch.float64, method=method, block_size=None)
    seen = optimizer.diagnostics().parameters
    for name, p in net.named_parameters():
        told, state = seen[name], optimizer.state[p]
        assert p.grad is not None
        if p.dim() < 2:
            assert set(told) == set(STEPS)
            continue
        left, right = state["left.0"][0], state["right.0"][0]
        values = torch.cat([torch.linalg.eigvalsh((each + each.mT) / 2) for each in (left, right)])
        assert told["largest_eigenvalue"] == pytest.approx(values.max().item(), rel=1e-3)
        assert told["smallest_eigenvalue"] == pytest.approx(values.min().item(), abs=1e-3 * values.max().item())
        grad = p.grad.flatten(1)
        for key, matrix in (("gradient_residual", grad), ("whitening_residual", left @ grad @ right)):
            squares = torch.linalg.svdvals(matrix).square()
            expected = (squares / squares.mean() - 1).square().mean().sqrt().item()
            assert told[key] == pytest.approx(expected, rel=1e-6)
        assert told["steps_since_refresh"] == 2  # refreshes at 1, 2, 4, 6, 9
        before = torch.cat([left.flatten(), right.flatten()]).clone()
        stale, last = told["staleness"], state
    optimizer.step()
    after = torch.cat([last[f"{side}.0"].flatten() for side in ("left", "right")])
    assert stale == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-6)


def test_whitening_makes_the_gradient_whiter() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 64))
    optimizer = Jorge([("weight", weight)], lr=0.01)
    rows, columns = torch.logspace(0, 2, 16).unsqueeze(1), torch.logspace(0, 1, 64)
    for _ in range(80):
        weight.grad = rows * torch.randn(16, 64) * columns
        optimizer.step()
    told = optimizer.diagnostics().parameters["weight"]
    assert told["gradient_residual"] > 1.5
    assert told["whitening_residual"] < 0.8  # of independent normal entries it is 0.5
    assert told["largest_eigenvalue"] > 10 * told["smallest_eigenvalue"] > 0
    assert 3 < told["memory"] < 100
    assert told["capped"] == 0


def test_a_spike_is_capped_and_limited() -> None:
    net, optimizer = trained(40, grafting="sgd", method="congruence")
    before = optimizer.diagnostics().overall
    assert before["limited"] == 0
    for p in net.parameters():
        assert p.grad is not None
        p.grad.mul_(1e4)
    overall = optimizer.diagnostics().overall
    assert overall["limited"] == 1
    assert overall["capped"] > before["capped"]


def test_who_has_no_gradient_is_not_known_and_gets_no_state() -> None:
    net, optimizer = trained(3)
    net.get_parameter("2.weight").grad = None
    extra = nn.Parameter(torch.ones(4, 4))
    optimizer.add_param_group({"params": [("extra", extra)]})
    extra.grad = torch.ones(4, 4)
    seen = optimizer.diagnostics()
    known = {name for name, values in seen.parameters.items() if not math.isnan(values["update_norm"])}
    assert known == {name for name, _ in net.named_parameters()} - {"2.weight"}
    assert seen.flat().keys() == optimizer.diagnostics().flat().keys()
    assert not math.isnan(seen.overall["update_norm"])
    assert extra not in optimizer.state


def test_before_the_first_step_and_without_gradients_there_is_little_to_say() -> None:
    net = model()
    optimizer = Jorge(net.named_parameters(), lr=0.1)
    backward(net, 0)
    seen = optimizer.diagnostics()
    assert all(math.isnan(value) for values in seen.parameters.values() for value in values.values())
    assert "no gradient is there" in str(seen)
    assert not optimizer.state
    optimizer.step()
    keys = optimizer.diagnostics().flat().keys()
    optimizer.zero_grad()
    assert optimizer.diagnostics().flat().keys() == keys == seen.flat().keys()


def test_a_gradient_that_is_not_finite_is_seen() -> None:
    net, optimizer = trained(3)
    net.get_parameter("0.weight").grad = torch.full((8, 3, 3, 3), torch.nan)
    optimizer.step()
    seen = optimizer.diagnostics()
    assert seen.overall["skipped_steps"] == seen.overall["skipped_in_a_row"] == 1
    assert seen.parameters["0.weight"]["update_norm"] == 0
    assert math.isnan(seen.parameters["0.weight"]["grad_norm"])
    assert seen.parameters["2.weight"]["grad_norm"] > 0
    assert "1 steps skipped, 1 in a row at the end" in str(seen)


def test_gradients_of_zero_have_no_angle() -> None:
    net, optimizer = trained(3)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    told = optimizer.diagnostics().parameters["0.weight"]
    assert math.isnan(told["cosine"])
    assert math.isnan(told["gradient_residual"])
    assert told["grad_norm"] == 0


def test_several_matrices_in_a_parameter_count_as_one() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(3, 8, 6))
    optimizer = Jorge([("up", whole)], batch_dims=1, lr=0.01)
    for _ in range(4):
        whole.grad = torch.randn(3, 8, 6)
        optimizer.step()
    told = optimizer.diagnostics().parameters["up"]
    values = torch.linalg.eigvalsh(optimizer.state[whole]["left.0"])
    other = torch.linalg.eigvalsh(optimizer.state[whole]["right.0"])
    assert told["largest_eigenvalue"] == pytest.approx(max(values.max().item(), other.max().item()), rel=1e-3)


def test_it_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer = trained(5)
    waits: list[str] = []
    for name in ("tolist", "item", "__bool__", "__float__", "cpu", "numpy"):
        real = getattr(Tensor, name)

        def told(self: Tensor, *args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            waits.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, told)
    optimizer.diagnostics()
    assert waits == ["tolist"]


def test_it_takes_the_products_of_about_six_refreshes() -> None:
    weight = nn.Parameter(torch.randn(128, 128))
    optimizer = Jorge([weight], lr=0.01, warmup_refreshes=5, interval=3)
    for _ in range(40):
        weight.grad = torch.randn(128, 128)
        optimizer.step()
    with FlopCounterMode(display=False) as counter:
        optimizer.diagnostics()
    refresh = estimate([weight]).rows[0].refresh_flops
    assert 5 < counter.get_total_flops() / refresh < 7


def test_names_are_those_that_are_documented_and_loggers_get_flat_ones() -> None:
    net, optimizer = trained(5, grafting="sgd")
    seen = optimizer.diagnostics()
    for values in seen.parameters.values():
        assert [key for key in MEASURES if key in values] == list(values)
    flat = seen.flat("opt/")
    assert flat["opt/0.weight/cosine"] == seen.parameters["0.weight"]["cosine"]
    assert flat["opt/update_norm"] == seen.overall["update_norm"]
    assert all(type(value) is float for value in flat.values())
    assert len(str(seen).splitlines()) == len(list(net.parameters())) + 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.floats(0, 3))
def test_extreme_eigenvalues_by_products(d: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(4, d, d, generator=generator, dtype=torch.float64))
    values = 10 ** (spread * (torch.rand(4, d, generator=generator, dtype=torch.float64) - 1))
    matrices = (basis * values.unsqueeze(1)) @ basis.mT
    smallest, largest = extreme_eigenvalues(matrices.float())
    torch.testing.assert_close(largest.double(), values.amax(1), rtol=1e-3, atol=0)
    torch.testing.assert_close(smallest.double(), values.amin(1), rtol=0, atol=float(values.max()) / 2000)


def test_residual_is_of_the_shorter_side() -> None:
    x = torch.randn(3, 4, 9, dtype=torch.float64)
    torch.testing.assert_close(residual(x), residual(x.mT))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_residual_does_not_see_scale(scale: float) -> None:
    x = torch.randn(3, 16, 40)
    torch.testing.assert_close(residual(x * scale), residual(x), rtol=1e-4, atol=1e-4)
    assert residual(torch.zeros(1, 3, 4)).isnan().all()


def test_parameters_of_one_name_are_all_told() -> None:
    nets = [nn.Linear(4, 3), nn.Linear(4, 2)]
    optimizer = Jorge([{"params": list(net.named_parameters())} for net in nets])
    for step in range(2):
        for net in nets:
            for p in net.parameters():
                p.grad = torch.full_like(p, 1.0 + step)
        optimizer.step()
    assert set(optimizer.diagnostics().parameters) == {"weight", "bias", "weight (group 1)", "bias (group 1)"}


def test_memory_is_in_steps_and_not_in_refreshes() -> None:
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = Jorge([("p", p)], method="exact", interval=4, warmup_refreshes=0)
    for _ in range(40):
        p.grad = torch.randn(4, 3)
        optimizer.step()
    assert optimizer.diagnostics().parameters["p"]["memory"] == pytest.approx(4 * (1 - 0.95**11) / 0.05, rel=1e-4)
