"""The invariants of the four methods, on matrices of known and of random spectra."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jorge import Jorge
from jorge.methods import METHODS, Refresh, State
from jorge.methods.binomial import refresh_root as binomial
from jorge.methods.congruence import (
    CONGRUENCE_CAP,
    CONGRUENCE_LINE,
    CONGRUENCE_LINE_CAP,
    CONGRUENCE_POLYNOMIAL,
    start_root,
)
from jorge.methods.congruence import refresh_root as congruence
from jorge.methods.exact import inverse_root
from jorge.methods.products import multiply
from jorge.methods.whitening import (
    WHITENING_CAP,
    WHITENING_LINE,
    WHITENING_LINE_CAP,
    WHITENING_POLYNOMIAL,
    whiten,
)
from jorge.options import Options
from jorge.stacking import Blocks, refresh_blocks

METHOD_NAMES = sorted(METHODS)
SYMMETRIC = ["congruence", "exact", "whitening"]


def fresh(method: str, shape: tuple[int, int], dtype: torch.dtype = torch.float32, **kinds: Any) -> State:
    sides = (kinds.get("left", "full"), kinds.get("right", "full"))
    return initial(method, 1, shape, sides, dtype)


def initial(method: str, count: int, shape: tuple[int, int], sides: Any, dtype: torch.dtype) -> State:
    return METHODS[method].initial(count, shape, sides, dtype=dtype)


def refresh(method: str, state: State, grad: Tensor, options: Options, kind: Refresh) -> None:
    refresh_blocks(METHODS[method], [Blocks(state, grad, slice(None))], options, kind)


def direction(state: State, grad: Tensor, precision: Any = None) -> Tensor:
    return METHODS["whitening"].direction(state, grad, precision)


def run(method: str, grads: list[Tensor], state: State | None = None, **options: Any) -> State:
    state = state or fresh(method, tuple(grads[0].shape), grads[0].dtype)  # type: ignore[arg-type]
    for i, grad in enumerate(grads):
        refresh(method, state, grad[None], Options(lr=0.1, **options), METHODS[method].refresh_at(i, 1))
    return state


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def gradients(count: int, m: int, n: int, condition: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gaussian gradients whose rows and columns have the given condition numbers."""
    left = torch.logspace(0, -torch.log10(torch.tensor(condition)).item() / 2, m, dtype=torch.float64)
    right = torch.logspace(0, -torch.log10(torch.tensor(condition)).item() / 2, n, dtype=torch.float64)
    u = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    noise = torch.randn(count, m, n, dtype=torch.float64)
    return list((u * left @ noise @ (right[:, None] * v.T)).to(dtype))


@pytest.mark.parametrize(
    ("polynomial", "cap", "power", "worst"),
    [
        (CONGRUENCE_POLYNOMIAL, CONGRUENCE_CAP, -1 / 8, 0.02),
        (CONGRUENCE_LINE, CONGRUENCE_LINE_CAP, -1 / 8, 0.016),
        (WHITENING_POLYNOMIAL, WHITENING_CAP, -1 / 4, 0.014),
        (WHITENING_LINE, WHITENING_LINE_CAP, -1 / 4, 0.014),
    ],
)
def test_the_polynomials_are_near_the_roots_and_monotone(
    polynomial: tuple[float, float], cap: float, power: float, worst: float
) -> None:
    x = torch.linspace(0, cap, 1001, dtype=torch.float64)
    q = 1 + polynomial[0] * x + polynomial[1] * x**2
    assert ((q - (1 + x) ** power).abs() <= worst).all()
    assert (q > 0).all()
    assert (q.diff() < 0)[: int(0.85 * len(x))].all()


@pytest.mark.parametrize("method", SYMMETRIC)
def test_roots_are_symmetric_to_the_bit_and_positive(method: str) -> None:
    state = run(method, gradients(40, 12, 7, condition=1e4))
    for side in ("left", "right"):
        assert torch.equal(state[side], state[side].mT)
        assert torch.linalg.eigvalsh(state[side].double()).min() > 0


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_zero_and_non_finite_gradients_change_nothing(method: str, value: float) -> None:
    state = run(method, gradients(5, 6, 4))
    before = {key: tensor.clone() for key, tensor in state.items()}
    bad = torch.zeros(6, 4)
    bad[2, 1] = value
    run(method, [bad], state)
    assert all(torch.equal(before[key], state[key]) for key in state)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("kind", ["full", "rank-1", "jumps", "rotating"])
