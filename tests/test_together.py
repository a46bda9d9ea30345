"""Parameters that take a step together: the same numbers as each by itself, whoever is left out and whatever comes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, arrange
from jorge.arrange import ParamSpec
from jorge.options import Options

SHAPES = [(12, 20), (7,), (12, 20), (20, 12), (8, 8), (), (30, 6), (6,), (6,), (4, 3, 3, 3), (1, 9)]

#: Every way to measure a length, with the options that change what is computed together.
GRAFTS: list[dict[str, Any]] = [
    {"grafting": "sgd"},
    {"grafting": "sgd", "nesterov": True, "weight_decay": 0.1, "graft_limit": None},
    {"grafting": "adam"},
    {"grafting": "adam", "nesterov": False, "beta2_decay": None, "weight_decay": 0.1, "graft_norm": "frobenius"},
]


def parameters(*dtypes: torch.dtype, shapes: Any = SHAPES) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for dtype in dtypes for shape in shapes]


def copies(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def give(params: list[nn.Parameter], step: int, *, absent: bool = False, sign: float = 1.0) -> None:
    """Gradients that depend on the step and the place alone; with `absent`, each third parameter has none in turn."""
    for i, p in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + i)
        grad = torch.randn(p.shape, generator=generator).to(p.dtype) * sign
        p.grad = None if absent and step > 1 and (step + i) % 3 == 0 else grad


def snapshot(optimizer: Jorge) -> list[dict[str, Any]]:
    return [
        {name: v.clone() if isinstance(v, Tensor) else v for name, v in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def same(some: dict[str, Any], others: dict[str, Any], *, exactly: bool = False) -> bool:
    def alike(a: Any, b: Any) -> bool:
        if not isinstance(a, Tensor) or exactly:
            return bool(torch.equal(a, b)) if isinstance(a, Tensor) else a == b
        return torch.allclose(a, b, atol=1e-9, rtol=1e-7)

    return some.keys() == others.keys() and all(alike(some[name], others[name]) for name in some)


@pytest.mark.parametrize("options", GRAFTS, ids=str)
@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05, dtype=torch.float64)], ids=["number", "tensor"])
def test_together_as_each_by_itself(options: dict[str, Any], lr: Any) -> None:
    together = parameters(torch.float64)
    alone = copies(together)
    optimizer = Jorge(together, lr=lr, interval=3, warmup_refreshes=2, **options)
    singles = [Jorge([p], lr=lr, interval=3, warmup_refreshes=2, **options) for p in alone]
    for step in range(14):
        give(together, step, absent=True)
        give(alone, step, absent=True)
        before = snapshot(optimizer) if step else []
        optimizer.step()
        for single in singles:
            single.step()
        after = snapshot(optimizer)
        for i, p in enumerate(together):
            if p.grad is None:
                assert same(after[i], before[i], exactly=True)
    for p, q, state, single in zip(together, alone, snapshot(optimizer), singles, strict=True):
        assert torch.allclose(p, q, atol=1e-9)
        assert same(state, snapshot(single)[0])


@pytest.mark.parametrize("options", GRAFTS, ids=str)
def test_many_work_sets_as_one(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    found = []
    for workspace in (None, 0.5):
        params = parameters(torch.float64)
        optimizer = Jorge(params, lr=0.05, interval=3, workspace=workspace, **options)
        for step in range(14):
            give(params, step, absent=True)
            optimizer.step()
        specs = [ParamSpec(tuple(p.shape), p.dtype) for p in params]
        sets = arrange.arrange(specs, Options(lr=0.05, workspace=workspace, **options))
        found.append((len(sets), params, snapshot(optimizer)))
    (one, params, states), (many, others, their) = found
    assert one == 1
    assert many > 3
    assert all(torch.allclose(p, q, atol=1e-9) for p, q in zip(params, others, strict=True))
    assert all(map(same, states, their))


@pytest.mark.parametrize("options", GRAFTS, ids=str)
def test_dtypes_in_one_group_as_each_by_itself(options: dict[str, Any]) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    together = parameters(*dtypes)
    alone = copies(together)
    count = len(SHAPES)
    optimizers = [Jorge(together, lr=0.05, interval=2, **options)]
    optimizers += [
        Jorge(alone[i * count : (i + 1) * count], lr=0.05, interval=2, **options) for i in range(len(dtypes))
    ]
    for step in range(6):
        give(together, step)
        give(alone, step)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        assert p.dtype == q.dtype
        # bfloat16 has 8 bits: one unit in the last place where the arithmetic was grouped otherwise
        assert torch.allclose(p, q, atol=1e-5, rtol=torch.finfo(p.dtype).eps)


def as_nadam(params: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What Adam's next step would be with a first average that looks ahead."""
    group, steps = optimizer.param_groups[0], []
    beta1, beta2 = group["betas"]
    for p in params:
        state = optimizer.state[p]
        t = int(state["step"])
        ahead = (beta1 * state["exp_avg"] + (1 - beta1) * p.grad) / (1 - beta1 ** (t + 1))
        steps.append(group["lr"] * ahead / ((state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]))
    return steps


