"""What every method keeps, by its registry: a fifth is a file and a line there, and it passes this.

The fifth here is thrown away: Adagrad's, whose direction is no `L G R` and whose state has no sides.
"""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jorge import Jorge
from jorge.cost import estimate
from jorge.methods import METHODS, Method, Refresh, Shape, Sides, State
from jorge.options import Options, Precision
from jorge.stacking import Blocks, refresh_blocks
from jorge.trace import Trace

OPTIONS = Options(lr=0.1)
FULL: Sides = ("full", "full")


class Diagonal(Method):
    """`D = G / (√(mean of G²) + ε)`, elementwise."""

    name = "diagonal"
    transposable = False
    symmetric = False

    def layout(self, shape: Shape, sides: Sides) -> dict[str, tuple[int, ...]]:
        return {"second_moment": shape}

    def start(self, state: Mapping[str, Tensor]) -> None:
        pass

    def refresh_at(self, number: int, gap: int) -> Refresh:
        return Refresh()

    def refreshed(
        self, state: State, grad: Tensor, largest: Tensor, options: Options, refresh: Refresh, trace: Trace | None
    ) -> State:
        share = (1 / (state["refreshes"] + 1)).clamp(min=1 - options.preconditioner_beta2)
        if trace is not None:
            trace.refreshed({"elements": share})
        return {"second_moment": state["second_moment"].lerp(grad.square(), share.view(-1, 1, 1))}

    def direction(self, state: Mapping[str, Tensor], grad: Tensor, precision: Precision = None) -> Tensor:
        size = state["second_moment"].to(grad.dtype).sqrt()
        return torch.where(state["refreshes"].view(-1, 1, 1) > 0, grad / (size + 1e-30), grad)

    def direction_flops(self, shape: Shape, sides: Sides) -> int:
        return 0

    def refresh_flops(self, shape: Shape, sides: Sides, options: Options, refresh: Refresh) -> int:
        return 0


METHODS_HERE: dict[str, Method] = {**METHODS, Diagonal.name: Diagonal()}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, Diagonal.name, METHODS_HERE[Diagonal.name])


@pytest.fixture(params=METHODS_HERE, name="method")
def _method(request: pytest.FixtureRequest) -> Method:
    return METHODS_HERE[request.param]


def initial(method: Method, count: int, shape: Shape, sides: Sides = FULL, dtype: torch.dtype = torch.float64) -> State:
    return method.initial(count, shape, sides, dtype=dtype)


def run(method: Method, grads: Tensor, state: State | None = None, options: Options = OPTIONS) -> State:
    """Refreshes with `[steps, count, m, n]` gradients."""
    count, m, n = grads.shape[1:]
    state = state if state is not None else initial(method, count, (m, n), dtype=grads.dtype)
    for number, grad in enumerate(grads):
        refresh_blocks(method, [Blocks(state, grad, slice(None))], options, method.refresh_at(number, 1))
    return state


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_before_any_gradient_the_direction_is_the_gradient(method: Method) -> None:
    grad = random(2, 5, 7)
    assert torch.equal(method.direction(initial(method, 2, (5, 7)), grad), grad)


def test_the_direction_has_the_gradients_shape_and_dtype(method: Method) -> None:
    for dtype in (torch.float64, torch.float32):
        state = run(method, random(6, 3, 5, 7, dtype=dtype))
        stored = {name: value.bfloat16() for name, value in state.items()}
        for each in (state, stored):
            found = method.direction(each, random(3, 5, 7, dtype=dtype, seed=1))
            assert found.shape == (3, 5, 7)
            assert found.dtype == dtype
            assert torch.isfinite(found).all()


def test_a_side_that_is_a_matrix_is_symmetric_to_the_bit(method: Method) -> None:
    state = run(method, random(30, 2, 6, 4, dtype=torch.float32))
    for name, value in state.items():
        if method.symmetric and value.dim() == 3:
            assert torch.equal(value, value.mT), name


