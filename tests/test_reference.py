"""The optimizer against the executable definition, side by side: every option that changes a number.

In float64 both agree to 1e-10 after 260 steps, with every method. In float32 they differ by what rounding makes of it
(:func:`tolerances`). Gradients do not depend on the weights, so that a difference is not amplified by a training.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, reference
from jorge.reference import Options, State

STEPS = 260
#: A vector, a scalar, and matrices: square, wide, and so narrow that each side takes each form once.
SHAPES: list[tuple[int, ...]] = [(), (7,), (1, 5), (6, 6), (5, 8), (24, 4), (4, 24)]
#: With `max_dim=10`: diagonal left, right, both, none.
LONG: list[tuple[int, ...]] = [(14, 5), (6, 12), (12, 11), (7, 3)]
ADAMW: dict[str, Any] = {"grafting": "adam", "nesterov": True, "beta2_decay": -0.8}
SYMMETRIC = ["whitening", "congruence", "exact"]
METHODS = [*SYMMETRIC, "binomial"]  # the first is the default

CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "from_adamw": ADAMW,
    "nesterov": {"nesterov": True},
    "nesterov, adam": {"nesterov": True, "grafting": "adam"},
    "beta2_decay": {"grafting": "adam", "beta2_decay": -0.5},
    "beta2_decay None": {"beta2_decay": None},
    "graft_memory 8": {"graft_memory": 8},
    "graft_memory None": {"graft_memory": None},
    "graft_norm frobenius": {"graft_norm": "frobenius"},
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
    **{method: {"method": method} for method in METHODS[1:]},
    **{f"{method}, adam": {"method": method, **ADAMW} for method in METHODS[1:]},
    **{f"{method}, degree 1": {"method": method, "degree": 1} for method in METHODS if method != "exact"},
    **{f"{method}, preconditioner_beta2": {"method": method, "preconditioner_beta2": 0.9} for method in SYMMETRIC},
    **{f"{method}, damping 0": {"method": method, "damping": 0.0} for method in SYMMETRIC},
    **{f"{method}, damping 1e-2": {"method": method, "damping": 1e-2} for method in SYMMETRIC},
    **{f"{method}, interval 1": {"method": method, "interval": 1} for method in SYMMETRIC[1:]},
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
# The rules of SGD's length are the more: a case has it that does not say otherwise.
CASES = {"default": {}, **{name: {"grafting": "sgd", **given} for name, given in CASES.items()}}


@functools.cache
def gradients(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """What exercises the rules: rank two and noise, rows of unlike size, dead ones, a size that falls a hundredfold.

    Zeros for a while, twice, and at a single refresh; a NaN and a norm that overflows; a jump by a thousand for one
    step and for five. All at steps that refresh with the defaults.
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


def tolerances(options: Options, dtype: torch.dtype) -> tuple[float, float]:
    """How far weights and roots may be apart: about five times what was found.

    In float32, 1e-7 of rounding becomes 1e-5 by sums over 260 steps and by roots whose condition is some ten to a
    hundred. What makes more of it: Adam's `1 − β2^t`, of which four digits are left at t = 1. The binomial recursion,
    which multiplies what is not symmetric in L each time, the more so the more often it runs. The exact root of a
    factor of rank two or with dead rows, which is `(1e-6)^(-1/4)` where rounding puts 1e-7 beside the 1e-6 of ε.
    """
    if dtype == torch.float64:
        return 1e-10, 1e-10
    weights, roots = 5e-5, 2e-5
    if options.grafting == "adam":
        weights = 2e-3
    if options.method == "binomial" and (options.degree == 1 or options.interval == 1):
        weights, roots = 2e-3, 5e-3
    if options.method == "exact":
        weights, roots = 1e-2, 1e-1
    return weights, roots


