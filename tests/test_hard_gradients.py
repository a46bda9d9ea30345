"""Gradients that are hard on an optimizer: of any scale, dead, alike, rare, and not finite for a batch.

`JORGE_HYPOTHESIS=long` tries two thousand of each kind, and twenty thousand refreshes.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from jorge import Jorge

METHODS = ("whitening", "congruence", "binomial", "exact")
#: Without eps, which sets a scale, and decay, which pulls at the weights whatever the loss is.
FREE: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.0, "eps": 0.0}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(128, 8, generator=generator)
    return x, torch.tanh(x @ torch.randn(8, 4, generator=generator))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 4))


def fit(
    steps: int = 80, scale: float = 1.0, change: Callable[[nn.Module, int], None] | None = None, **options: Any
) -> float:
    """The loss after some steps on minibatches; `change` may look at the gradients before each."""
    model, (x, y) = net(), data()
    optimizer = Jorge(model.parameters(), **{**FREE, **options})
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        rows = torch.randint(len(x), (32,), generator=generator)
        optimizer.zero_grad()
        (scale * (model(x[rows]) - y[rows]).square().mean()).backward()
        if change is not None:
            change(model, step)
        optimizer.step()
    return nn.functional.mse_loss(model(x), y).item()


@pytest.mark.parametrize("method", ["whitening", "congruence"])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_the_scale_of_the_loss_changes_nothing(method: str, scale: float) -> None:
    assert fit(scale=scale, method=method) == pytest.approx(fit(method=method), rel=0.02)


@pytest.mark.parametrize(("scale", "eps", "tiny"), [(1.0, 1e-8, 0), (1e-14, 1e-8, 4), (1e-14, 0.0, 0), (1e-25, 0.0, 4)])
def test_gradients_that_are_too_small_for_their_steps_are_counted(scale: float, eps: float, tiny: int) -> None:
    """And just these take shorter ones."""
    (x, y), lengths = data(), []
    for factor in (scale, 1.0):
        model = net()
        optimizer = Jorge(model.parameters(), **{**FREE, "eps": eps if factor == scale else 0.0})
        (factor * (model(x) - y).square().mean()).backward()
        optimizer.step()
        if factor == scale:
            seen = optimizer.diagnostics()
            assert seen.overall["tiny_gradients"] == tiny
            assert ("underflow" in str(seen)) == bool(tiny)
        lengths.append(optimizer.diagnostics().overall["update_norm"])
    assert (lengths[0] > 0.9 * lengths[1]) == (tiny == 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["adam", "sgd"])
def test_no_gradient_is_so_small_that_its_step_is_long(method: str, grafting: str) -> None:
    """Where squares underflow, norms are zero: what they would be divided by is not, and steps shrink."""
    x, y = data()
    lengths: list[float] = []
    for power in (0, *range(-14, -46, -1)):
        model = net()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = Jorge(model.parameters(), **{**FREE, "method": method, "grafting": grafting})
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            for p in model.parameters():
                assert p.grad is not None
                p.grad = (p.grad.double() * 10.0**power).float()
            optimizer.step()
        moved = [(p.detach() - old).norm().item() for p, old in zip(model.parameters(), before, strict=True)]
        lengths.append(math.hypot(*moved))
        assert lengths[-1] <= 1.05 * lengths[0], power
    assert (lengths[1] > 0.9 * lengths[0]) == (grafting == "adam")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["adam", "sgd"])
@pytest.mark.parametrize("power", [-42, -38, -30, -20, 18])
def test_tiny_and_huge_gradients_leave_finite_weights(method: str, grafting: str, power: int) -> None:
    def change(model: nn.Module, step: int) -> None:
        for p in model.parameters():
            assert p.grad is not None
            p.grad = (p.grad.double() * 10.0**power).float()

    lr = 0.01 if grafting == "adam" else 0.1 / max(1.0, 10.0**power)
    assert math.isfinite(fit(30, change=change, method=method, grafting=grafting, lr=lr))


def losses_of_a_square(seed: int, **options: Any) -> list[float]:
    """Of torch's own test, `‖Wx + b‖²`, before each of 20 steps and after the last."""
    torch.manual_seed(seed)
    weight, bias, x = nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(10)), torch.randn(5)
    optimizer, losses = Jorge([weight, bias], **options), []
    for _ in range(21):
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        optimizer.step()
    return losses


@pytest.mark.parametrize(
    ("grafting", "degree", "lr", "above"),
    [
        *(("adam", degree, lr, range(1)) for degree in (1, 2) for lr in (1e-3, 0.03)),
        *(("sgd", degree, 1e-3, range(1)) for degree in (1, 2)),
        ("sgd", 1, 0.03, range(4)),
        ("sgd", 2, 0.03, range(3)),
    ],
)
def test_in_how_many_runs_a_square_ends_above_its_start(grafting: str, degree: int, lr: float, above: range) -> None:
    found = [losses_of_a_square(seed, grafting=grafting, degree=degree, lr=lr) for seed in range(40)]
    assert sum(losses[-1] > losses[0] for losses in found) in above
    if grafting == "adam":
        assert sum(max(losses) > losses[0] for losses in found) <= 1


