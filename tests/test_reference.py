"""The optimizer against the executable definition, side by side for 260 steps: every option that changes a number."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, reference
from jorge.reference import Options

STEPS = 260
#: A vector, a scalar, and matrices: square, wide, and so narrow that each side takes each form once.
SHAPES: list[tuple[int, ...]] = [(), (7,), (1, 5), (6, 6), (5, 8), (24, 4), (4, 24)]
#: With `max_dim=10`: diagonal left, right, both, none.
LONG: list[tuple[int, ...]] = [(14, 5), (6, 12), (12, 11), (7, 3)]
ADAMW: dict[str, Any] = {"grafting": "adam", "nesterov": True, "beta2_decay": -0.8}
SYMMETRIC = ["whitening", "congruence", "exact"]
METHODS = [*SYMMETRIC, "binomial"]

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "from_adamw": ADAMW,
    "nesterov": {"nesterov": True},
    "nesterov, adam": {"nesterov": True, "grafting": "adam"},
    "beta2_decay": {"grafting": "adam", "beta2_decay": -0.5},
    "betas and eps": {"grafting": "adam", "betas": (0.8, 0.95), "eps": 1e-3},
    "graft_limit None": {"graft_limit": None},
    "graft_limit 1.2": {"graft_limit": 1.2},
    "momentum 0": {"momentum": 0.0},
    "momentum 0, nesterov": {**ADAMW, "momentum": 0.0},
    "weight_decay": {"weight_decay": 0.3},
    "maximize": {"maximize": True},
    "maximize, adam": {"maximize": True, **ADAMW},
    "interval 1": {"interval": 1},
    "interval 3": {"interval": 3},
    "interval 10": {"interval": 10},
    "warmup_refreshes 0": {"warmup_refreshes": 0},
    "warmup_refreshes 3, interval 10": {"warmup_refreshes": 3, "interval": 10},
    **{method: {"method": method} for method in METHODS},
    **{f"{method}, adam": {"method": method, **ADAMW} for method in METHODS},
    **{f"{method}, degree 1": {"method": method, "degree": 1} for method in METHODS if method != "exact"},
    **{f"{method}, preconditioner_beta2": {"method": method, "preconditioner_beta2": 0.9} for method in METHODS},
    **{f"{method}, damping 0": {"method": method, "damping": 0.0} for method in METHODS},
    **{f"{method}, damping 1e-2": {"method": method, "damping": 1e-2} for method in METHODS},
    **{f"{method}, interval 1": {"method": method, "interval": 1} for method in SYMMETRIC},
    **{f"{method}, max_dim": {"method": method, "max_dim": 10} for method in METHODS},
    **{
        f"{method}, max_dim, more": {"method": method, "max_dim": 10, "preconditioner_beta2": 0.9, "damping": 1e-2}
        for method in METHODS
    },
    "whitening, max_dim, degree 1": {"max_dim": 10, "degree": 1},
    "init paper": {"method": "binomial", "init": "paper"},
    "init paper, root_eps": {"method": "binomial", "init": "paper", "root_eps": 1e-3},
    "the paper": {
        "method": "binomial",
        "init": "paper",
        "interval": 1,
        "warmup_refreshes": 0,
        "graft_limit": None,
        "weight_decay": 0.1,
    },
    "congruence, root_eps": {"method": "congruence", "root_eps": 0.3},
    "exact, root_eps": {"method": "exact", "root_eps": 1e-4},
}


def gradients(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """What exercises the rules: rank two and noise, rows of unlike size, dead ones, and a size that falls a hundredfold.

    Zeros for a while, twice, and at a single refresh; a NaN and a norm that overflows; a jump by a thousand for one step
    and for five. All at steps that refresh with the defaults.
    """
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    grads = []
    m, n = shape if len(shape) == 2 else (1, shape[0] if shape else 1)
    left, right, drift = (torch.randn(d, 2, generator=generator, dtype=torch.float64) for d in (m, n, m))
    scales = torch.logspace(0, -1, m, dtype=torch.float64)[:, None]
    for t in range(1, STEPS + 1):
        core = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        noise = 0.3 * torch.randn(m, n, generator=generator, dtype=torch.float64)
        grad = scales * ((left + t / STEPS * drift) @ core @ right.T + noise) * 10 ** (-2 * t / STEPS)
        if m > 1:
            grad[m // 2] = 0
            grad[:, n // 3] = 0
        if t == 96 or 150 <= t < 155:
            grad *= 1e3
        if t == 6 or 40 <= t < 48 or 104 <= t < 117:
            grad *= 0
        if t == 75:
            grad[-1, 0] = torch.nan
        if t == 129:
            grad[-1, 0] = torch.finfo(dtype).max / 2 if n > 1 else torch.inf
        grads.append(grad.view(shape).to(dtype))
    return grads


def root(optimizer: Jorge, p: Tensor, side: str, like: Tensor) -> Tensor:
    """The root of a parameter of one block, as the reference holds it."""
    found: Tensor = optimizer.state[p][f"{side}.0"]
    return found.reshape(like.shape) if found.numel() == like.numel() else torch.diag(found.flatten())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))


def compare(
    shapes: list[tuple[int, ...]],
    grads: list[list[Tensor]],
    options: Options,
    lr: Callable[[int], float] = lambda t: 0.1,
) -> dict[str, float]:
    """The largest relative differences after any step: of weights, and at the end of roots; counters are equal."""
    dtype = grads[0][0].dtype
    params = [nn.Parameter(torch.linspace(-1, 1, max(1, torch.Size(s).numel())).view(s).to(dtype)) for s in shapes]
    given: dict[str, Any] = dataclasses.asdict(options)
    if options.grafting == "sgd":
        del given["betas"]
    optimizer = Jorge(params, **given)
    weights = [p.detach().clone() for p in params]
    states = [reference.init(w, options) for w in weights]
    worst = 0.0
    for t, now in enumerate(zip(*grads, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = lr(t)
        for p, grad in zip(params, now, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        options = dataclasses.replace(options, lr=lr(t))
        for i, (p, grad) in enumerate(zip(params, now, strict=True)):
            weights[i] = reference.step(weights[i], grad, states[i], options)
            if t % 10 == 0:
                worst = max(worst, relative(p.detach(), weights[i]))
    roots = 0.0
    for p, weight, state in zip(params, weights, states, strict=True):
        assert optimizer.state[p]["step"] == state.steps
        if reference.is_matrix(weight):
            assert float(optimizer.state[p]["refreshes.0"]) == state.refreshes
            for name, side in (("left", state.left), ("right", state.right)):
                mine = root(optimizer, p, name, side.H)
                roots = max(roots, relative(mine, side.H))
                assert options.method == "binomial" or torch.equal(mine, mine.T)
    return {"weights": worst, "roots": roots}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_the_optimizer_is_the_reference(name: str, dtype: torch.dtype) -> None:
    options = Options(**{"lr": 0.1, **CASES[name]})
    shapes = LONG if options.max_dim == 10 else SHAPES
    found = compare(shapes, [gradients(shape, dtype) for shape in shapes], options)
    print("FOUND", name, str(dtype)[6:], found)