def agree(
    shapes: list[tuple[int, ...]],
    grads: list[list[Tensor]],
    options: Options,
    lr: Callable[[int], float] | None = None,
) -> list[State]:
    """Compare weights every ten steps, and roots and counters at the end; the states of the reference.

    Args:
        shapes: of the parameters; the optimizer has all of them at once.
        grads: of each parameter, a list of its gradients.
        options: of both; the optimizer is given each of them.
        lr: of each step.
    """
    dtype = grads[0][0].dtype
    params = [nn.Parameter(torch.linspace(-1, 1, torch.Size(s).numel()).view(s).to(dtype)) for s in shapes]
    given: dict[str, Any] = dataclasses.asdict(options)
    if options.grafting == "sgd":
        del given["betas"]
    optimizer = Jorge(params, **given)
    weights = [p.detach().clone() for p in params]
    states = [reference.init(w, options) for w in weights]
    for_weights, for_roots = tolerances(options, dtype)
    for t, now in enumerate(zip(*grads, strict=True), start=1):
        if lr is not None:
            options = dataclasses.replace(options, lr=lr(t))
            optimizer.param_groups[0]["lr"] = lr(t)
        for p, grad in zip(params, now, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        weights = [reference.step(w, g, state, options) for w, g, state in zip(weights, now, states, strict=True)]
        if t % 10 == 0 or t == len(grads[0]):
            for p, w in zip(params, weights, strict=True):
                assert relative(p.detach(), w) <= for_weights, f"weights {tuple(w.shape)} at step {t}"
    for p, w, state in zip(params, weights, states, strict=True):
        assert optimizer.state[p]["step"] == state.steps
        if reference.is_matrix(w):
            assert float(optimizer.state[p]["refreshes.0"]) == state.refreshes
            for name, side in (("left", state.left), ("right", state.right)):
                mine = root(optimizer, p, name, side.H)
                assert relative(mine, side.H) <= for_roots, f"{name} root of {tuple(w.shape)}"
                assert options.method == "binomial" or torch.equal(mine, mine.T)
    return states


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def root(optimizer: Jorge, p: Tensor, side: str, like: Tensor) -> Tensor:
    """The root of a parameter of one block as the reference holds it: a diagonal side is a diagonal matrix there."""
    found: Tensor = optimizer.state[p][f"{side}.0"]
    return found.reshape(like.shape) if found.numel() == like.numel() else torch.diag(found.flatten())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_the_optimizer_is_the_reference(name: str, dtype: torch.dtype) -> None:
    options = Options(**{"lr": 0.1, **CASES[name]})
    shapes = LONG if options.max_dim == 10 else SHAPES
    if name == "the paper":  # on 24 × 4 the rounding of its right root grows tenfold every thirty refreshes
        shapes = [shape for shape in shapes if shape != (24, 4)]
    states = agree(shapes, [gradients(shape, dtype) for shape in shapes], options)
    skipped = 2  # the one NaN and the one that is too long
    assert all(state.taken == state.steps - skipped == STEPS - skipped for state in states)


@pytest.mark.parametrize("method", METHODS)
def test_dead_rows_of_diagonal_sides_without_damping(method: str) -> None:
    """Their floor is all that keeps them finite; in float32 rounding makes much of it, so that is not compared."""
    options = Options(lr=0.1, method=method, max_dim=10, damping=0.0)
    agree(LONG, [gradients(shape, torch.float64) for shape in LONG], options)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_a_learning_rate_that_changes(grafting: str, nesterov: bool) -> None:
    options = Options(lr=0.1, weight_decay=0.1, grafting=grafting, nesterov=nesterov)
    grads = [gradients(shape, torch.float64) for shape in SHAPES]
    agree(SHAPES, grads, options, lr=lambda t: 0.1 * min(1.0, t / 20) * 0.1 ** (3 * t // STEPS))


@pytest.mark.parametrize("method", METHODS)
def test_one_block_that_is_staggered(method: str) -> None:
    agree([(8, 5)], [gradients((8, 5), torch.float64)], Options(lr=0.1, method=method, stagger=True, interval=3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float64, 1e-170), (torch.float32, 1e-25)])
def test_roots_that_would_not_be_finite_are_not_taken(method: str, dtype: torch.dtype, tiny: float) -> None:
    """The square of such a gradient is zero, whose power -1/4 is the start of some methods."""
    grads = [tiny * torch.randn(6, 4, dtype=dtype) for _ in range(5)] + gradients((6, 4), dtype)[:25]
    (state,) = agree([(6, 4)], [grads], Options(lr=0.1, method=method))
    zeros = 1
    refused = 0 if method == "whitening" else 5
    assert state.refreshes == 25 - refused - zeros


@pytest.mark.parametrize("shape", [(6, 6), (24, 4)])
@pytest.mark.parametrize("init", ["auto", "paper"])
def test_a_binomial_step_that_would_overflow_keeps_the_root(shape: tuple[int, int], init: str) -> None:
    grads = gradients(shape, torch.float32)[:30]
    grads[0], grads[10] = 1e17 * torch.randn(shape), 1e17 * torch.randn(shape)
    agree([shape], [grads], Options(lr=1e-18, method="binomial", init=init))


@pytest.mark.parametrize("source", ["sgd", "adamw"])
def test_what_a_recipe_becomes(source: str) -> None:
    """The options of :meth:`Jorge.from_sgd` and :meth:`Jorge.from_adamw`, as they stand in the group."""
    weight = nn.Parameter(torch.ones(2, 2))
    if source == "sgd":
        sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.8, nesterov=True, weight_decay=1e-2)
        (group,) = Jorge.from_sgd(sgd, schedule="keep")[0].param_groups
    else:
        adamw = torch.optim.AdamW([weight], lr=0.03, betas=(0.8, 0.98), weight_decay=0.1)
        (group,) = Jorge.from_adamw(adamw)[0].param_groups
    options = Options(**{f.name: group[f.name] for f in dataclasses.fields(Options) if f.name in group})
    assert options.nesterov
    assert options.weight_decay > 0
    agree(SHAPES, [gradients(shape, torch.float64) for shape in SHAPES], options)


def test_options_are_the_optimizers() -> None:
    theirs = inspect.signature(Jorge.__init__).parameters
    for field in dataclasses.fields(Options):
        assert field.default == theirs[field.name].default or field.name == "lr"


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_congruence_is_damped_where_only_several_substeps_make_it_narrow(shape: tuple[int, int]) -> None:
    agree([shape], [gradients(shape, torch.float64)], Options(lr=0.1, method="congruence", damping=1e-2))
