"""`optimizer.state[p]` is the state: what is done to it is respected or refused aloud, and nothing is lost.

Each change is looked at three ways: training that goes on, the same through a checkpoint, and a cold start.
"""

import copy
import gc
import re
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from jorge import Jorge, arrange, grafting, methods
from jorge.cost.counter import Meter
from jorge.methods import State

SHAPES = [(6, 4), (4, 6), (6, 4), (9, 30), (4,), (), (3, 2, 3, 3)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"grafting": "adam", "nesterov": True, "beta2_decay": -0.8},
    {"method": "exact", "preconditioner_dtype": torch.bfloat16},
    {"stagger": True},
]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def build(params: list[nn.Parameter], **options: Any) -> Jorge:
    return Jorge(
        [{"params": params[:3]}, {"params": params[3:]}],
        lr=0.05,
        **{"block_size": 8, "max_dim": 25, "warmup_refreshes": 3, "interval": 2, **options},
    )


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def resumed(optimizer: Jorge, params: list[nn.Parameter], **options: Any) -> tuple[Jorge, list[nn.Parameter]]:
    """A copy by way of a checkpoint."""
    others = [nn.Parameter(p.detach().clone()) for p in params]
    again = build(others, **options)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return again, others


def same(some: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(some, others, strict=True))


def tensors(optimizer: Jorge) -> list[tuple[dict[str, Any], str, Tensor]]:
    return [(e, k, v) for e in optimizer.state.values() for k, v in e.items() if isinstance(v, Tensor)]


