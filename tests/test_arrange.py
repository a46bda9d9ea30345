"""What a step does all at once, in work sets, in parts or compiled: the same numbers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jorge import Jorge, arrange
from jorge.allocation import Constants
from jorge.arrange import ParamSpec, WorkSet
from jorge.compiling import CompiledSteps
from jorge.options import Options

SHAPES = [(12, 20), (12, 20), (20, 12), (8, 8), (30, 6), (6,), (6,), (4, 3, 3, 3)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def train(optimizer: Jorge, params: list[nn.Parameter], steps: int, absent: Any = lambda step, i: False) -> None:
    torch.manual_seed(1)
    for step in range(steps):
        for i, p in enumerate(params):
            grad = torch.randn(p.shape).to(p.dtype)
            p.grad = None if absent(step, i) else grad
        optimizer.step()


def work_sets(params: list[nn.Parameter], **options: Any) -> tuple[WorkSet, ...]:
    specs = [ParamSpec(tuple(p.shape), p.dtype) for p in params]
    return arrange.arrange(specs, Options(**{"lr": 0.05, **options}))


def close(some: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return all(torch.allclose(a, b, atol=2e-5, rtol=1e-4) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial", "exact"])
def test_work_sets_do_not_change_the_numbers(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, many = parameters(torch.float64), parameters(torch.float64)
    first = Jorge(one, lr=0.05, method=method, workspace=None)
    train(first, one, 12)
    assert len(work_sets(one, method=method, workspace=None)) == 1
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    second = Jorge(many, lr=0.05, method=method, workspace=0.5)
    train(second, many, 12)
    assert len(work_sets(many, method=method, workspace=0.5)) > 3
    assert close(one, many)
    for p, q in zip(one, many, strict=True):
        assert first.state[p].keys() == second.state[q].keys()
        for name, value in first.state[p].items():
            assert (
                value == second.state[q][name]
                if name == "step"
                else torch.allclose(value, second.state[q][name], atol=1e-4, rtol=1e-3)
            )


def test_small_models_are_one_work_set() -> None:
    assert len(work_sets(parameters(), workspace=0.01)) == 1


def test_workspace_bounds_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    params = [nn.Parameter(torch.randn(16, 16)) for _ in range(20)]
    total = sum(p.numel() * 4 for p in params)
    rooms = [sum(group.nbytes for group in work.groups) for work in work_sets(params, workspace=1.0)]
    assert sum(rooms) == total
    assert max(rooms) <= total / 5


def test_transposed_shapes_share_a_stack_and_readers_do_not_see_it() -> None:
    params = [nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(9, 6))]
    together = Jorge(params, lr=0.05)
    alone = [nn.Parameter(p.detach().clone()) for p in params]
    singles = [Jorge([p], lr=0.05) for p in alone]
    for _ in range(14):
        for p, q in zip(params, alone, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        together.step()
        for single in singles:
            single.step()
    assert [stack.count for work in work_sets(params) for stack in work.stacks] == [2]
    for p, q, single in zip(params, alone, singles, strict=True):
        assert torch.allclose(p, q, atol=1e-5)
        for name in ("left.0", "right.0"):
            assert together.state[p][name].shape == single.state[q][name].shape
            assert torch.allclose(together.state[p][name], single.state[q][name], atol=1e-5)


@pytest.mark.parametrize("interval", [2, 3, 7])
def test_stagger_refreshes_each_block_once_an_interval(interval: int) -> None:
    params = [nn.Parameter(torch.randn(8, 8)) for _ in range(8)] + [nn.Parameter(torch.randn(4, 8)) for _ in range(8)]
    optimizer = Jorge(params, lr=0.05, interval=interval, warmup_refreshes=2, stagger=True)
    train(optimizer, params, sum(2 * gap for gap in range(1, interval)))
    refreshes = [optimizer.state[p]["refreshes.0"] for p in params]
    counts = [int(sum(refreshes))]
    for _ in range(3 * interval):
        train(optimizer, params, 1)
        counts.append(int(sum(refreshes)))
    assert {int(r) for r in refreshes} == {2 * (interval - 1) + 3}
    each = [b - a for a, b in pairwise(counts)]
    assert max(each) < len(params)
    assert each[:interval] == each[interval : 2 * interval]


def test_stagger_spreads_the_work() -> None:
    params = [nn.Parameter(torch.randn(16, 16)) for _ in range(40)]
    optimizer = Jorge(params, lr=0.05, interval=10, warmup_refreshes=0, stagger=True)
    done = []
    for _ in range(10):
        before = sum(float(optimizer.state[p]["refreshes.0"]) for p in params) if optimizer.state else 0.0
        train(optimizer, params, 1)
        done.append(sum(float(optimizer.state[p]["refreshes.0"]) for p in params) - before)
    assert done == [4.0] * 10


def test_stagger_with_parameters_that_miss_gradients() -> None:
    params = parameters()
    optimizer = Jorge(params, lr=0.05, interval=3, warmup_refreshes=1, stagger=True)
    train(optimizer, params, 25, absent=lambda step, i: step > 0 and (step + i) % 3 == 0)
    for i, p in enumerate(params):
        state = optimizer.state[p]
        assert state["step"] == sum(1 for step in range(25) if not (step > 0 and (step + i) % 3 == 0))
        if p.dim() > 1:
            later = state["step"] - 1
            assert 1 + later // 3 <= state["refreshes.0"] <= 1 + -(-later // 3)


def flops(optimizer: Jorge, params: list[nn.Parameter], steps: int) -> int:
    with FlopCounterMode(display=False) as counter:
        train(optimizer, params, steps)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("stagger", [False, True])
def test_one_missed_gradient_does_not_cost_more_refreshes(stagger: bool) -> None:
    totals = []
    for missed in (False, True):
        params = [nn.Parameter(torch.randn(16, 16)) for _ in range(12)]
        optimizer = Jorge(params, lr=0.05, interval=4, warmup_refreshes=0, stagger=stagger)
        train(optimizer, params, 60)
        train(optimizer, params, 1, absent=lambda step, i, missed=missed: missed and i == 5)
        totals.append(flops(optimizer, params, 20))
    assert totals[0] == totals[1]


def absences(step: int, i: int) -> bool:
    return (i == 0 and step < 4) or (i == 2 and step == 6) or (i % 2 == 1 and step % 3 == 1)


@pytest.mark.parametrize("stagger", [False, True])
def test_training_goes_on_to_the_bit_whatever_was_missed(stagger: bool) -> None:
    params = parameters()
    optimizer = Jorge(params, lr=0.05, interval=5, warmup_refreshes=1, block_size=4, stagger=stagger)
    train(optimizer, params, 43, absent=absences)
    copied = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = Jorge(copied, lr=0.05, interval=5, warmup_refreshes=1, block_size=4, stagger=stagger)
    resumed.load_state_dict(optimizer.state_dict())
    for some, mine in ((optimizer, params), (resumed, copied)):
        train(some, mine, 30, absent=absences)  # with a refresh that is damped
    assert all(torch.equal(p, q) for p, q in zip(params, copied, strict=True))


def test_absent_parameters_with_decay() -> None:
    params = [nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(4).bfloat16())]
    before = [p.detach().clone() for p in params]
    train(Jorge(params, lr=0.1, weight_decay=0.1), params, 3, absent=lambda step, i: i > 0)
    assert not torch.equal(params[0], before[0])
    assert torch.equal(params[1], before[1])
    assert torch.equal(params[2], before[2])


def test_constants_are_few_and_right() -> None:
    kept = Constants(torch.device("cpu"), most=3)
    for i in range(10):
        assert kept.get((i, i + 1)).tolist() == [i, i + 1]
    assert len(kept._kept) == 3


def test_a_step_does_not_hang_on_torchs_default_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledSteps, "step", lambda self, number, plain: plain)
    ends = []
    for device, dtype in (("cpu", torch.float32), ("meta", torch.bfloat16)):
        params = parameters()
        optimizer = Jorge(params, lr=0.05, interval=4, warmup_refreshes=0, compile_step=True)
        torch.set_default_dtype(dtype)
        try:
            for step in range(60):
                for i, p in enumerate(params):
                    seed = torch.Generator().manual_seed(100 * step + i)
                    p.grad = torch.randn(p.shape, generator=seed, dtype=p.dtype) if (step + i) % 5 else None
                with torch.device(device):
                    optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
        ends.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_workspace_and_compile_step_may_change_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state moves in memory, and training goes on."""
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    used: list[int] = []

    def step(self: CompiledSteps, number: int, plain: Any) -> Any:
        used.append(number)
        return plain

    monkeypatch.setattr(CompiledSteps, "step", step)
    params, plain = parameters(torch.float64), parameters(torch.float64)
    optimizer, other = Jorge(params, lr=0.05, workspace=0.5), Jorge(plain, lr=0.05)
    sets = []
    for change in ({}, {"workspace": None}, {"compile_step": True}, {"compile_step": False, "workspace": 0.5}):
        optimizer.param_groups[0].update(change)
        before = len(used)
        for some, mine in ((optimizer, params), (other, plain)):
            train(some, mine, 4)
        options = {name: optimizer.param_groups[0][name] for name in ("workspace", "compile_step")}
        sets.append((len(work_sets(params, **options)), len(used) - before))
        assert close(params, plain)
    assert [count for count, _ in sets[1:3]] == [1, 1]
    assert sets[0][0] == sets[3][0] > 3
    assert [compiled for _, compiled in sets] == [0, 0, 4, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("interval", 0), ("stagger", "yes"), ("matmul_precision", "fp8"), ("workspace", -1), ("lr", float("nan"))],
)
def test_options_are_checked_when_they_change(name: str, value: Any) -> None:
    params = parameters()
    optimizer = Jorge(params, lr=0.05)
    train(optimizer, params, 2)
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=name):
        train(optimizer, params, 1)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_compile_step_and_stagger_are_refused_later_too() -> None:
    params = parameters()
    optimizer = Jorge(params, lr=0.05, stagger=True)
    optimizer.param_groups[0]["compile_step"] = True
    with pytest.raises(ValueError, match="exclude"):
        train(optimizer, params, 1)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", ("bfloat16", None), (None, "tf32")])
