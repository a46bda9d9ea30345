"""Several matrices in one parameter, and the param groups that a model's modules ask for."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jorge import Jorge, param_groups
from jorge.options import Options
from jorge.routing import divided
from jorge.trace import Trace

METHODS = ("whitening", "congruence", "binomial", "exact")


def gradients(p: Tensor, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype)


def apart(p: Tensor, batch_dims: int, splits: int) -> list[nn.Parameter]:
    """The matrices that a parameter holds, as parameters of their own."""
    count, part = divided(tuple(p.shape), batch_dims, splits)
    return [nn.Parameter(each.clone()) for each in p.detach().view(count, *part).unbind(0)]


def both(
    shape: tuple[int, ...], batch_dims: int, splits: int, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """An optimizer of one parameter, one of its matrices, and what each has."""
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(shape).to(dtype))
    parts = apart(whole, batch_dims, splits)
    mine = Jorge([whole], batch_dims=batch_dims, splits=splits, **options)
    return mine, whole, Jorge(parts, **options), parts


def take(optimizers: Any, whole: Tensor, parts: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    grad = gradients(whole, step) * scale
    whole.grad = grad
    for part, each in zip(parts, grad.view(len(parts), *parts[0].shape).unbind(0), strict=True):
        part.grad = each.clone()
    for optimizer in optimizers:
        optimizer.step()


def joined(parts: list[nn.Parameter], whole: Tensor) -> Tensor:
    return torch.stack([part.detach() for part in parts]).view(whole.shape)


class Patches(nn.Module):
    """As timm's vision transformers: what does not decay is said by a method, in names of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed, self.proj = nn.Parameter(torch.zeros(1, 16, 8)), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.zeros(5, 8))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "gone"}


@pytest.mark.parametrize("prefix", ["", "0."])
def test_what_a_model_asks_not_to_decay_does_not(prefix: str) -> None:
    model = nn.Sequential(Patches(), nn.Linear(8, 2)) if prefix else Patches()
    decays = {
        name: group["weight_decay"] for group in param_groups(model, weight_decay=0.1) for name, _ in group["params"]
    }
    assert decays[f"{prefix}pos_embed"] == 0
    assert decays[f"{prefix}table"] == decays[f"{prefix}proj.weight"] == 0.1
    rows = {row.name: row for row in Jorge(param_groups(model, weight_decay=0.1)).plan().rows}
    assert rows[f"{prefix}pos_embed"].kind == "matrix"
    assert rows[f"{prefix}pos_embed"].weight_decay == 0


CASES = [
    ((4, 12, 10), 1, 1),
    ((30, 10), 0, 3),
    ((2, 24, 9), 1, 2),
    ((2, 3, 8, 5), 2, 1),
    ((3, 300, 20), 1, 1),
    ((2, 8, 4, 3, 3), 1, 1),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["adam", "sgd"])
@pytest.mark.parametrize(("shape", "batch_dims", "splits"), CASES, ids=str)
def test_each_is_stepped_as_a_parameter_of_its_own(
    shape: tuple[int, ...], batch_dims: int, splits: int, method: str, grafting: Any
) -> None:
    options = {"method": method, "grafting": grafting, "lr": 0.01, "weight_decay": 0.1, "interval": 3}
    mine, whole, theirs, parts = both(shape, batch_dims, splits, warmup_refreshes=4, **options)
    for step in range(12):
        take((mine, theirs), whole, parts, step, scale=1e3 if step == 6 else 1.0)
    assert torch.equal(whole.detach(), joined(parts, whole))
    for name, tensor in mine.state[whole].items():
        if isinstance(tensor, Tensor):
            own = [theirs.state[part][name] for part in parts]
            assert torch.equal(tensor.flatten(), torch.cat([each.flatten() for each in own])), name