def test_adams_length_looks_ahead_with_nesterov_momentum() -> None:
    mine = parameters(torch.float64, shapes=[(12, 20), (8, 8), (4, 3, 3, 3), (7,)])
    theirs = copies(mine)
    optimizer = Jorge(mine, lr=0.05, weight_decay=0, beta2_decay=None, graft_norm="frobenius")
    graft = torch.optim.Adam(theirs, lr=0.05)
    for step in range(12):
        before = [p.detach().clone() for p in mine]
        at = [q.detach().clone() for q in theirs]
        give(mine, step)
        give(theirs, step)
        optimizer.step()
        graft.step()
        wanted = as_nadam(theirs, graft)
        for p, was, nadam in zip(mine[:-1], before, wanted, strict=False):
            assert torch.allclose((p - was).norm(), nadam.norm(), rtol=1e-9)
        assert torch.allclose(mine[-1] - before[-1], theirs[-1] - at[-1])  # a vector's step is Adam's own


def schatten(matrix: Tensor) -> Tensor:
    """The norm of order 4, of a matrix or of a kernel read as one."""
    return torch.linalg.vector_norm(torch.linalg.svdvals(matrix.flatten(1)), ord=4)  # type: ignore[no-any-return]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("max_dim", [8192, 15])  # the second makes the 20 columns diagonal
def test_a_refreshing_step_of_a_linear_map_has_adams_schatten_norm(nesterov: bool, max_dim: int) -> None:
    mine = parameters(torch.float64, shapes=[(12, 20), (8, 8), (9, 4, 1, 1), (1, 6, 5), (4, 3, 3, 3)])
    theirs = copies(mine)
    options: dict[str, Any] = {"nesterov": nesterov, "beta2_decay": None, "warmup_refreshes": 4, "max_dim": max_dim}
    optimizer = Jorge(mine, lr=0.05, weight_decay=0, **options)
    graft = torch.optim.Adam(theirs, lr=0.05)
    quotients, lengths = [], []
    for step in range(12):  # refreshes at steps 1 to 4, 6, 8, 10 and 12
        before = [[p.detach().clone() for p in params] for params in (mine, theirs)]
        give(mine, step)
        give(theirs, step)
        optimizer.step()
        graft.step()
        wanted = as_nadam(theirs, graft) if nesterov else [b - q for b, q in zip(before[1], theirs, strict=True)]
        moved = [was - p for p, was in zip(mine, before[0], strict=True)]
        quotients.append([(schatten(m) / schatten(w)).item() for m, w in zip(moved[:3], wanted, strict=False)])
        for kernel in (3, 4):  # more dims than two are no linear map
            assert torch.allclose(moved[kernel].norm(), wanted[kernel].norm(), rtol=1e-9)
        lengths.append((moved[1].norm() / wanted[1].norm()).item())
    for step, found in enumerate(quotients, 1):
        measured = step <= 4 or step % 2 == 0
        assert (found == pytest.approx([1] * 3, rel=1e-9)) == measured
    assert max(abs(length - 1) for length in lengths) > 0.01  # in the Frobenius norm it is another


def test_the_schatten_norm_of_blocks_is_that_of_all_and_does_not_depend_on_scale() -> None:
    """The fourth powers add up over blocks, whose sizes differ, and each of which remembers its own."""
    small, large = (nn.Parameter(torch.zeros(10, 14)) for _ in range(2))
    optimizer = Jorge([small, large], lr=0.1, block_size=4, eps=1e-30, weight_decay=0)
    for step in range(3):
        grad = torch.randn(10, 14, generator=torch.Generator().manual_seed(step))
        grad[:5] = 0  # whole blocks of zeros among them
        small.grad, large.grad = 1e-12 * grad, 1e8 * grad
        optimizer.step()
    for name in [name for name in optimizer.state[small] if name.startswith("quartics")]:
        assert torch.allclose(optimizer.state[small][name], optimizer.state[large][name], rtol=1e-3)
    assert torch.allclose(small, large, rtol=1e-3, atol=1e-6)
    assert small.isfinite().all()
    kept = torch.cat([v for name, v in optimizer.state[small].items() if name.startswith("quartics")])
    assert kept.shape == (12, 2)
    assert ((kept.sum(0) >= 1 / 32) & (kept.sum(0) < 1)).all()  # eight blocks of rank 4 at a norm of 1 in all


