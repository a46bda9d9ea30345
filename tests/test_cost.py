"""The estimate against what the optimizer, torch's FLOP counter and torch's own optimizers then do."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from jorge import Jorge
from jorge.cost import ModelFlopsError, estimate, model_flops, suggest
from jorge.cost import rivals as others
from jorge.cost.estimating import checked, count_row
from jorge.cost.meter import Meter, Rehearsal
from jorge.cost.weights import weights_of
from jorge.methods import DAMPING_PERIOD, METHODS

SHAPES = st.lists(st.sampled_from([1, 2, 3, 5, 7, 8, 12, 19, 33]), min_size=0, max_size=4).filter(
    lambda s: math.prod(s) <= 2000
)
OPTIONS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(sorted(METHODS)),
        "grafting": st.sampled_from(["sgd", "adam"]),
        "block_size": st.one_of(st.just("auto"), st.none(), st.integers(4, 40)),
        "max_dim": st.sampled_from([6, 15, 8192]),
        "preconditioner_dtype": st.sampled_from([None, torch.bfloat16]),
        "interval": st.sampled_from([1, 3]),
        "damping": st.sampled_from([0.0, 1e-4]),
        "degree": st.sampled_from([1, 2]),
        "nesterov": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 1e-3]),
    }
)


def built(
    shapes: Sequence[Sequence[int]], options: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[list[nn.Parameter], Jorge]:
    params = [nn.Parameter(torch.randn(tuple(shape), dtype=torch.float32).to(dtype)) for shape in shapes]
    return params, Jorge(params, lr=0.01, **options)


def step(params: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
    return sum(t.numel() * t.itemsize for t in tensors)


@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    options=OPTIONS,
)
@settings(max_examples=60)
def test_state_bytes_are_what_the_optimizer_allocates(shapes: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    params, optimizer = built(shapes, options, dtype)
    step(params, optimizer)
    rows = [count_row(w, checked(options)) for w in weights_of(params)]
    assert sum(row.plan.state_bytes for row in rows) == state_bytes(optimizer)
    for row, p in zip(rows, params, strict=True):
        own = sum(v.numel() * v.itemsize for v in optimizer.state[p].values() if isinstance(v, Tensor))
        assert row.plan.state_bytes == own


@given(shape=SHAPES, options=OPTIONS)
@settings(max_examples=30)
def test_flops_are_what_torch_counts_in_real_steps(shape: Any, options: dict[str, Any]) -> None:
    params, optimizer = built([shape], options | {"warmup_refreshes": 13})
    row = count_row(weights_of(params)[0], checked(options))
    sides, chosen, method = (row.plan.left, row.plan.right), checked(options), METHODS[options["method"]]
    plain: list[int] = []
    early: list[int] = []
    late: list[int] = []
    for number in range(24):
        if number == 13:
            optimizer.param_groups[0]["warmup_refreshes"] = 0
            optimizer.param_groups[0]["interval"] = 100
            with FlopCounterMode(display=False) as counter:
                step(params, optimizer)
            plain.append(counter.get_total_flops())
            optimizer.param_groups[0]["warmup_refreshes"] = 100
            optimizer.param_groups[0]["interval"] = options["interval"]
            continue
        with FlopCounterMode(display=False) as counter:
            step(params, optimizer)
        seen = counter.get_total_flops()
        (early if number < 10 else late).append(seen - row.direction_flops)
        expected = 0
        if row.plan.left is not None:
            for count, m, n in row.plan.blocks:
                assert sides[0] is not None
                assert sides[1] is not None
                both = (sides[0], sides[1])
                expected += count * method.direction_flops((m, n), both)
                expected += count * method.refresh_flops((m, n), both, chosen, method.refresh_at(number, 1))
                if chosen.grafting == "adam" and "full" in both and len(row.plan.shape) == 2:
                    expected += count * 2 * (2 * m * n * min(m, n))  # a product each of Adam's direction and the step's
        assert seen == expected, f"refresh {number}"
    assert plain == [row.direction_flops]
    assert row.early_refresh_flops == sum(early) / len(early)
    assert row.refresh_flops == pytest.approx(sum(late[-DAMPING_PERIOD:]) / DAMPING_PERIOD, rel=1e-12)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
@pytest.mark.parametrize("stagger", [False, True])
def test_launches_are_the_operators_of_real_steps(method: str, grafting: str, stagger: bool) -> None:
    shapes = [(20, 6), (6, 20), (6, 20), (9,), (12, 3, 3, 3), (40, 5)]
    options: dict[str, Any] = {"method": method, "grafting": grafting, "max_dim": 30, "interval": 5, "block_size": 8}
    options |= {"weight_decay": 0.1, "workspace": 1e6, "stagger": stagger, "warmup_refreshes": 10}
    params, optimizer = built(shapes, options)
    counts = []
    for _ in range(140):  # ten refreshes at each gap from 1 to 4 are 100 steps
        with Meter() as meter:
            step(params, optimizer)
        counts.append(meter.launches - len(params))  # the random gradients
    rehearsal = Rehearsal(weights_of(params), checked(options))
    interval = [count.launches for count in rehearsal.interval()]
    assert min(interval) == min(counts[100:])
    assert [step.launches for step in rehearsal.early()][1:] == counts[1:10]  # the very first makes the state, too
    most = [max(counts[start : start + 5]) for start in range(100, 140, 5)]
    assert max(interval) == max(most, key=most.count)  # one refresh in seven may apply the damping and need more


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_torchs_own_optimizers_cost_what_they_allocate_and_move(name: str) -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in ((300, 7), (500,), (40, 3, 3, 3))]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, lr=0.1, foreach=True)
    if name == "SGD":
        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=True)
    step(params, optimizer)
    rival = {"SGD": others.sgd, "AdamW": others.adamw}[name](weights_of(params))
    assert rival.state_bytes == state_bytes(optimizer)
    with Meter() as meter:
        optimizer.step()
    assert meter.moved_bytes == pytest.approx(rival.bytes_per_step, rel=0.01)
    assert meter.flops == 0


def test_shampoo_is_the_exact_method() -> None:
    shapes = {"a": (30, 20), "b": (20,), "c": (8, 4, 3, 3)}
    mine = estimate(shapes, method="exact", graft_norm="frobenius", adapt_variance=False, interval=7)
    theirs = next(r for r in estimate(shapes, interval=7).rivals if r.name == "Shampoo")
    assert theirs.state_bytes == mine.state_bytes
    assert theirs.flops_per_step == mine.flops_per_step
    assert theirs.nominal_flops_per_step * 7 == mine.eigh_flops == 9 * (30**3 + 20**3 + 8**3 + 36**3)


def test_muons_and_soaps_products_are_those_of_their_algorithms() -> None:
    m, n = 24, 40
    grad, left, right = torch.randn(m, n), torch.randn(m, m), torch.randn(n, n)
    weights = weights_of({"hidden": (m, n), "embed.weight": (50, 8), "bias": (9,)})
    with FlopCounterMode(display=False) as counter:
        x = grad
        for _ in range(5):
            a = x @ x.T
            x = x + (a + a @ a) @ x
    muon = others.muon(weights)
    assert muon.flops_per_step == counter.get_total_flops()
    assert muon.state_bytes == 4 * m * n + 2 * 4 * (50 * 8 + 9) + 2 * 4
    with FlopCounterMode(display=False) as counter:
        for _ in range(3):  # gradient, momentum and update
            left.T @ grad @ right
        grad @ grad.T, grad.T @ grad
    soap = others.soap(weights_of({"hidden": (m, n)}), interval=10)
    assert soap.flops_per_step == pytest.approx(counter.get_total_flops() + (2 * m**3 + 2 * n**3) / 10)
    assert soap.state_bytes == 4 * (2 * m * n + 2 * m * m + 2 * n * n) + 4


class Residual(nn.Module):
    """A small residual network, with a frozen layer and a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.one, self.two = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.two.weight = self.one.weight
        self.frozen = nn.Conv2d(16, 16, 1).requires_grad_(False)
        self.head = nn.Linear(16, 10)
        self.scale = torch.ones(16, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.one(x).relu()) * self.scale + torch.arange(1.0)
        return {"logits": self.head(self.frozen(x).mean(dim=(2, 3))), "labels": torch.zeros(1, dtype=torch.long)}


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most elements that any operator returned in real memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(value, Tensor) and value.device.type != "meta":
                self.most = max(self.most, value.numel())
        return result