@pytest.mark.parametrize("power", [-30, -8, 8, 30])
def test_the_direction_does_not_see_the_gradients_scale(method: Method, power: int) -> None:
    grads, last = random(30, 2, 6, 4), random(2, 6, 4, seed=1)
    mine = method.direction(run(method, grads), last)
    theirs = method.direction(run(method, grads * 2.0**power), last)
    assert torch.allclose(mine / mine.norm(), theirs / theirs.norm(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_gradient_that_is_zero_or_not_finite_changes_nothing_and_its_neighbours_go_on(
    method: Method, bad: float
) -> None:
    grads = random(12, 2, 6, 4)
    state, alone = run(method, grads), run(method, grads[:, 1:])
    before = {name: value.clone() for name, value in state.items()}
    poisoned = random(1, 2, 6, 4, seed=1)
    poisoned[0, 0] = 0
    poisoned[0, 0, 2, 1] = bad
    for each, given in ((state, poisoned), (alone, poisoned[:, 1:])):
        refresh_blocks(method, [Blocks(each, given[0], slice(None))], OPTIONS, method.refresh_at(12, 1))
    for name, value in state.items():
        assert torch.equal(value[0], before[name][0]), name
        assert torch.allclose(value[1], alone[name][0], rtol=1e-9), name
    assert state["refreshes"].tolist() == [12, 13]


@pytest.mark.parametrize("bad", [None, 0.0, math.nan])
def test_stacks_that_are_refreshed_together_are_as_each_by_itself(method: Method, bad: float | None) -> None:
    """Wide, narrow and diagonal sides; blocks by a slice or by number; and a gradient that is of no use."""
    kinds: list[tuple[Shape, Sides]] = [((6, 6), FULL), ((5, 40), FULL), ((9, 4), ("diagonal", "full"))]
    apart = [initial(method, 3, shape, sides) for shape, sides in kinds]
    together = [{name: value.clone() for name, value in state.items()} for state in apart]
    wheres: list[slice | Tensor] = [slice(None), slice(1, 3), torch.tensor([0, 2])]
    for number in range(15):
        grads = [random(3, *shape, seed=7 * number + i) for i, (shape, _) in enumerate(kinds)]
        if bad is not None and number == 8:
            grads[1][2] = 0
            grads[1][2, 0, 0] = bad
        refresh = method.refresh_at(number, 1)
        for state, grad, where in zip(apart, grads, wheres, strict=True):
            refresh_blocks(method, [Blocks(state, grad, where)], OPTIONS, refresh)
        some = [Blocks(*each) for each in zip(together, grads, wheres, strict=True)]
        refresh_blocks(method, some, OPTIONS, refresh)
    for one, other in zip(apart, together, strict=True):
        assert all(torch.allclose(other[name], value, rtol=1e-9) for name, value in one.items())
        assert all(value.isfinite().all() for value in other.values())
    assert together[1]["refreshes"].tolist() == [0, 15, 15 - (bad is not None)]


def test_a_stack_is_its_blocks_one_by_one(method: Method) -> None:
    grads = random(20, 3, 6, 4)
    together = run(method, grads)
    for i in range(3):
        alone = run(method, grads[:, i : i + 1])
        for name, value in together.items():
            assert torch.allclose(value[i], alone[name][0], rtol=1e-9, atol=1e-12), name


def test_transposed_blocks_may_share_a_stack_where_the_method_says_so(method: Method) -> None:
    if not method.transposable:
        return
    grads, last = random(20, 1, 6, 4), random(1, 6, 4, seed=1)
    state, other = run(method, grads), run(method, grads.mT.contiguous())
    back = method.direction(other, last.mT.contiguous()).mT
    assert torch.allclose(method.direction(state, last), back, rtol=1e-6, atol=1e-9)
    for name in method.layout((6, 4), FULL):
        side, other_side = ("left", "right") if name.startswith("left") else ("right", "left")
        assert torch.allclose(state[name], other[name.replace(side, other_side)], rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("sides", [("diagonal", "full"), ("full", "diagonal"), ("diagonal", "diagonal")])
def test_diagonal_sides(method: Method, sides: Sides) -> None:
    state = initial(method, 2, (6, 4), sides)
    grads = random(20, 2, 6, 4)
    state = run(method, grads, state)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert {name: tuple(value.shape[1:]) for name, value in state.items()} == {
        "refreshes": (),
        **method.layout((6, 4), sides),
    }
    assert method.direction(state, grads[0]).shape == (2, 6, 4)


@pytest.mark.parametrize("shape", [(6, 6), (24, 4), (4, 24), (5, 9)])
@pytest.mark.parametrize("sides", [FULL, ("diagonal", "full"), ("full", "diagonal")])
@pytest.mark.parametrize("degree", [1, 2])
def test_operations_are_those_that_torch_counts(method: Method, shape: Shape, sides: Sides, degree: int) -> None:
    options = OPTIONS.replace(degree=degree)
    for number in (0, 1, 5, 12, 13, 14):
        state, refresh = initial(method, 1, shape, sides), method.refresh_at(number, 5)
        with FlopCounterMode(display=False) as counter:
            refresh_blocks(method, [Blocks(state, random(1, *shape), slice(None))], options, refresh)
        assert counter.get_total_flops() == method.refresh_flops(shape, sides, options, refresh)
        with FlopCounterMode(display=False) as counter:
            method.direction(state, random(1, *shape))
        assert counter.get_total_flops() == method.direction_flops(shape, sides)


def test_a_trace_is_told_the_share_of_the_newest_gradient_and_changes_nothing(method: Method) -> None:
    grads = random(15, 2, 6, 4)
    plain, traced, trace = run(method, grads), initial(method, 2, (6, 4)), Trace()
    for number, grad in enumerate(grads):
        refresh_blocks(method, [Blocks(traced, grad, slice(None))], OPTIONS, method.refresh_at(number, 1), trace)
    assert all(torch.equal(plain[name], traced[name]) for name in plain)
    assert len(trace.refreshes) == len(grads)
    for seen in trace.refreshes:
        for share in seen.shares.values():
            assert ((share > 0) & (share <= 1)).all()
            assert share.shape == (2,)
    if method.name != "binomial":  # of which β2 is its own
        late = next(iter(trace.refreshes[-1].shares.values()))
        assert (late < 0.2).all()


def test_the_counterpart_is_what_the_method_comes_to(method: Method) -> None:
    oracle = method.counterpart((8, 6), OPTIONS, torch.device("cpu"))
    if oracle is None:
        assert method.name == Diagonal.name
        return
    grads = random(120, 1, 8, 6)
    state, trace = initial(method, 1, (8, 6)), Trace()
    for number, grad in enumerate(grads):
        refresh = method.refresh_at(number, 1)
        refresh_blocks(method, [Blocks(state, grad, slice(None))], OPTIONS, refresh, trace)
        oracle.refresh(grad[0], refresh, {side: float(share) for side, share in trace.refreshes[-1].shares.items()})
    roots = oracle.roots()
    assert roots
    for side, theirs in roots.items():
        cosine = torch.nn.functional.cosine_similarity(state[side].flatten(), theirs.flatten(), dim=0)
        assert cosine > {"binomial": 0.8, "congruence": 0.99, "whitening": 0.999}.get(method.name, 1 - 1e-9)


def test_a_sudden_length_is_limited(method: Method) -> None:
    p = nn.Parameter(torch.zeros(6, 4))
    optimizer = Jorge([p], lr=1.0, method=method.name, momentum=0.0, grafting="sgd", graft_limit=2.0)
    for step in range(8):
        grad, before = random(6, 4, dtype=torch.float32, seed=step), p.detach().clone()
        p.grad = grad / grad.norm() * (1.0 if step < 7 else 100.0)
        optimizer.step()
        assert float((p.detach() - before).norm()) == pytest.approx(1.0 if step < 7 else 2.0, rel=1e-4)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(random(*s, dtype=torch.float32)) for s in ((12, 20), (20, 12), (9,), (12, 20), (40, 6))]


def train(optimizer: Jorge, params: list[nn.Parameter], steps: int, seed: int) -> None:
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = random(*p.shape, dtype=torch.float32, seed=1000 * seed + 10 * step + i)
        optimizer.step()


@pytest.mark.parametrize(
    "options", [{}, {"block_size": 8, "stagger": True}, {"max_dim": 15, "grafting": "sgd"}], ids=str
)
def test_it_trains_saves_and_resumes_to_the_bit(method: Method, options: dict[str, Any]) -> None:
    options = {"lr": 0.05, "interval": 2, "warmup_refreshes": 3, **options}
    params = parameters()
    optimizer = Jorge(params, method=method.name, **options)
    train(optimizer, params, 7, seed=1)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    cold = [nn.Parameter(p.detach().clone()) for p in params]
    again = Jorge(others, method=method.name, **options)
    again.load_state_dict(optimizer.state_dict())
    fresh = Jorge(cold, method=method.name, **options)
    for each, mine in ((optimizer, params), (again, others), (fresh, cold)):
        train(each, mine, 7, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(params, cold, strict=True))


@pytest.mark.parametrize("options", [{}, {"block_size": 8, "preconditioner_dtype": torch.bfloat16}], ids=str)
def test_the_plan_and_the_estimate_are_right_to_the_byte_and_to_the_operator(
    method: Method, options: dict[str, Any]
) -> None:
    params = parameters()
    optimizer = Jorge(params, lr=0.05, method=method.name, **options)
    train(optimizer, params, 1, seed=1)
    kept = [sum(v.nbytes for v in optimizer.state[p].values() if isinstance(v, Tensor)) for p in params]
    assert [row.state_bytes for row in optimizer.plan().rows] == kept
    cost = estimate(params, method=method.name, **options)
    assert cost.state_bytes == sum(kept)
    with FlopCounterMode(display=False) as counter:
        train(optimizer, params, 1, seed=2)
    refresh = METHODS_HERE[method.name].refresh_at(1, 1)
    expected = cost.direction_flops
    for row in cost.rows:
        if row.plan.left is not None and row.plan.right is not None:
            sides = (row.plan.left, row.plan.right)
            for count, m, n in row.plan.blocks:
                expected += count * method.refresh_flops((m, n), sides, OPTIONS, refresh)
                expected += (
                    count * 2 * (2 * m * n * min(m, n)) * ("full" in sides and len(row.plan.shape) == 2)
                )  # the step's Schatten norm
    assert counter.get_total_flops() == expected