def replaced(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    for entry, key, value in tensors(optimizer):
        entry[key] = value.clone()


def some_replaced(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    entry = optimizer.state[params[1]]
    entry["left.0"] = entry["left.0"].clone()


def moved(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    """As frameworks do: to the host and back, in float64 to make it another tensor there."""
    for entry, key, value in tensors(optimizer):
        entry[key] = value.to(torch.float64)


def data_set(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    for _, _, value in tensors(optimizer):
        value.data = value.data.clone()


def data_moved(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    """As some offload: what lies behind the tensors is emptied, and comes back elsewhere."""
    for _, _, value in tensors(optimizer):
        kept = value.data.clone()
        value.data.fill_(torch.nan)
        value.data = kept


def rebuilt(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    """As Lightning does: each entry becomes another mapping."""
    for p, entry in optimizer.state.items():
        optimizer.state[p] = OrderedDict((k, v.clone() if isinstance(v, Tensor) else v) for k, v in entry.items())


def state_replaced(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    optimizer.state = defaultdict(dict, {p: dict(entry) for p, entry in optimizer.state.items()})


def own_keys(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    for p in params:
        optimizer.state[p]["tag"] = 7
        optimizer.state[p]["average"] = torch.ones(2)


def regrouped(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    """The same parameters and options, in the groups the other way round and back."""
    optimizer.param_groups.reverse()
    optimizer.param_groups.reverse()
    optimizer.param_groups[0]["params"] = list(optimizer.param_groups[0]["params"])


Change = Callable[[Jorge, list[nn.Parameter]], None]
KEEPING: list[Change] = [
    replaced,
    some_replaced,
    moved,
    data_set,
    data_moved,
    rebuilt,
    state_replaced,
    own_keys,
    regrouped,
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("change", KEEPING, ids=lambda change: change.__name__)
def test_what_keeps_the_values_keeps_the_training(change: Change, options: dict[str, Any]) -> None:
    ends = {}
    for name in ("undisturbed", "changed", "resumed", "cold"):
        params = parameters()
        optimizer = build(params, **options)
        train(optimizer, params, 9, seed=2)
        if name in ("changed", "resumed"):
            change(optimizer, params)
        train(optimizer, params, 4, seed=4)  # what is saved is what these have made of it
        if name == "resumed":
            optimizer, params = resumed(optimizer, params, **options)
        if name == "cold":
            optimizer = build(params, **options)
        train(optimizer, params, 9, seed=3)
        ends[name] = params
        assert all(optimizer.state[p]["step"] == (9 if name == "cold" else 22) for p in params)
    assert same(ends["changed"], ends["undisturbed"])
    assert same(ends["resumed"], ends["undisturbed"])
    assert not same(ends["cold"], ends["undisturbed"])


def cleared(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    optimizer.state.clear()


def entries_cleared(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    for p in params:
        optimizer.state[p].clear()


def entries_deleted(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    for p in params:
        del optimizer.state[p]


def state_new(optimizer: Jorge, params: list[nn.Parameter]) -> None:
    optimizer.state = defaultdict(dict)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("change", [cleared, entries_cleared, entries_deleted, state_new], ids=lambda c: c.__name__)
def test_what_clears_the_state_is_a_cold_start(change: Change, options: dict[str, Any]) -> None:
    ends = {}
    for name in ("undisturbed", "changed", "resumed", "cold"):
        params = parameters()
        optimizer = build(params, **options)
        train(optimizer, params, 9, seed=2)
        if name in ("changed", "resumed"):
            change(optimizer, params)
        if name == "resumed":
            optimizer, params = resumed(optimizer, params, **options)
        if name == "cold":
            optimizer = build(params, **options)
        train(optimizer, params, 9, seed=3)
        ends[name] = params
    assert same(ends["changed"], ends["cold"])
    assert same(ends["resumed"], ends["cold"])
    assert not same(ends["cold"], ends["undisturbed"])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_entry_that_is_cleared_starts_anew_and_the_others_go_on(options: dict[str, Any]) -> None:
    """As if the parameter were trained alone from there on, whichever stack it shares."""
    params = parameters()
    optimizer = build(params, **options)
    train(optimizer, params, 9, seed=2)
    optimizer.state[params[0]].clear()
    optimizer, params = resumed(optimizer, params, **options)
    fresh = nn.Parameter(params[0].detach().clone())
    alone = build([fresh, *parameters()[1:]], **options)
    train(optimizer, params, 5, seed=3)
    train(alone, [fresh, *alone.param_groups[0]["params"][1:], *alone.param_groups[1]["params"]], 5, seed=3)
    assert [optimizer.state[p]["step"] for p in params[:2]] == [5, 14]
    assert torch.allclose(params[0], fresh, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_the_callers_is_there_before_the_first_step_and_kept(options: dict[str, Any]) -> None:
    params, plain = parameters(), parameters()
    optimizer, other = build(params, **options), build(plain, **options)
    own_keys(optimizer, params)
    optimizer.state["tokens"] = 12  # type: ignore[index]  # not a parameter's
    train(optimizer, params, 5, seed=2)
    train(other, plain, 5, seed=2)
    assert same(params, plain)
    again, params = resumed(optimizer, params, **options)
    for each in (optimizer, again):
        assert each.state["tokens"] == 12  # type: ignore[index]
        for entry in (e for p, e in each.state.items() if isinstance(p, Tensor)):
            assert entry["tag"] == 7
            assert torch.equal(entry["average"], torch.ones(2))
    assert copy.deepcopy(optimizer).state.keys() >= {"tokens"}


@pytest.mark.parametrize("number", [0, 4, 500])
def test_a_step_that_is_set_by_hand_is_the_step(number: int) -> None:
    """What is read there is what the schedule goes by, and it counts on from there."""
    ends = {}
    for name in ("undisturbed", "changed", "resumed"):
        params = parameters()
        optimizer = build(params)
        train(optimizer, params, 9, seed=2)
        if name != "undisturbed":
            for p in params:
                optimizer.state[p]["step"] = number
        if name == "resumed":
            optimizer, params = resumed(optimizer, params)
        train(optimizer, params, 1, seed=3)
        assert all(optimizer.state[p]["step"] == (10 if name == "undisturbed" else number + 1) for p in params)
        train(optimizer, params, 7, seed=4)
        ends[name] = params
    assert same(ends["changed"], ends["resumed"])
    assert not same(ends["changed"], ends["undisturbed"])
    counts = [float(optimizer.state[params[0]]["refreshes.0"])]
    for before in (500, 501):  # after three at each step, refreshes are at every second: 5, 7, …, 501, 503
        optimizer.state[params[0]]["step"] = before
        train(optimizer, params, 1, seed=5)
        counts.append(float(optimizer.state[params[0]]["refreshes.0"]))
    assert counts == [counts[0], counts[0] + 1, counts[0] + 1]


def test_what_is_changed_in_place_is_used() -> None:
    params, plain = parameters(), parameters()
    optimizer, other = build(params), build(plain)
    train(optimizer, params, 3, seed=2)
    train(other, plain, 3, seed=2)
    optimizer.state[params[3]]["exp_avg"].mul_(-1)
    train(optimizer, params, 1, seed=3)
    train(other, plain, 1, seed=3)
    assert [torch.equal(p, q) for p, q in zip(params, plain, strict=True)] == [i != 3 for i in range(len(params))]


def test_what_is_replaced_is_freed_and_what_is_read_is_used() -> None:
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 3, seed=2)
    storages = [weakref.ref(value._base) for _, _, value in tensors(optimizer) if value._base is not None]
    assert len(storages) > 20
    replaced(optimizer, params)
    gc.collect()
    assert not any(ref() is not None for ref in storages)
    before = optimizer.state[params[0]]["exp_avg"]
    train(optimizer, params, 1, seed=3)
    after = optimizer.state[params[0]]["exp_avg"]
    assert after is not before
    kept = after.clone()
    train(optimizer, params, 1, seed=3)
    assert not torch.equal(kept, after)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e.pop("left.0"), r"optimizer.state of w0 lacks left.0: put"),
        (
            lambda e: e.update({"left.0": torch.eye(3)}),
            r"left.0 of w0 in optimizer.state is of shape \(3, 3\), expected",
        ),
        (lambda e: e.update({"left.0": None}), "left.0 of w0 in optimizer.state is a NoneType"),
        (lambda e: e.update({"exp_avg": 0.0}), "exp_avg of w0 in optimizer.state is a float"),
        (lambda e: e.pop("step"), "w0 lacks step"),
        (lambda e: e.update({"left.0": e["left.0"].to_sparse()}), "left.0 of w0 in optimizer.state is of layout"),
        (lambda e: e.update({"left.0": e["left.0"].to(torch.complex64)}), "left.0 of w0 in optimizer.state is complex"),
        (lambda e: e.update({"left.9": 1}), "optimizer.state of w0 holds left.9, which is not of its layout"),
        (lambda e: e.update(step=-3), "step of w0 in optimizer.state must be a whole number of at least 0, got -3"),
        (lambda e: e.update(step="7"), "step of w0 in optimizer.state must be"),
        (lambda e: e.update(step=float("nan")), "step of w0 in optimizer.state must be"),
        (lambda e: e.update(step=None), "step of w0 in optimizer.state must be"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_changes_nothing(change: Any, says: str) -> None:
    params = parameters()
    optimizer = Jorge([(f"w{i}", p) for i, p in enumerate(params)], lr=0.05)
    train(optimizer, params, 3, seed=2)
    kept = copy.deepcopy(optimizer.state_dict())
    entry = optimizer.state[params[0]]
    good = dict(entry)
    change(entry)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=says):
        train(optimizer, params, 1, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    entry.clear()
    entry.update(good)
    for old, new in zip(kept["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(v, new[k]) if isinstance(v, Tensor) else v == new[k] for k, v in old.items())
    train(optimizer, params, 1, seed=3)


def test_the_only_tensor_of_a_vector_is_missed() -> None:
    params = parameters()
    optimizer = Jorge([(f"w{i}", p) for i, p in enumerate(params)], lr=0.05, grafting="sgd")
    train(optimizer, params, 3, seed=2)
    del optimizer.state[params[4]]["momentum_buffer"]
    with pytest.raises(RuntimeError, match=r"optimizer.state of w4 lacks momentum_buffer"):
        train(optimizer, params, 1, seed=3)
    optimizer.state[params[4]].clear()
    train(optimizer, params, 1, seed=3)
    assert [optimizer.state[p]["step"] for p in params[3:5]] == [4, 1]


def test_a_step_before_the_first_is_where_the_count_begins() -> None:
    params = parameters()
    optimizer = build(params)
    optimizer.state[params[0]]["step"] = 500
    train(optimizer, params, 1, seed=2)
    assert [optimizer.state[p]["step"] for p in params[:2]] == [501, 1]


def test_two_parameters_cannot_share_an_entry() -> None:
    params = parameters()
    optimizer = Jorge([(f"w{i}", p) for i, p in enumerate(params)], lr=0.05)
    train(optimizer, params, 1, seed=2)
    optimizer.state[params[2]] = optimizer.state[params[0]]
    with pytest.raises(RuntimeError, match=r"w2 and w0 share one entry of optimizer\.state"):
        train(optimizer, params, 1, seed=3)


@pytest.mark.parametrize(
    "options",
    [{"method": "exact"}, {"block_size": 4}, {"max_dim": 5}, {"preconditioner_dtype": torch.bfloat16}],
    ids=str,
)
def test_a_checkpoint_of_another_layout_is_taken_over_with_its_options(options: dict[str, Any]) -> None:
    ends = []
    for used in (False, True):
        params = parameters()
        saved = build(params, **options)
        train(saved, params, 5, seed=2)
        others = [nn.Parameter(p.detach().clone()) for p in params]
        loaded = build(others)
        if used:  # its own state is of the default layout
            kept = [p.detach().clone() for p in others]
            train(loaded, others, 2, seed=7)
            for p, old in zip(others, kept, strict=True):
                p.data.copy_(old)
        with pytest.warns(UserWarning, match=rf"{next(iter(options))}=.* \(was"):
            loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
        for each, mine in ((saved, params), (loaded, others)):
            train(each, mine, 5, seed=3)
        assert same(params, others)
        ends.append(others)
    assert same(*ends)


@pytest.mark.parametrize("entry", [{"tag": 1}, {"step": 3}, {"step": 3, "average": torch.ones(2)}], ids=str)
def test_a_checkpoint_without_a_state_for_a_parameter_starts_it_anew(entry: dict[str, Any]) -> None:
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 4, seed=2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1] = dict(entry)
    train(optimizer, params, 1, seed=3)
    optimizer.load_state_dict(saved)
    assert set(entry) <= set(optimizer.state[params[1]])
    train(optimizer, params, 1, seed=3)
    assert optimizer.state[params[1]]["step"] == entry.get("step", 0) + 1
    assert optimizer.state[params[0]]["step"] == 5


@pytest.mark.parametrize(
    "entry", [{"left.0": torch.eye(3)}, {"exp_avg": 1}, [1, 2], {"refreshes.0": torch.ones(1)}], ids=str
)
def test_a_checkpoint_that_cannot_be_used_changes_nothing(entry: Any) -> None:
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 4, seed=2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["interval"] = 7
    saved["state"][1] = entry
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="parameter 1 of group 0"):
        optimizer.load_state_dict(saved)
    now = optimizer.state_dict()
    assert now["param_groups"] == before["param_groups"]
    for old, new in zip(before["state"].values(), now["state"].values(), strict=True):
        assert all(torch.equal(v, new[k]) if isinstance(v, Tensor) else v == new[k] for k, v in old.items())


def test_a_rollback_in_a_running_optimizer_is_one() -> None:
    """Into the tensors that are there, with the callers' keys as they were saved."""
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 3, seed=2)
    optimizer.state[params[0]]["tag"] = 1
    train(optimizer, params, 1, seed=5)
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, 3, seed=3)
    optimizer.state[params[0]]["tag"] = 2
    optimizer.state[params[1]]["other"] = 3
    train(optimizer, params, 1, seed=4)
    before = [value for _, _, value in tensors(optimizer)]
    optimizer.load_state_dict(saved)
    for i, p in enumerate(params):
        entry, wanted = optimizer.state[p], saved["state"][i]
        assert set(entry) == set(wanted)
        assert all(torch.equal(v, wanted[k]) if isinstance(v, Tensor) else v == wanted[k] for k, v in entry.items())
    assert all(a is b for a, b in zip(before, (value for _, _, value in tensors(optimizer)), strict=True))


def test_a_parameter_that_is_taken_out_is_worked_on_no_more() -> None:
    """Its gradient, if it has one, costs nothing: the step is that of the others alone."""
    counts = []
    for taken_out in (False, True):
        params = parameters() if taken_out else parameters()[1:]
        optimizer = Jorge(params, lr=0.05)
        train(optimizer, params, 2, seed=2)
        if taken_out:
            del optimizer.param_groups[0]["params"][0]
        train(optimizer, params, 1, seed=3)
        with Meter() as meter:
            optimizer.step()
        counts.append((meter.total, meter.moved_bytes, meter.flops))
    assert counts[0] == counts[1]


def test_a_broken_state_is_refused_before_its_parameter_has_a_gradient() -> None:
    params = parameters()
    optimizer = Jorge([(f"w{i}", p) for i, p in enumerate(params)], lr=0.05, grafting="sgd")
    optimizer.state[params[0]]["momentum_buffer"] = torch.zeros(6, 4)
    for p in params[1:]:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"optimizer.state of w0 lacks"):
        optimizer.step()


def test_loading_takes_the_place_of_what_was_there() -> None:
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 3, seed=2)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][2]
    own_keys(optimizer, params)
    optimizer.state["tokens"] = 12  # type: ignore[index]
    for p in params:
        p.grad = None
    optimizer.load_state_dict(saved)
    assert not any("tag" in entry or "average" in entry for entry in optimizer.state.values())
    assert "tokens" not in optimizer.state
    assert not optimizer.state.get(params[2])
    train(optimizer, params, 1, seed=3)
    assert [optimizer.state[p]["step"] for p in params[:4]] == [4, 4, 1, 4]


def test_groups_and_keys_that_a_checkpoint_has_and_the_optimizer_has_not() -> None:
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 2, seed=2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["left.5"] = torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 does not fit: left\.5"):
        optimizer.load_state_dict(saved)
    del saved["state"][0]["left.5"]
    saved["param_groups"].append(copy.deepcopy(saved["param_groups"][0]))
    with pytest.raises(ValueError, match="has 3 param groups, this optimizer 2"):
        optimizer.load_state_dict(saved)


def test_the_first_step_may_be_in_inference_mode() -> None:
    params, plain = parameters(), parameters()
    optimizer, other = build(params), build(plain)
    with torch.inference_mode():
        train(optimizer, params, 2, seed=2)
    train(other, plain, 2, seed=2)
    train(optimizer, params, 3, seed=3)
    train(other, plain, 3, seed=3)
    assert same(params, plain)


def test_gradients_are_let_go_after_a_step_and_after_one_that_was_refused() -> None:
    params = parameters()
    optimizer = build(params)
    for refused in (False, True):
        train(optimizer, params, 1, seed=2)
        for p in params:
            p.grad = torch.ones_like(p)
        refs = [weakref.ref(p.grad) for p in params if p.grad is not None]
        if refused:
            kept = optimizer.state[params[-1]].pop("exp_avg")
            with pytest.raises(RuntimeError, match="lacks exp_avg"):
                optimizer.step()
            optimizer.state[params[-1]]["exp_avg"] = kept
        else:
            optimizer.step()
        for p in params:
            p.grad = None
        gc.collect()
        assert not any(ref() is not None for ref in refs)


def test_a_key_of_the_callers_that_is_added_later_moves_nothing() -> None:
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 2, seed=2)
    before = [value for _, _, value in tensors(optimizer)]
    optimizer.state[params[0]]["tag"] = 7
    train(optimizer, params, 2, seed=3)
    assert all(a is b for a, b in zip(before, (value for _, _, value in tensors(optimizer)), strict=True))


def test_an_entry_that_is_no_mapping_is_refused() -> None:
    params = parameters()
    optimizer = build(params)
    optimizer.state[params[0]] = [1, 2]
    with pytest.raises(RuntimeError, match=r"optimizer.state of parameter 0 of group 0 is a list"):
        train(optimizer, params, 1, seed=2)


def test_counts_that_frameworks_keep_as_floats_or_tensors_are_taken() -> None:
    params, plain = parameters(), parameters()
    optimizer, other = build(params), build(plain)
    train(optimizer, params, 4, seed=2)
    train(other, plain, 4, seed=2)
    optimizer.state[params[0]]["step"] = torch.tensor(4.0)
    optimizer.state[params[1]]["step"] = 4.0
    train(optimizer, params, 4, seed=3)
    train(other, plain, 4, seed=3)
    assert same(params, plain)
    assert optimizer.state[params[0]]["step"] == 8


def test_a_parameter_of_another_group_keeps_its_state_or_is_refused() -> None:
    params, plain = parameters(), parameters()
    optimizer, other = build(params), build(plain)
    train(optimizer, params, 5, seed=2)
    train(other, plain, 5, seed=2)
    optimizer.param_groups[1]["params"].insert(0, optimizer.param_groups[0]["params"].pop())
    train(optimizer, params, 5, seed=3)
    train(other, plain, 5, seed=3)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(params, plain, strict=True))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "method": "exact"})
    optimizer.param_groups[2]["params"].append(optimizer.param_groups[0]["params"].pop())
    with pytest.raises(
        RuntimeError, match=r"parameter 1 of group 2 has a state that was made with other values of method"
    ):
        train(optimizer, params, 1, seed=4)
    del optimizer.state[params[1]]
    train(optimizer, params, 1, seed=4)
    assert "left_factor.0" in optimizer.state[params[1]]


class UnluckyError(Exception):
    pass


def test_what_an_error_in_the_middle_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier work sets have taken their step; where it happens only preconditioners may have been refreshed."""
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    params, plain = ([nn.Parameter(torch.randn(16, 16) * 0.1) for _ in range(8)] for _ in range(2))
    for p, q in zip(params, plain, strict=True):
        q.data.copy_(p)
    optimizer, other = (Jorge(some, lr=0.05, grafting="sgd") for some in (params, plain))
    train(optimizer, params, 3, seed=2)
    train(other, plain, 4, seed=2)
    before = [p.detach().clone() for p in params]
    kept = [copy.deepcopy(optimizer.state[p]) for p in params]
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
    calls = []
    method = type(methods.METHODS["whitening"])
    refreshed = method.refreshed_together

    def unlucky(*args: Any) -> list[State]:
        calls.append(1)
        if len(calls) == 3:
            raise UnluckyError
        return refreshed(*args)

    monkeypatch.setattr(method, "refreshed_together", unlucky)
    with pytest.raises(UnluckyError):
        optimizer.step()
    counts = [optimizer.state[p]["step"] for p in params]
    assert 0 < counts.count(4) < len(params)
    assert set(counts) == {3, 4}
    for p, q, old, state, count in zip(params, plain, before, kept, counts, strict=True):
        if count == 4:
            assert torch.allclose(p, q, atol=1e-6)
        else:
            assert torch.equal(p, old)
            now = optimizer.state[p]
            assert all(torch.equal(state[k], now[k]) for k in ("momentum_buffer", "graft_length"))
    monkeypatch.undo()
    for p, count in zip(params, counts, strict=True):
        p.grad = None if count == 4 else p.grad
    optimizer.step()  # who has not moved takes the step
    assert all(optimizer.state[p]["step"] == 4 for p in params)


@pytest.mark.parametrize("where", ["norms", "ratios"])
def test_what_an_error_after_the_refreshes_leaves(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight and no step has moved."""
    params = parameters()
    optimizer = build(params, weight_decay=0.1)
    train(optimizer, params, 3, seed=2)
    before = [p.detach().clone() for p in params]

    def unlucky(*_: Any) -> Tensor:
        raise UnluckyError

    with monkeypatch.context() as patched:
        patched.setattr(grafting, where, unlucky)
        with pytest.raises(UnluckyError):
            train(optimizer, params, 1, seed=3)
    moved = [not torch.equal(p, old) for p, old in zip(params, before, strict=True)]
    steps = [optimizer.state[p]["step"] for p in params]
    assert not any(moved[:3])  # the other group's turn did not come
    assert [step == 4 for step in steps] == moved
    train(optimizer, params, 1, seed=4)


def test_an_error_before_anything_is_computed_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = build(params, interval=1)
    train(optimizer, params, 3, seed=2)
    before, kept = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])

    def unlucky(*_: Any) -> list[State]:
        raise UnluckyError

    monkeypatch.setattr(type(methods.METHODS["whitening"]), "refreshed_together", unlucky)
    with pytest.raises(UnluckyError):
        train(optimizer, params, 1, seed=3)
    now = optimizer.state_dict()["state"]
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    for old, new in zip(kept.values(), now.values(), strict=True):
        assert all(torch.equal(v, new[k]) if isinstance(v, Tensor) else v == new[k] for k, v in old.items())


@pytest.mark.filterwarnings("ignore")  # of torch's own
def test_zero_redundancy_optimizer_saves_and_loads() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        ends = {}
        for name in ("undisturbed", "resumed", "cold"):
            params = parameters()
            optimizer = ZeroRedundancyOptimizer(params, optimizer_class=Jorge, lr=0.05)
            train(optimizer, params, 7, seed=2)
            if name != "undisturbed":
                optimizer.consolidate_state_dict(0)
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = ZeroRedundancyOptimizer(params, optimizer_class=Jorge, lr=0.05)
            if name == "resumed":
                optimizer.load_state_dict(saved)
            train(optimizer, params, 7, seed=3)
            ends[name] = params
    finally:
        dist.destroy_process_group()
    assert same(ends["resumed"], ends["undisturbed"])
    assert not same(ends["cold"], ends["undisturbed"])


def test_what_frameworks_keep_in_groups_is_kept_saved_and_loaded() -> None:
    """timm's layer decay, torchtitan's words, schedulers' and others' keys."""
    theirs = {"lr_scale": 0.5, "use_fallback": True, "lr_multiplier": 1.0, "rho": 0.05, "lr_mult": 2, "name": "body"}
    params, others = parameters(), parameters()
    optimizer = Jorge([{"params": params, **theirs}], foreach=True, fused=True)
    optimizer.param_groups[0]["max_momentum"] = 0.95
    train(optimizer, params, 2, seed=2)
    saved = optimizer.state_dict()
    for other in (Jorge([{"params": others}]), Jorge([{"params": others, **theirs}], foreach=False)):
        other.load_state_dict(saved)
        train(other, others, 1, seed=7)
        kept = other.param_groups[0]
        assert theirs.items() <= kept.items()
        assert (kept["foreach"], kept["fused"], kept["max_momentum"]) == (True, True, 0.95)
    assert not optimizer.param_groups[0]["compile_step"]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr_scale": 0.1})
    assert optimizer.param_groups[1]["lr_scale"] == 0.1


@pytest.mark.parametrize("named", [True, False])
def test_names_say_which_state_is_whose(named: bool) -> None:
    shapes = {"a": (4, 6), "b": (4, 6), "c": (5,), "d": (4, 6)}

    def make(*groups: str) -> tuple[dict[str, nn.Parameter], Jorge]:
        params = {name: nn.Parameter(torch.ones(shapes[name])) for group in groups for name in group}
        listed: list[dict[str, Any]] = [
            {"params": [(name, params[name]) if named else params[name] for name in group]} for group in groups
        ]
        for index, group in enumerate(listed):
            group["weight_decay"] = 0.25 * (index + 1)
        return params, Jorge(listed)

    def step(params: dict[str, nn.Parameter], optimizer: Jorge) -> None:
        for name, p in params.items():
            p.grad = torch.full_like(p, ord(name)).add_(torch.eye(*p.shape) if p.dim() > 1 else 0)
        optimizer.step()

    theirs, optimizer = make("abc", "d")
    step(theirs, optimizer)
    saved = optimizer.state_dict()
    mine, other = make("d", "cba") if named else make("bac", "d")
    other.load_state_dict(saved)
    for name, p in mine.items():
        whose = name if named else {"a": "b", "b": "a"}.get(name, name)
        assert torch.equal(other.state[p]["exp_avg"], optimizer.state[theirs[whose]]["exp_avg"])
    if named:
        assert [group["param_names"] for group in other.param_groups] == [["d"], ["c", "b", "a"]]
        assert [group["weight_decay"] for group in other.param_groups] == [0.5, 0.25]  # a group's options come with it
        step(theirs, optimizer)
        step(mine, other)
        assert all(torch.equal(optimizer.state[theirs[n]]["exp_avg"], other.state[mine[n]]["exp_avg"]) for n in shapes)
        shapes["x"] = (7, 7)
        _, third = make("xbc", "d")
        with pytest.raises(ValueError, match=r"does not fit|of shape"):  # other names: by the order, as in torch
            third.load_state_dict(saved)
        assert not third.state


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_advice_after_another_dtype_of_the_model_converts_the_state(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 3)
    optimizer = Jorge(model.named_parameters())
    train(optimizer, list(model.parameters()), 3, seed=2)
    kept = optimizer.state[model.weight]["exp_avg"].clone()
    optimizer.zero_grad()
    model.to(dtype)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"weight is now .*: (optimizer\.load_state_dict\(.*\)\)) converts") as error:
        optimizer.step()
    advice = re.search(r"optimizer\.load_state_dict\(.*?\)\)", str(error.value))
    assert advice is not None
    eval(advice[0])
    assert torch.equal(optimizer.state[model.weight]["exp_avg"].float(), kept)
    optimizer.step()
    assert optimizer.state[model.weight]["step"] == 4


@pytest.mark.parametrize("saved", [{}, {"state": {}}, {"state": [], "param_groups": []}, {"param_groups": []}, None, 3])
def test_what_is_no_state_dict_is_refused(saved: Any) -> None:
    params = parameters()
    optimizer = build(params)
    train(optimizer, params, 2, seed=2)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match=r"no state dict of an optimizer|takes what state_dict"):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i]["exp_avg"], before[i]["exp_avg"]) for i in before if "exp_avg" in before[i])
    assert len(after) == len(before)