@pytest.mark.parametrize("options", [{"stagger": True}, {"workspace": 1e-9}, {"matmul_precision": "bfloat16"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_so_it_is_with_other_options(options: dict[str, Any], dtype: torch.dtype) -> None:
    mine, whole, theirs, parts = both((4, 12, 10), 1, 1, dtype, lr=0.01, **options)
    for step in range(30):
        take((mine, theirs), whole, parts, step)
    torch.testing.assert_close(whole.detach(), joined(parts, whole))


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 2),
    st.sampled_from([1, 3]),
)
def test_any_shape_is_cut_or_refused(sizes: tuple[int, ...], batch_dims: int, splits: int) -> None:
    shape = (*sizes[:2], sizes[2], sizes[3])
    rows = shape[batch_dims]
    if rows % splits and sum(size > 1 for size in shape[batch_dims:]) > 1:
        with pytest.raises(ValueError, match="equal parts"):
            both(shape, batch_dims, splits, lr=0.01)
        return
    mine, whole, theirs, parts = both(shape, batch_dims, splits, lr=0.01)
    for step in range(3):
        take((mine, theirs), whole, parts, step)
    torch.testing.assert_close(whole.detach(), joined(parts, whole))
    (row,) = mine.plan().rows
    held = sum(t.numel() * t.itemsize for t in mine.state[whole].values() if isinstance(t, Tensor))
    assert row.state_bytes == held


def test_a_run_goes_on_from_its_state_to_the_bit() -> None:
    def run(stop: int | None) -> Tensor:
        mine, whole, theirs, parts = both((3, 12, 10), 1, 1, lr=0.01, interval=3)
        for step in range(25):
            if step == stop:
                file = io.BytesIO()
                torch.save(mine.state_dict(), file)
                file.seek(0)
                mine = Jorge([whole], batch_dims=1, lr=0.01, interval=3)
                mine.load_state_dict(torch.load(file, weights_only=True))
            take((mine, theirs), whole, parts, step)
        assert mine.state[whole]["row_var"].shape == (3, 12)
        assert mine.state[whole]["adam_step"].shape == (3,)
        return torch.clone(whole.detach())

    whole = run(None)
    assert all(torch.equal(run(stop), whole) for stop in (1, 2, 12, 13))


def test_one_without_a_gradient_keeps_its_state() -> None:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 6, 5)) for _ in range(3)]
    optimizer = Jorge(params, batch_dims=1, lr=0.01)
    for step in range(4):
        for p in params:
            p.grad = gradients(p, step)
        optimizer.step()
    params[1].grad = None
    before, weights = copy.deepcopy(optimizer.state_dict()["state"][1]), params[1].detach().clone()
    optimizer.step()
    after = optimizer.state_dict()["state"][1]
    assert torch.equal(params[1].detach(), weights)
    assert all(torch.equal(v, after[k]) if isinstance(v, Tensor) else v == after[k] for k, v in before.items())


def test_a_trace_names_the_parameter_of_each_matrix() -> None:
    mine, whole, theirs, parts = both((3, 12, 10), 1, 1, lr=0.01)
    mine.trace = Trace()
    take((mine, theirs), whole, parts, 0)
    (seen,) = mine.trace.steps
    assert len(seen.params) == len(seen.lengths) == 3
    assert all(p is whole for p in seen.params)
    assert [mine.trace.refreshes[0].row(whole, 0, block) for block in range(3)] == [0, 1, 2]


def test_the_plan_says_how_many() -> None:
    optimizer = Jorge([("up", nn.Parameter(torch.zeros(8, 64, 32)))], batch_dims=1)
    (row,) = optimizer.plan().rows
    assert row.blocks == ((8, 64, 32),)
    assert row.why == "8 matrices, each whole"


def test_what_cannot_be_cut_is_refused_by_name() -> None:
    bias, odd = ("bias", nn.Parameter(torch.zeros(7))), ("qkv", nn.Parameter(torch.zeros(7, 4)))
    Jorge([bias], splits=3)
    with pytest.raises(ValueError, match=r"'qkv' .*splits=3 does not cut 7 rows"):
        Jorge([bias, odd], splits=3)
    wrong: list[dict[str, Any]] = [{"splits": 0}, {"splits": 1.5}, {"batch_dims": -1}, {"batch_dims": None}]
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            Jorge([bias], **options)