def test_everything_stays_finite(method: str, scale: float, kind: str) -> None:
    grads = gradients(60, 10, 14)
    if kind == "rank-1":
        grads = [g[:, :1] @ g[:1, :] for g in grads]
    elif kind == "jumps":
        grads = [g * (1e3 if i % 7 == 0 else 1.0) for i, g in enumerate(grads)]
    elif kind == "rotating":
        grads = [torch.eye(10, 14).roll(i, 0) for i in range(60)]
    state = run(method, [g * scale for g in grads])
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert torch.isfinite(direction(state, grads[0][None] * scale)).all()


@pytest.mark.parametrize("power", [20, -20])
def test_whitening_does_not_see_scale(power: int) -> None:
    grads = gradients(30, 9, 13)
    state = run("whitening", grads)
    same = run("whitening", [g * 2.0**power for g in grads])
    near = run("whitening", [g * 1e7 for g in grads])
    for side in ("left", "right"):
        assert torch.equal(state[side], same[side])
        assert relative(near[side], state[side]) < 1e-5


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_transposing_the_gradient_swaps_the_sides(method: str) -> None:
    grads = gradients(20, 9, 5, dtype=torch.float64)
    state, swapped = run(method, grads), run(method, [g.T.contiguous() for g in grads])
    assert relative(swapped["left"], state["right"]) < 1e-5
    assert relative(swapped["right"], state["left"]) < 1e-5


@pytest.mark.parametrize("method", SYMMETRIC)
def test_rotating_the_gradient_rotates_the_root(method: str) -> None:
    grads = gradients(20, 9, 12, dtype=torch.float64)
    u = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    state, rotated = run(method, grads), run(method, [u @ g for g in grads])
    # whitening divides by max|G|, which a rotation changes; its fixed point is free of scale
    assert relative(rotated["left"][0], u @ state["left"][0] @ u.T) < 1e-5
    assert relative(rotated["right"], state["right"]) < 1e-5


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 20), st.integers(2, 20), st.floats(0, 8), st.integers(0, 2**31))
def test_float32_whitening_follows_its_float64_run(m: int, n: int, digits: float, seed: int) -> None:
    torch.manual_seed(seed)
    grads = gradients(60, m, n, condition=10**digits, dtype=torch.float64)
    wide = run("whitening", grads)
    narrow = run("whitening", [g.float() for g in grads])
    for side in ("left", "right"):
        assert relative(narrow[side].double(), wide[side]) < 1e-4


@pytest.mark.parametrize("gap", [1, 5])
@pytest.mark.parametrize("every", [1, 2])  # a gradient of zero is no refresh, but it counts on the host
@pytest.mark.parametrize(("columns", "refreshes"), [(64, 1500), (12, 1500)])  # the wide form and the narrow one
def test_dead_rows_stay_bounded(columns: int, refreshes: int, every: int, gap: int) -> None:
    """Without damping the ratio is below 6e-4 after 1,500 refreshes, and falling."""
    state = fresh("whitening", (64, columns))
    for i in range(every * refreshes):
        grad = torch.randn(1, 64, columns) if i % every == 0 else torch.zeros(1, 64, columns)
        grad[:, 48:] = 0
        refresh("whitening", state, grad, Options(lr=0.1), METHODS["whitening"].refresh_at(i, gap))
    assert state["refreshes"] == refreshes
    values = torch.linalg.eigvalsh(state["left"].double())
    assert values.min() / values.max() > 3e-3


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
def test_congruence_finds_shampoos_root(condition: float) -> None:
    grads = gradients(300, 12, 24, condition=condition)
    state = run("congruence", grads, damping=0.0)
    second = torch.zeros(12, 12, dtype=torch.float64)
    for g in grads:
        second = 0.95 * second + 0.05 * (g.double() @ g.double().T)
    exact = inverse_root(second[None], eps=1e-12)
    cosine = torch.nn.functional.cosine_similarity(state["left"].double().flatten(), exact.flatten(), dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_narrow_congruence_is_the_wide_form(n: int, degree: int) -> None:
    grads = torch.randn(30, 1, 12, n)
    forms = []
    for narrow in (False, True):
        root = start_root(grads[0], 1e-2)
        for grad in grads:
            root = congruence(root, grad, beta2=0.95, damping=0.0, substeps=4, narrow=narrow, degree=degree)
        forms.append(root)
    assert relative(forms[1], forms[0]) < 1e-5


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 20), (20, 5), (1, 12), (7, 8)])
def test_narrow_whitening_is_the_wide_form(shape: tuple[int, int], dtype: torch.dtype, degree: int) -> None:
    grads = torch.randn(30, 1, *shape, dtype=dtype)
    forms = []
    for narrow in ((False, False), (True, True)):
        left, right = (torch.eye(d, dtype=dtype)[None] for d in shape)
        for i, grad in enumerate(grads):
            k = torch.full((1,), float(i), dtype=dtype)
            (new,) = whiten(
                [{"left": left, "right": right, "refreshes": k}],
                [grad],
                beta2=0.95,
                damping=0.0,
                substeps=2,
                narrow=narrow,
                damping_refreshes=7,
                degree=degree,
            )
            left, right = new["left"], new["right"]
            assert torch.equal(left, left.mT)
        forms.append((left, right))
    for wide, thin in zip(*forms, strict=True):
        assert relative(thin, wide) < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("method", ["whitening", "congruence"])
