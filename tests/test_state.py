"""The state's contract: its layout, and that it survives saving, loading, copying and pickling."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jorge import Jorge
from jorge.methods import METHODS

SHAPES = [(6, 4), (6, 4), (9, 30), (4,), (), (3, 2, 3, 3)]


def make(dtype: torch.dtype = torch.float32, **options: Any) -> Jorge:
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    return Jorge(params, lr=0.05, **{"block_size": 8, "max_dim": 25, "warmup_refreshes": 3, "interval": 2, **options})


def advance(optimizer: Jorge, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.step()


def weights(optimizer: Jorge) -> list[torch.Tensor]:
    return [p.detach().clone() for p in optimizer.param_groups[0]["params"]]


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CASES = [
    {},
    {"grafting": "sgd"},
    {"method": "exact"},
    {"method": "binomial"},
    {"method": "congruence"},
    {"preconditioner_dtype": torch.bfloat16},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float64, "grafting": "adam"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("steps", [2, 7, 31])  # after 31 refreshes stand for several, and one is damped
def test_training_goes_on_to_the_bit_after_a_reload(case: dict[str, Any], steps: int) -> None:
    first = make(**case)
    advance(first, steps, seed=2)
    second = make(**case)
    for p, w in zip(second.param_groups[0]["params"], weights(first), strict=True):
        p.data.copy_(w)
    second.load_state_dict(through_file(first.state_dict()))
    for a, b in zip(first.state.values(), second.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(x.dtype == b[k].dtype for k, x in a.items() if isinstance(x, torch.Tensor))
    for optimizer in (first, second):
        advance(optimizer, 9, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_loading_keeps_the_addresses() -> None:
    optimizer = make()
    advance(optimizer, 3, seed=2)
    saved = optimizer.state_dict()
    before = [v.data_ptr() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    advance(optimizer, 3, seed=3)
    optimizer.load_state_dict(saved)
    after = [v.data_ptr() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert before == after
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 3


def test_loading_keeps_the_tensor_of_a_learning_rate() -> None:
    p, rate = nn.Parameter(torch.ones(3, 3)), torch.tensor(0.5)
    optimizer = Jorge([p], lr=rate)
    optimizer.load_state_dict(Jorge([nn.Parameter(torch.ones(3, 3))], lr=torch.tensor(0.25)).state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.25


def test_the_saved_state_owns_its_memory() -> None:
    optimizer = make()
    advance(optimizer, 3, seed=2)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    advance(optimizer, 2, seed=3)
    for i, state in saved["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, kept["state"][i][name])
                assert value.untyped_storage().nbytes() == value.nbytes


def test_deepcopy_and_pickle_go_on_alike() -> None:
    first = make()
    advance(first, 4, seed=2)
    copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    assert repr(copies[0]) == repr(first)
    for optimizer in (first, *copies):
        advance(optimizer, 4, seed=3)
    extra = [nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    for optimizer, p in zip(copies, extra, strict=True):
        optimizer.add_param_group({"params": [p]})
        optimizer.load_state_dict(through_file(optimizer.state_dict()))
    for optimizer in copies:
        assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(optimizer), strict=True))
        assert not {id(p) for p in optimizer.state} & {id(p) for p in first.state}


def test_model_and_optimizer_copied_together_stay_together() -> None:
    model = nn.Linear(4, 3)
    optimizer = Jorge(model.named_parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    other, copied = copy.deepcopy((model, optimizer))
    before = other.weight.detach().clone()
    other.weight.grad = torch.ones(3, 4)
    copied.step()
    assert not torch.equal(before, other.weight)


@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_the_layout_is_a_contract(grafting: Any) -> None:
    optimizer = make(grafting=grafting)
    advance(optimizer, 1, seed=2)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["state_version"] == 5
    common = {"step", "momentum_buffer"} if grafting == "sgd" else {"step", "exp_avg", "exp_avg_sq", "adam_step"}
    matrix = common | {"graft_length" if grafting == "sgd" else "schatten_scale"}

    def grids(*names: str, count: int) -> set[str]:
        kept = (*names, *(["quartics"] if grafting == "adam" else []))
        return {f"{name}.{i}" for name in kept for i in range(count)}

    linear = matrix | ({"row_var", "col_var"} if grafting == "adam" else set())
    expected = [
        linear | grids("left", "right", "refreshes", count=1),
        linear | grids("left", "right", "refreshes", count=1),
        linear | grids("left", "right", "right_moment", "refreshes", count=2),
        common,
        common,
        matrix | grids("left", "right", "refreshes", count=2),
    ]
    assert [set(saved["state"][i]) for i in range(6)] == expected
    shapes = {k: tuple(v.shape) for k, v in saved["state"][2].items() if k != "step"}
    assert shapes["left.0"] == (1, 5, 5)
    assert shapes["left.1"] == (1, 4, 4)
    assert shapes["right.0"] == shapes["right_moment.1"] == (1, 30)
    assert shapes["refreshes.0"] == (1,)
    assert shapes["momentum_buffer" if grafting == "sgd" else "exp_avg"] == (9, 30)
    if grafting == "adam":
        assert shapes["row_var"] == (9,)
        assert shapes["col_var"] == (30,)
        assert shapes["quartics.0"] == (1, 2)


def test_equal_blocks_of_a_parameter_lie_in_one_tensor() -> None:
    p = nn.Parameter(torch.randn(8, 22))
    p.grad = torch.randn(8, 22)
    optimizer = Jorge([p], lr=0.1, block_size=8)
    optimizer.step()
    shapes = {k: tuple(v.shape) for k, v in optimizer.state[p].items() if "." in k}
    first = {"left.0": (1, 8, 8), "right.0": (1, 8, 8), "refreshes.0": (1,), "quartics.0": (1, 2)}
    assert shapes == first | {"left.1": (2, 8, 8), "right.1": (2, 7, 7), "refreshes.1": (2,), "quartics.1": (2, 2)}


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), min_size=1, max_size=4),
    st.sampled_from(list(METHODS)),
    st.sampled_from(["sgd", "adam"]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([None, torch.bfloat16, torch.float64]),
    st.one_of(st.integers(1, 12), st.just("auto")),
    st.integers(4, 30),
)
def test_the_plan_is_right_to_the_byte(
    shapes: list[tuple[int, ...]],
    method: Any,
    grafting: Any,
    dtype: torch.dtype,
    stored: torch.dtype | None,
    block_size: Any,
    max_dim: int,
) -> None:
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    optimizer = Jorge(
        params,
        lr=0.1,
        method=method,
        grafting=grafting,
        preconditioner_dtype=stored,
        block_size=block_size,
        max_dim=max_dim,
    )
    plan = optimizer.plan()
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, row in zip(params, plan.rows, strict=True):
        tensors = (
            [v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)] if p in optimizer.state else []
        )
        assert row.state_bytes == sum(t.nbytes for t in tensors)
    assert str(plan).count("\n") == len(shapes) + 2


def test_the_plan_says_rate_decay_and_group() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(4, 3))], "lr": torch.tensor(0.25)}]
    groups += [{"params": [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))], "weight_decay": 0.5}]
    plan = Jorge(groups, lr=0.125).plan()
    assert [(row.group, row.lr, row.weight_decay) for row in plan.rows] == [
        (0, 0.25, 0.01),
        (1, 0.125, 0.5),
        (1, 0.125, 0.5),
    ]
    header, _, first, *_ = str(plan).splitlines()
    for name, value in (("group", "0"), ("lr", "0.25"), ("decay", "0.01")):
        end = header.index(f" {name} ") + len(name) + 1
        assert first[:end].endswith(f" {value}")


def test_the_plan_says_why() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(32, 64, 3), "table": nn.Embedding(40_000, 8)})
    rows = {row.name: row for row in Jorge(model.named_parameters(), lr=0.1).plan().rows}
    assert rows["conv.weight"].why == "read as 64 × 288, cut into 1 × 3 blocks"
    assert rows["conv.bias"].kind == "vector"
    assert rows["table.weight"].left == "diagonal"
    assert "40000 > max_dim 28672" in rows["table.weight"].why


def test_layers_of_large_language_models_are_cut_and_vocabularies_diagonal() -> None:
    """No memory is taken: what is asked are shapes."""

    def sides(*shape: int, **options: Any) -> list[str | None]:
        p = torch.empty(shape, device="meta")
        (row,) = Jorge([p], lr=0.1, **options).plan().rows
        assert options or row.state_bytes < 5.1 * 4 * p.numel()
        return [row.left, row.right]

    for mlp in ((14336, 4096), (4096, 11008), (28672, 8192), (8192, 28672)):
        assert sides(*mlp) == ["full", "full"]
        assert sides(*mlp, block_size=1024) == ["full", "full"]
        assert "diagonal" in sides(*mlp, block_size=None)
        assert "diagonal" in sides(*mlp, max_dim=8192)
    for vocabulary in (30_000, 30_522, 32_000, 50_257, 151_936):
        assert sides(vocabulary, 768) == ["diagonal", "full"]


def test_names_that_two_groups_share_leave_the_order_to_decide() -> None:
    def build() -> tuple[list[nn.Linear], Jorge]:
        torch.manual_seed(0)
        nets = [nn.Linear(4, 3), nn.Linear(4, 3)]
        groups: list[dict[str, Any]] = [
            {"params": list(net.named_parameters()), "lr": lr} for net, lr in zip(nets, (0.1, 0.2), strict=True)
        ]
        return nets, Jorge(groups)

    nets, optimizer = build()
    for net in nets:
        for p in net.parameters():
            p.grad = torch.randn_like(p)
    optimizer.step()
    others, twin = build()
    twin.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in twin.param_groups] == [0.1, 0.2]
    for net, other in zip(nets, others, strict=True):
        mine, theirs = optimizer.state[net.weight], twin.state[other.weight]
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])