@pytest.mark.parametrize("rest", [0.0, 1e-4])
def test_a_length_is_bounded_where_blocks_are_measured_in_different_steps(rest: float) -> None:
    """Each block is measured while it holds next to nothing of the direction: what is added up is no matrix's."""
    moved: dict[bool, list[float]] = {}
    for stagger in (False, True):
        p = nn.Parameter(torch.zeros(64, 128))
        optimizer = Jorge([p], weight_decay=0, interval=2, block_size=64, stagger=stagger, momentum=0.0)
        moved[stagger] = []
        for t in range(60):
            p.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(t))
            p.grad[:, slice(64, None) if t % 2 else slice(None, 64)] *= rest
            before = p.detach().clone()
            optimizer.step()
            moved[stagger].append((p - before).norm().item())
    assert max(moved[True]) < 128**0.25 * max(moved[False])
    assert min(moved[True]) > 0


@pytest.mark.parametrize(("grafting", "nesterov"), [("sgd", False), ("sgd", True), ("adam", False)])
def test_matrices_move_as_far_as_the_graft_optimizer(grafting: Any, nesterov: bool) -> None:
    shapes = [(12, 20), (8, 8), (4, 3, 3, 3)]
    mine = parameters(torch.float64, shapes=shapes)
    theirs = copies(mine)
    options: dict[str, Any] = {"grafting": grafting, "nesterov": nesterov, "graft_limit": None, "beta2_decay": None}
    optimizer = Jorge(mine, lr=0.05, weight_decay=0, graft_norm="frobenius", **options)
    graft: torch.optim.Optimizer = torch.optim.Adam(theirs, lr=0.05)
    if grafting == "sgd":
        graft = torch.optim.SGD(theirs, lr=0.05, momentum=0.9, nesterov=nesterov)
    for step in range(12):
        before = [[p.detach().clone() for p in params] for params in (mine, theirs)]
        give(mine, step)
        give(theirs, step)
        optimizer.step()
        graft.step()
        for p, was, q, theirs_was in zip(mine, before[0], theirs, before[1], strict=True):
            assert torch.allclose((p - was).norm(), (q - theirs_was).norm(), rtol=1e-9)


@pytest.mark.parametrize("options", GRAFTS, ids=str)
def test_maximize_goes_against_the_gradient(options: dict[str, Any]) -> None:
    down = parameters(torch.float64)
    up = copies(down)
    first, second = Jorge(down, lr=0.05, **options), Jorge(up, lr=0.05, maximize=True, **options)
    for step in range(5):
        give(down, step)
        give(up, step, sign=-1.0)
        first.step()
        second.step()
    assert all(torch.equal(p, q) for p, q in zip(down, up, strict=True))


@pytest.mark.parametrize("options", [*GRAFTS, {"grafting": "adam", "eps": 0.0}], ids=str)
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float64,), (torch.float32, torch.float64)], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [False, True])
def test_nothing_moves_where_one_gradient_is_not_finite(
    options: dict[str, Any], dtypes: tuple[torch.dtype, ...], bad: float, first: bool
) -> None:
    params = parameters(*dtypes)
    optimizer = Jorge(
        params, lr=torch.tensor(0.05), interval=1, preconditioner_dtype=torch.bfloat16, workspace=0.5, **options
    )
    for step in range(0 if first else 3):
        give(params, step)
        optimizer.step()
    weights, states = copies(params), snapshot(optimizer) if not first else None
    give(params, 6, absent=not first)
    grad = params[4].grad
    assert grad is not None
    grad[0, 0] = bad
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, weights, strict=True))
    now = snapshot(optimizer)
    for state in now:
        state.pop("step")  # counts on the host, which does not see what the gradients are
    if states is not None:
        for before, state in zip(states, now, strict=True):
            before.pop("step")
            assert same(before, state, exactly=True)
    give(params, 6)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)
    assert not torch.equal(params[0], weights[0])