@pytest.mark.parametrize("kind", ["dead", "rank-1", "conditioned"])
def test_damping_of_the_narrow_form_is_that_of_the_wide_form(method: str, kind: str) -> None:
    """Applied at every seventh refresh alone, and still what keeps dead rows bounded, as in the wide form."""
    shape = (10, 48)
    grads = gradients(700, *shape, condition=1e3 if kind == "conditioned" else 1.0)
    if kind == "dead":
        grads = [g.index_fill(1, torch.arange(12), 0.0) for g in grads]
    if kind == "rank-1":
        grads = [g[:, :1] @ g[:1] for g in grads]
    states = {}
    for narrow in (True, False):
        state = fresh(method, shape)
        options = Options(lr=0.1)
        for i, grad in enumerate(grads):
            refreshing = METHODS[method].refresh_at(i, 1)
            if narrow:
                refresh(method, state, grad[None], options, refreshing)
            else:
                _refresh_wide(method, state, grad[None], refreshing.substeps)
        states[narrow] = state
    found, wanted = (direction(states[narrow], grads[-1][None]).flatten() for narrow in (True, False))
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.995
    spectra = [torch.linalg.eigvalsh(states[narrow]["right"][0].double()) for narrow in (True, False)]
    ratios = [float(values[0] / values[-1]) for values in spectra]
    assert ratios[0] > 0.5 * ratios[1] > 1e-4


def _refresh_wide(method: str, state: State, grad: Tensor, substeps: int) -> None:
    if method == "whitening":
        state |= whiten([state], [grad], beta2=0.95, damping=1e-4, substeps=substeps, narrow=(False, False))[0]
    else:
        for side, seen in (("left", grad), ("right", grad.mT)):
            root = start_root(seen, 1e-2) if state["refreshes"] == 0 else state[side]
            state[side] = congruence(root, seen, beta2=0.95, damping=1e-4, substeps=substeps, narrow=False)
    state["refreshes"] += 1


@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial"])
@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("tf32", 5e-3), ("bfloat16", 4e-2)])
def test_precision_of_the_products(method: str, precision: Any, error: float) -> None:
    grads = gradients(100, 20, 14, condition=10.0)
    exact = run(method, [g.double() for g in grads])
    near = run(method, grads, matmul_precision=precision)
    wanted = direction(exact, grads[-1][None].double())
    assert relative(direction(near, grads[-1][None], precision), wanted) < error
    assert relative(near["left"], exact["left"]) < error / 4
    if precision != "float32":  # it is really another precision
        assert relative(near["left"], run(method, grads)["left"]) > 1e-6


def test_whitening_in_bfloat16_stays_positive_definite() -> None:
    state = run("whitening", gradients(600, 16, 16, condition=1e6), matmul_precision="bfloat16")
    for side in ("left", "right"):
        assert torch.equal(state[side], state[side].mT)
        assert torch.linalg.eigvalsh(state[side].double()).min() > 1e-4


def test_tf32_keeps_ten_bits() -> None:
    ones = torch.ones(1, 1, 1)
    for value, kept in ((1 + 2**-10, 1 + 2**-10), (1 + 2**-12, 1.0), (1 + 3 * 2**-12, 1 + 2**-10), (-1.0, -1.0)):
        assert multiply(torch.full((1, 1, 1), value), ones, "tf32").item() == kept


def test_narrow_binomial_is_the_wide_form() -> None:
    grads = torch.randn(30, 1, 12, 3, dtype=torch.float64)
    wide = narrow = torch.eye(12, dtype=torch.float64)[None] * 2
    for grad in grads:
        wide, narrow = binomial(wide, grad, narrow=False), binomial(narrow, grad, narrow=True)
    assert relative(narrow, wide) < 1e-10