def test_matmul_precision_is_that_of_refresh_and_direction(precision: Any) -> None:
    exact, near = parameters(), parameters()
    train(Jorge(exact, lr=0.05), exact, 8)
    train(Jorge(near, lr=0.05, matmul_precision=precision), near, 8)
    distance = max(float((p - q).detach().abs().max()) for p, q in zip(exact, near, strict=True))
    assert distance < 0.05
    assert (distance > 1e-7) == (precision != "float32")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize(
    "graft", [{"grafting": "sgd"}, {"grafting": "adam", "nesterov": True, "beta2_decay": -0.8}], ids=["sgd", "adam"]
)
def test_compile_step_is_one_graph_for_each_kind_of_step(graft: dict[str, Any]) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    shapes = [(8, 8), (8, 8), (6,)]
    torch.manual_seed(0)
    plain = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    fused = [nn.Parameter(p.detach().clone()) for p in plain]
    options: dict[str, Any] = {"lr": 0.05, "interval": 3, "warmup_refreshes": 11, "weight_decay": 0.01, **graft}
    pairs = []
    for params, flag in ((plain, False), (fused, True)):
        optimizer = Jorge(params, compile_step=flag, **options)
        pairs.append((optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40)))
    # Refreshes of four, three, two substeps and one, steps without, and a refresh that is damped; the weights of
    # refreshes at the gaps 2 and 3 are others, and lr and momentum change at each step.
    for _ in range(38):
        for p, q in zip(plain, fused, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        for optimizer, scheduler in pairs:
            optimizer.step()
            scheduler.step()
    assert close(plain, fused)
    assert counters["stats"]["unique_graphs"] == 6
    assert not counters["graph_break"]


def test_compile_step_cannot_be_staggered_or_switch_tf32() -> None:
    with pytest.raises(ValueError, match=r"stagger=True exclude"):
        Jorge(parameters(), lr=0.1, compile_step=True, stagger=True)
    with pytest.raises(ValueError, match=r"set_float32_matmul_precision"):
        Jorge(parameters(), lr=0.1, compile_step=True, matmul_precision=(None, "tf32"))