def test_changed_after_the_first_step_it_is_refused() -> None:
    mine, whole, theirs, parts = both((3, 12, 10), 1, 1, lr=0.01)
    take((mine, theirs), whole, parts, 0)
    mine.param_groups[0]["batch_dims"] = 0
    with pytest.raises(RuntimeError, match="batch_dims of param group 0 changed"):
        mine.step()


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 16, 32) / 4)
        self.down = nn.Parameter(torch.randn(4, 32, 16) / 4)
        self.bias = nn.Parameter(torch.zeros(4, 16))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(torch.bmm(torch.relu(torch.bmm(self.norm(x), self.up)), self.down), self.bias.unsqueeze(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.Wqkv = nn.Linear(16, 40)  # grouped queries: the parts differ
        self.conv = nn.Conv1d(16, 16, 3)
        self.lstm = nn.LSTM(16, 8, proj_size=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.place = nn.Parameter(torch.zeros(1, 9, 16))
        self.tied = nn.Linear(16, 48)
        self.tied.weight = self.qkv.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: group for group in groups for name, _ in group["params"]}


def test_modules_say_what_their_parameters_are() -> None:
    groups = param_groups(Experts(), weight_decay=0.1, lr=0.01)
    found = by_name(groups)
    assert {name for name, group in found.items() if group.get("batch_dims") == 1} == {"up", "down", "bias"}
    undecayed = {name for name, group in found.items() if group["weight_decay"] == 0}
    assert undecayed == {"bias", "norm.weight", "norm.bias"}
    assert all(group["lr"] == 0.01 for group in groups)

    found = by_name(param_groups(Attention(), weight_decay=0.1))
    splits = {name: group["splits"] for name, group in found.items() if "splits" in group}
    assert splits == {"qkv.weight": 3, "lstm.weight_ih_l0": 4, "lstm.weight_hh_l0": 4}
    assert not any(name.startswith(("frozen", "tied.weight")) for name in found)
    assert not any("batch_dims" in group for group in found.values())
    named = [name for name, p in Attention().named_parameters() if p.requires_grad]
    assert sorted(found) == sorted(named)


def test_vectors_of_any_shape_do_not_decay() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.gamma = nn.Parameter(torch.ones(1, 8, 1, 1))
            self.place = nn.Parameter(torch.zeros(1, 9, 16))
            self.w1, self.b1 = nn.Parameter(torch.zeros(4, 6, 8)), nn.Parameter(torch.zeros(4, 8))
            self.gate = nn.Parameter(torch.zeros(4, 6))

    found = by_name(param_groups(Own(), weight_decay=0.1))
    assert {name for name, group in found.items() if group["weight_decay"] == 0} == {"token", "gamma", "b1"}
    assert {name for name, group in found.items() if group.get("batch_dims")} == {"w1", "b1"}


def test_subclasses_of_recurrent_layers_have_gates_too() -> None:
    class Own(nn.GRU): ...

    assert {group.get("splits") for group in param_groups(Own(4, 8))} == {3, None}


def test_what_the_caller_says_of_vocabularies_goes_first() -> None:
    (group,) = param_groups(nn.Embedding(9000, 4), max_dim=100)
    assert group["max_dim"] == 100


def test_vocabularies_are_diagonal() -> None:
    model = nn.ModuleDict(
        {
            "token": nn.Embedding(9000, 8),
            "place": nn.Embedding(64, 8),
            "mlp": nn.Linear(8, 9001),
            "head": nn.Linear(8, 9000),
        }
    )
    found = by_name(param_groups(model))
    assert {name for name, group in found.items() if group.get("max_dim") == 8192} == {"token.weight", "head.weight"}
    rows = {row.name: row for row in Jorge(param_groups(model)).plan().rows}
    assert [rows[f"{name}.weight"].left for name in model] == ["diagonal", "full", "full", "diagonal"]


def test_without_a_decay_the_optimizers_own_holds() -> None:
    optimizer = Jorge(param_groups(Experts()), lr=0.01, weight_decay=0.3)
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert decays["up"] == 0.3
    assert decays["norm.weight"] == 0


def test_adamw_takes_the_groups_and_the_transfer_keeps_them() -> None:
    torch.manual_seed(0)
    model = Experts()
    optimizer, _ = Jorge.from_adamw(torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.01))
    assert [group["batch_dims"] for group in optimizer.param_groups] == [1, 1, 0]
    x = torch.randn(4, 8, 16)
    losses = []
    for _ in range(30):
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(TypeError, match="takes a module"):
        param_groups(nn.Linear(2, 2).parameters())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every layer frozen"):
        param_groups(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_it_is_the_same() -> None:
    mine, whole, theirs, parts = both((3, 12, 10), 1, 1, lr=0.01, compile_step=True)
    for step in range(3):
        take((mine, theirs), whole, parts, step)
    torch.testing.assert_close(whole.detach(), joined(parts, whole))
    assert Options.of(mine.param_groups[0]).batch_dims == 1