def test_elements_without_a_gradient_stay_without_eps() -> None:
    weight, bias = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))
    optimizer = Jorge([weight, bias], **FREE)
    for step in range(5):
        weight.grad, bias.grad = torch.zeros(4, 3), torch.zeros(4)
        weight.grad[0, 1] = bias.grad[2] = 1.0 + step
        optimizer.step()
    assert torch.equal(bias.detach()[[0, 1, 3]], torch.ones(3))
    assert bias.detach()[2] < 1
    assert weight.isfinite().all()


def bad_batch(value: float) -> Callable[[nn.Module, int], None]:
    def change(model: nn.Module, step: int) -> None:
        if step == 30:
            for p in model.parameters():
                assert p.grad is not None
                p.grad.view(-1)[0] = value

    return change


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["adam", "sgd"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_batch_is_left_out(method: str, grafting: str, value: float) -> None:
    options: dict[str, Any] = {"method": method, "grafting": grafting, "lr": 0.01 if grafting == "adam" else 0.1}
    assert fit(120, change=bad_batch(value), **options) == pytest.approx(fit(120, **options), rel=0.15)


@pytest.mark.parametrize("how", ["scaler", "autocast", "accumulation", "clipping"])
def test_one_bad_batch_is_left_out_however_it_is_trained(how: str) -> None:
    def train(bad: bool) -> float:
        model, (x, y) = net(), data()
        optimizer = Jorge(model.parameters(), **FREE)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=how == "scaler")
        generator = torch.Generator().manual_seed(2)
        for step in range(120):
            optimizer.zero_grad()
            for part in range(2 if how == "accumulation" else 1):
                rows = torch.randint(len(x), (32,), generator=generator)
                with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                    loss = (model(x[rows]) - y[rows]).square().mean()
                if bad and step == 40 and part == 0:
                    loss = loss * float("inf")
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if how == "clipping":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        return nn.functional.mse_loss(model(x), y).item()

    assert train(True) == pytest.approx(train(False), rel=0.15)


def _rows(kind: str, grad: Tensor, step: int) -> Tensor:
    """Gradients of a kind, from independent ones."""
    if kind == "dead":
        grad[::3] = 0
    elif kind == "constant":
        grad[:] = 1.0
    elif kind == "duplicate":
        grad[1] = grad[0]
    elif kind == "rank 1":
        grad = grad[:, :1] * grad[:1]
    elif kind == "late":
        grad = grad if step > 25 else torch.zeros_like(grad)
    elif kind == "jumps":
        grad = grad * 10.0 ** (6 * ((step // 7) % 3 - 1))
    elif kind == "rare":
        grad = grad if step % 11 == 0 else torch.zeros_like(grad)
    return grad


KINDS = ("dead", "constant", "duplicate", "rank 1", "late", "jumps", "rare")


@given(
    st.sampled_from(KINDS),
    st.sampled_from(METHODS),
    st.sampled_from(["adam", "sgd"]),
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(0, 10_000),
)
def test_no_kind_of_gradient_breaks_it(kind: str, method: str, grafting: Any, m: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(m, n, generator=generator))
    optimizer = Jorge([weight], lr=1e-3, method=method, grafting=grafting, interval=3, warmup_refreshes=4)
    furthest = 0.0
    for step in range(50):
        grad = _rows(kind, torch.randn(m, n, generator=generator), step)
        weight.grad = grad
        before = weight.detach().clone()
        optimizer.step()
        moved = float((weight.detach() - before).norm())
        furthest = max(furthest, moved / max(1.0, float(grad.norm()) if grafting == "sgd" else math.sqrt(m * n)))
    assert weight.isfinite().all()
    assert all(v.isfinite().all() for v in optimizer.state[weight].values() if isinstance(v, Tensor))
    assert optimizer.skipped_steps().total == 0
    assert furthest < 0.2  # 1e-3 times ten steps of momentum, and no more than what jumps leave in it


@pytest.mark.slow
@pytest.mark.parametrize("method", ["whitening", "congruence"])
def test_thousands_of_refreshes_leave_roots_that_are_roots(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = Jorge([weight], lr=1e-3, method=method, interval=1)
    scales = torch.logspace(0, -3, 6).unsqueeze(1)
    for _ in range(20_000 if os.environ.get("JORGE_HYPOTHESIS") == "long" else 2000):
        weight.grad = scales * torch.randn(6, 5, generator=generator)
        optimizer.step()
    for side in ("left.0", "right.0"):
        root = optimizer.state[weight][side][0].double()
        values = torch.linalg.eigvalsh(root)
        assert values.min() > 0
        assert torch.equal(root, root.T)
        if method == "whitening":
            assert root.diagonal().mean() == pytest.approx(1, rel=1e-3)
    if method == "congruence":
        return
    told = optimizer.diagnostics().parameters["parameter 0 of group 0"]
    assert told["whitening_residual"] < 1.4  # √(5/6) of noise alone


@pytest.mark.parametrize("method", METHODS)
def test_it_is_repeatable_to_the_bit_and_leaves_random_numbers_alone(method: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        before = torch.get_rng_state()
        first = fit(40, method=method)
        assert fit(40, method=method) == first
    finally:
        torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Jorge([weight], method=method)
    for _ in range(3):
        weight.grad = torch.eye(4)
        optimizer.step()
    assert torch.equal(before, torch.get_rng_state())