@contextmanager
def nothing_allocated() -> Iterator[None]:
    with Allocations() as mode:
        yield
    assert mode.most <= 1


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_model_is_counted_without_memory_and_left_alone(device: str) -> None:
    with torch.device(device):
        model = Residual()
    model.eval()
    before = {name: id(p) for name, p in model.named_parameters()}
    sample = torch.empty(4, 3, 12, 12, device="meta")
    with nothing_allocated():
        cost = estimate(model, sample_input=sample, block_size=16)
        suggest(model, 0.1, model_flops=cost.model_flops, block_sizes=[16, 8], intervals=[1, 10])
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    names = [row.plan.name for row in cost.rows]
    assert "two.weight" not in names
    assert not any(name.startswith("frozen") for name in names)
    real = Residual()
    with FlopCounterMode(display=False) as counter:
        real(torch.randn(4, 3, 12, 12))["logits"].sum().backward()
    assert cost.model_flops == counter.get_total_flops()


def test_the_model_s_passes_count_attention_and_recurrence_as_products() -> None:
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    tokens, width, hidden = 2 * 5, 16, 32
    linear = 2 * tokens * (4 * width**2 + 2 * width * hidden)
    scores = 2 * 2 * 2 * 2 * 5 * 5 * 8
    assert model_flops(attention, torch.empty(2, 5, 16, requires_grad=True)) == 3 * (linear + scores)
    forward = 2 * 10 * 4 * 32 * (16 + 32)
    free = 2 * 2 * 4 * 32 * 32 + 2 * 10 * 4 * 32 * 16  # the first hidden state and the input need no gradient
    assert model_flops(nn.LSTM(16, 32), torch.empty(5, 2, 16)) == 3 * forward - free