@pytest.mark.parametrize("d", [1, 5, 40])
def test_the_exact_root_is_the_inverse_fourth_root(d: int) -> None:
    a = torch.randn(2, d, 2 * d, dtype=torch.float64)
    factor = a @ a.mT
    root = inverse_root(factor, eps=1e-12)
    identity = torch.linalg.matrix_power(root, 4) @ factor
    assert torch.allclose(identity, torch.eye(d, dtype=torch.float64).expand(2, d, d), atol=1e-8)


def test_whitening_whitens() -> None:
    grads = gradients(400, 10, 10, condition=1e3)
    state = run("whitening", grads)
    after = torch.stack([direction(state, g[None])[0] for g in gradients_like(grads)])
    rows = torch.linalg.eigvalsh((after @ after.mT).mean(0).double())
    before = torch.stack(grads)
    raw = torch.linalg.eigvalsh((before @ before.mT).mean(0).double())
    assert raw.max() / raw.min() > 100
    assert rows.max() / rows.min() < 6


def gradients_like(grads: list[Tensor]) -> list[Tensor]:
    return grads[-200:]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_diagonal_side_scales_rows_to_one_size(method: str) -> None:
    scale = torch.logspace(0, -3, 30)
    state = fresh(method, (30, 6), left="diagonal")
    for i in range(200):
        grad = scale[None, :, None] * torch.randn(1, 30, 6)
        refresh(method, state, grad, Options(lr=0.1, damping=0.0), METHODS[method].refresh_at(i, 1))
    assert state["left"].shape == (1, 30)
    assert torch.allclose(state["left"].mean(-1), torch.ones(1))
    balanced = state["left"][0] * scale
    assert balanced.max() / balanced.min() < 2.5


def test_a_stack_refreshes_each_block_as_if_alone() -> None:
    grads = torch.randn(8, 3, 5, 7)
    grads[2, 1] = torch.nan
    grads[5, 2] = 0
    for method in METHOD_NAMES:
        together = initial(method, 3, (5, 7), ("full", "full"), torch.float32)
        for grad in grads:
            refresh(method, together, grad, Options(lr=0.1), Refresh(2))
        for i in range(3):
            alone = fresh(method, (5, 7))
            for grad in grads:
                refresh(method, alone, grad[i : i + 1], Options(lr=0.1), Refresh(2))
            assert together["refreshes"][i] == alone["refreshes"][0]
            assert relative(together["left"][i], alone["left"][0]) < 1e-4


@pytest.mark.parametrize("method", ["whitening", "congruence"])
def test_a_refresh_that_stands_for_several_moves_so_much_further(method: str) -> None:
    """Where there are steps between refreshes, whitening remembers a third as many of them (`docs/guide/speed.md`)."""
    kind = METHODS[method].refresh_at(20, 10)
    assert (kind.substeps, kind.weight) == ((1, 3.0) if method == "whitening" else (2, 1.0))
    assert METHODS[method].refresh_at(20, 1).weight == METHODS[method].refresh_at(3, 10).weight == 1.0


def test_weight_counts_refreshes_with_the_same_gradient() -> None:
    grad = 1e-3 * torch.randn(1, 6, 9)  # scale-free, so what counts is that the step is small beside its cap
    start = [torch.eye(d)[None] for d in (6, 9)]
    k = torch.full((1,), 200.0)

    def moved(weight: float, beta2: float) -> Tensor:
        state = {"left": start[0], "right": start[1], "refreshes": k}
        (new,) = whiten([state], [grad], beta2=beta2, damping=0.0, substeps=1, weight=weight)
        return new["left"]

    assert torch.allclose(moved(3.0, 0.95), moved(1.0, 0.95**3), atol=1e-6)
    assert not torch.allclose(moved(3.0, 0.95), moved(1.0, 0.95), atol=1e-3)


@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial", "exact"])
@pytest.mark.parametrize("exponent", [-40, -20, 20, 40])
def test_the_scale_of_gradients_does_not_turn_the_direction(method: Any, exponent: int) -> None:
    ends = []
    for scale in (1.0, 2.0**exponent):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(12, 8))
        optimizer = Jorge([weight], lr=1.0, method=method, grafting="sgd")
        for _ in range(30):
            weight.grad = torch.randn(12, 8, generator=generator) * torch.logspace(0, -1, 8) * scale
            optimizer.step()
        ends.append(torch.nn.functional.normalize(weight.detach().double().flatten(), dim=0, eps=0))
    assert ends[0] @ ends[1] > 1 - 1e-9