def test_inputs_and_losses_in_every_form() -> None:
    gru = nn.GRUCell(3, 4)
    one, two = torch.empty(7, 3), torch.empty(7, 4)
    by_place = model_flops(gru, (one, two))
    assert by_place == model_flops(gru, {"input": one, "hx": two}) > 0
    assert model_flops(gru, (one, two), loss=lambda y: y.square().mean()) == by_place


class Peeking(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum().item() > 0 else x


def test_a_model_that_reads_values_names_the_operator() -> None:
    with pytest.raises(ModelFlopsError, match=r"item|_local_scalar_dense") as caught:
        estimate(Peeking(3, 3), sample_input=torch.empty(2, 3))
    assert "--model-flops" in str(caught.value)
    with pytest.raises(ModelFlopsError, match="no floating-point tensor"):
        model_flops(nn.Flatten(), torch.empty(2, 3))


def test_the_formula_of_the_overhead() -> None:
    cost = estimate({"w": (64, 48)}, model_flops=1e8, balance=30.0, model_speed=4.0, grafting="sgd")
    sgd = 30 * 8 * 4 * 64 * 48
    expected = (cost.flops_per_step + 30 * cost.bytes_per_step - sgd) / (1e8 / 4 + sgd)
    assert cost.overhead == pytest.approx(expected)
    assert cost.early_overhead is not None
    assert cost.early_overhead > expected
    baselines = {r.name: r.overhead for r in cost.rivals}
    assert baselines["SGD"] == 0
    adam = estimate({"w": (64, 48)}, model_flops=1e8)
    assert {r.name: r.overhead for r in adam.rivals}["AdamW"] == 0
    assert estimate({"w": (64, 48)}).overhead is None
    assert all(r.overhead is None for r in estimate({"w": (64, 48)}).rivals)


def test_on_a_gpu_launches_count_too() -> None:
    shapes = {"w": (640, 480), "v": (300, 20)}
    here, there = (estimate(shapes, model_flops=1e12, gpu=gpu, grafting="sgd") for gpu in (False, True))
    assert (here.block_size, here.launch, here.balance) == ("auto", 0, 20)
    assert (there.block_size, there.launch, there.balance) == (256, 3e6, 120)
    assert estimate(shapes, gpu=True, block_size=64, balance=7.0).to_dict()["block_size"] == 64
    n = there.launches
    assert there.launches_per_step == pytest.approx((4 * n.plain + n.refresh) / 5)
    sgd = 120 * 8 * 4 * (640 * 480 + 300 * 20)
    moved = there.bytes_per_step + 3e6 * there.launches_per_step
    assert there.overhead == pytest.approx((there.flops_per_step + 120 * moved - sgd) / (1e12 + sgd))
    assert there.early_launches_per_step > n.refresh
    assert "a launch counts as 3.00 MB" in str(there)
    assert "a launch counts" not in str(here)
    found = suggest(shapes, 1e-9, model_flops=1e12, gpu=True, grafting="sgd", intervals=[5])
    sizes = {candidate.block_size: candidate.overhead for candidate in found.candidates}
    assert sizes["auto"] == sizes[256] == pytest.approx(there.overhead)
    assert estimate(shapes, cuda_graphs=True, grafting="sgd").state_bytes == here.state_bytes


@pytest.mark.parametrize(("budget", "work"), [(0.001, 1e9), (0.02, 1e10), (0.1, 1e10), (0.1, 1e12)])
def test_a_suggestion_keeps_the_budget_with_the_smallest_interval(budget: float, work: float) -> None:
    shapes = {"w": (300, 500), "v": (200, 64)}
    found = suggest(shapes, budget, model_flops=work, block_sizes=[256, "auto", 64], intervals=[1, 10])
    fits = [c for c in found.candidates if c.overhead <= budget]
    assert found.within == bool(fits)
    if fits:
        assert found.chosen in fits
        assert found.chosen.interval == min(c.interval for c in fits)
    else:
        assert found.chosen.overhead == min(c.overhead for c in found.candidates)
        assert "none of the block sizes" in str(found)
    chosen = found.chosen
    cost = estimate(shapes, model_flops=work, workspace=1e9, block_size=chosen.block_size, interval=chosen.interval)
    assert cost.overhead == pytest.approx(found.chosen.overhead)
    assert cost.state_bytes == found.chosen.state_bytes


def test_the_largest_block_is_preferred_and_auto_where_it_costs_the_same() -> None:
    large = suggest({"w": (128, 2048)}, 0.5, model_flops=1e14, intervals=[1], block_sizes=[1024, "auto", 128])
    assert large.chosen.block_size == 1024
    same = suggest({"w": (128, 128)}, 0.5, model_flops=1e14, intervals=[1], block_sizes=[1024, "auto", 128])
    assert same.chosen.block_size == "auto"


def test_table_and_data_say_the_same() -> None:
    cost = estimate(Residual(), model_flops=1e9)
    text = str(cost)
    for row in cost.rows:
        assert f"{row.plan.state_bytes:,} B" in text
    assert f"{cost.state_bytes:,} B" in text
    assert all(r.name in text for r in cost.rivals)
    short = cost.text(rows=1)
    assert "… and 7 more" in short
    dearest = max(cost.rows, key=lambda row: row.flops_per_step(cost.interval))
    assert dearest.plan.name in short
    data = json.loads(json.dumps(cost.to_dict()))
    assert data["state_bytes"] == cost.state_bytes == sum(row["state_bytes"] for row in data["rows"])
    assert data["flops_per_step"] == pytest.approx(sum(row["flops_per_step"] for row in data["rows"]))
    launches = [count.launches for count in Rehearsal(weights_of(Residual()), checked({})).interval()]
    assert data["launches"] == {"plain": min(launches), "refresh": max(launches), "early": cost.launches.early}
    assert "eigh" in str(estimate({"w": (4, 4)}, method="exact"))


def test_what_may_be_counted() -> None:
    model = Residual()
    by_module = estimate(model)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert estimate(trained).rows == by_module.rows
    assert estimate(iter(trained)).state_bytes == by_module.state_bytes
    names = {row.plan.name for row in estimate(model.state_dict()).rows}
    assert names == {n for n, _ in model.named_parameters()}  # no buffers; tied once; the frozen one is not known
    empty = estimate({"nothing": (0, 3), "scalar": ()})
    assert [row.plan.state_bytes for row in empty.rows] == [0, 12]  # two averages and a count
    assert estimate({"nothing": (0, 3)}).launches.refresh == 0


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "did you mean 'interval'", lambda: estimate({"w": (2, 2)}, intervall=3)),
        (ValueError, "interval must be", lambda: estimate({"w": (2, 2)}, interval=0)),
        (ValueError, "balance must be", lambda: estimate({"w": (2, 2)}, balance=-1.0)),
        (ValueError, "model_speed must be", lambda: estimate({"w": (2, 2)}, model_speed=0.0)),
        (ValueError, "model_flops must be", lambda: estimate({"w": (2, 2)}, model_flops=math.nan)),
        (TypeError, "needs a module", lambda: estimate({"w": (2, 2)}, sample_input=torch.empty(1))),
        (
            TypeError,
            "not both",
            lambda: estimate(nn.Linear(2, 2), sample_input=torch.empty(1, 2), model_flops=1.0),
        ),
        (ValueError, "no parameters", lambda: estimate(nn.ReLU())),
        (ValueError, "no shape yet", lambda: estimate(nn.LazyLinear(3))),
        (TypeError, "expected a module", lambda: estimate(3)),
        (TypeError, "expected a tensor, or a shape", lambda: estimate({"w": "big"})),
        (TypeError, "complex", lambda: estimate({"w": torch.zeros(2, 2, dtype=torch.complex64)})),
        (ValueError, "budget must be", lambda: suggest({"w": (2, 2)}, 0.0, model_flops=1.0)),
        (TypeError, "sample_input or model_flops", lambda: suggest({"w": (2, 2)})),
        (TypeError, "is what is suggested", lambda: suggest({"w": (2, 2)}, model_flops=1.0, interval=2)),
        (ValueError, "at least one", lambda: suggest({"w": (2, 2)}, model_flops=1.0, intervals=[])),
    ],
)
def test_errors_say_what_to_do(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()
