"""Whose state a checkpoint holds, and what of it is refused: by name, before anything has changed."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge

Saved = dict[str, Any]
Change = Callable[[Saved], Any]


def make(*groups: str, prefix: str = "", **options: Any) -> Jorge:
    """Groups of square weights with letters for names, all alike in shape."""
    listed: list[dict[str, Any]] = [
        {"params": [(prefix + name, nn.Parameter(torch.eye(4))) for name in group]} for group in groups
    ]
    for index, group in enumerate(listed):
        group["weight_decay"] = 0.25 * (index + 1)
    return Jorge(listed, **options)


def named(optimizer: Jorge) -> dict[str, Tensor]:
    return {
        name.rpartition(".")[2]: p
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }


def stepped(optimizer: Jorge, steps: int = 2) -> Jorge:
    """Each parameter by a gradient that its letter gives, so that a state says whose it is."""
    for _ in range(steps):
        for name, p in named(optimizer).items():
            p.grad = torch.full((4, 4), float(ord(name)))
        optimizer.step()
    return optimizer


def whose(optimizer: Jorge) -> dict[str, str]:
    """For each name, whose state it has."""
    mean = (1 - 0.9**2) * 1.0
    return {name: chr(round(float(optimizer.state[p]["exp_avg"][0, 0]) / mean)) for name, p in named(optimizer).items()}


@pytest.mark.parametrize(
    ("groups", "decays"),
    [
        (("ac", "b"), [0.25, 0.5]),  # across groups: options by place
        (("c", "ab"), [0.5, 0.25]),  # whole groups: options go along
        (("a", "bc"), [0.25, 0.5]),
        (("cb", "a"), [0.25, 0.5]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_names_decide_over_all_groups(groups: tuple[str, str], decays: list[float], prefix: str) -> None:
    saved = stepped(make("ab", "c", prefix=prefix)).state_dict()
    optimizer = make(*groups)
    names = [list(group["param_names"]) for group in optimizer.param_groups]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(saved)
    assert whose(optimizer) == {"a": "a", "b": "b", "c": "c"}
    assert [group["param_names"] for group in optimizer.param_groups] == names == [list(group) for group in groups]
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays
    assert [row.name for row in optimizer.plan().rows] == list("".join(groups))


def test_names_that_a_wrapper_put_between_are_the_same() -> None:
    theirs = [("net._orig_mod.a", nn.Parameter(torch.eye(4))), ("net._orig_mod.b", nn.Parameter(torch.eye(4)))]
    saved = stepped(Jorge(theirs)).state_dict()
    optimizer = Jorge([("net.b", nn.Parameter(torch.eye(4))), ("net.a", nn.Parameter(torch.eye(4)))])
    optimizer.load_state_dict(saved)
    assert whose(optimizer) == {"a": "a", "b": "b"}
    assert optimizer.param_groups[0]["param_names"] == ["net.b", "net.a"]


def test_other_names_go_by_the_order_with_a_warning_and_stay() -> None:
    saved = stepped(make("ab", "c")).state_dict()
    optimizer = make("ba", "x")
    with pytest.warns(UserWarning, match=r"other names than this optimizer's \(c\): the order") as seen:
        optimizer.load_state_dict(saved)
    assert [w.filename for w in seen] == [__file__]
    assert whose(optimizer) == {"b": "a", "a": "b", "x": "c"}
    assert [group["param_names"] for group in optimizer.param_groups] == [["b", "a"], ["x"]]


def test_where_only_one_side_has_names_the_order_decides_as_in_torch() -> None:
    saved = stepped(make("ab", "c")).state_dict()
    bare = Jorge([{"params": [nn.Parameter(torch.eye(4)) for _ in range(count)]} for count in (2, 1)])
    bare.load_state_dict(saved)
    assert whose(bare) == {"a": "a", "b": "b", "c": "c"}  # the names are taken over, as torch does
    for group in saved["param_groups"]:
        del group["param_names"]
    optimizer = make("ba", "c")
    optimizer.load_state_dict(saved)
    assert whose(optimizer) == {"b": "a", "a": "b", "c": "c"}


def test_a_named_group_that_parameters_were_appended_to_loads_its_own_state() -> None:
    optimizer = make("ab")
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.eye(4)))
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.eye(4)
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    with pytest.warns(UserWarning, match="or some none"):
        make("abc").load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"block_size": 2}, "block_size=2 (was 'auto')"),
        ({"method": "exact"}, "method='exact' (was 'whitening')"),
        ({"grafting": "sgd"}, "grafting='sgd' (was 'adam')"),
        ({"preconditioner_dtype": torch.bfloat16}, "preconditioner_dtype=torch.bfloat16 (was None)"),
        ({"lr": 0.5, "interval": 3, "damping": 0.0}, None),
    ],
)
def test_options_that_shape_the_state_are_the_checkpoints_with_one_warning(options: Any, says: str | None) -> None:
    saved = stepped(make("ab", "c", **options)).state_dict()
    optimizer = make("ab", "c")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer.load_state_dict(saved)
    assert len(seen) == (says is not None)
    if says is not None:
        assert says in str(seen[0].message)
        assert str(seen[0].message).count("(was") == 1  # once, though two groups have it
    name, value = next(iter(options.items()))
    assert [group[name] for group in optimizer.param_groups] == [value, value]
    stepped(optimizer)


GROUPS: list[tuple[str, Change, str]] = [
    ("None", lambda s: s["param_groups"].__setitem__(0, None), "saved param group 0 is a NoneType, expected a dict"),
    ("list", lambda s: s["param_groups"].__setitem__(1, [1]), "saved param group 1 is a list, expected a dict"),
    ("no params", lambda s: s["param_groups"][0].pop("params"), "group 0: params must be a list of the states' keys"),
    ("params None", lambda s: s["param_groups"][0].update(params=None), "group 0: params must be a list"),
    ("params 3", lambda s: s["param_groups"][1].update(params=3), "group 1: params must be a list"),
    ("params of lists", lambda s: s["param_groups"][1].update(params=[[2]]), "group 1: params must be a list"),
    ("a key twice", lambda s: s["param_groups"][1].update(params=[0]), "group 1: params has a key twice"),
    ("names 3", lambda s: s["param_groups"][0].update(param_names=3), "group 0: param_names must be a list of at most"),
    ("names of lists", lambda s: s["param_groups"][0].update(param_names=[["a"], "b"]), "group 0: param_names must be"),
    ("names word", lambda s: s["param_groups"][0].update(param_names="ab"), "group 0: param_names must be"),
    ("many names", lambda s: s["param_groups"][0].update(param_names=["a", "b", "d"]), "group 0: param_names must be"),
    ("no groups", lambda s: s["param_groups"].clear(), "has 0 param groups, this optimizer 2"),
    ("no version", lambda s: s["param_groups"][0].pop("state_version"), "param group 0 has no state_version"),
    ("lr meta", lambda s: s["param_groups"][0].update(lr=torch.ones((), device="meta")), "group 0: lr is on the meta"),
    ("bad option", lambda s: s["param_groups"][1].update(interval=-1), "saved param group 1: interval must be"),
]


def entry(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda saved: change(saved["state"][1])


def put(key: str, change: Callable[[Tensor], Any]) -> Change:
    return entry(lambda e: e.__setitem__(key, change(e[key])))


def poisoned(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


ENTRIES: list[tuple[str, Change, str]] = [
    ("None", lambda s: s["state"].__setitem__(1, None), "the saved state of b is a NoneType, expected a dict"),
    ("number", lambda s: s["state"].__setitem__(1, 0), "the saved state of b is a int, expected a dict"),
    ("empty list", lambda s: s["state"].__setitem__(1, []), "the saved state of b is a list, expected a dict"),
    ("root meta", put("left.0", lambda t: t.to("meta")), "left.0 of b is on the meta device"),
    ("own key meta", entry(lambda e: e.update(mine=torch.ones(2, device="meta"))), "mine of b is on the meta device"),
    ("root bool", put("left.0", lambda t: t > 0), "the saved left.0 of b is of torch.bool, expected"),
    ("root int", put("right.0", lambda t: t.long()), "the saved right.0 of b is of torch.int64, expected"),
    ("root missing", entry(lambda e: e.pop("left.0")), "the saved state of b does not fit: left.0 is missing"),
    ("step", entry(lambda e: e.update(step=-3)), "step of b in optimizer.state must be a whole number"),
]
ENTRIES += [
    (f"{key} {value}", put(key, poisoned(value)), f"the saved {key} of b is not finite")
    for key in ("left.0", "exp_avg", "exp_avg_sq", "row_var", "refreshes.0")
    for value in (float("nan"), float("inf"))
]
ENTRIES += [
    (f"{key} negative", put(key, poisoned(-1.0)), f"the saved {key} of b is negative")
    for key in ("exp_avg_sq", "adam_step", "row_var", "refreshes.0", "quartics.0")
]


@pytest.mark.parametrize(
    ("change", "says"), [case[1:] for case in GROUPS + ENTRIES], ids=[c[0] for c in GROUPS + ENTRIES]
)
@pytest.mark.parametrize("used", [True, False])
def test_what_is_no_checkpoint_is_one_error_with_a_name_and_changes_nothing(
    change: Change, says: str, used: bool
) -> None:
    saved = copy.deepcopy(stepped(make("ab", "c")).state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    change(saved)
    optimizer = make("ab", "c")
    if used:
        stepped(optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(says)):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for old, new in zip(before["state"].values(), after["state"].values(), strict=True):
        assert all(torch.equal(v, new[k]) if isinstance(v, Tensor) else v == new[k] for k, v in old.items())
    stepped(optimizer)


@pytest.mark.parametrize("change", [lambda s: s.pop(1), lambda s: s.__setitem__(1, {})], ids=["gone", "empty"])
def test_a_parameter_without_an_entry_starts_anew(change: Callable[[dict[int, Any]], Any]) -> None:
    """So is one saved that never had a gradient, or whose entry was cleared: it is no fault of the file."""
    never, cleared = make("ab", "c"), stepped(make("ab", "c"))
    for name in "ac":
        named(never)[name].grad = torch.eye(4)
    never.step()
    assert 1 not in never.state_dict()["state"]
    cleared.state[named(cleared)["b"]].clear()
    assert cleared.state_dict()["state"][1] == {}
    saved = stepped(make("ab", "c")).state_dict()
    change(saved["state"])
    optimizer = stepped(make("ab", "c"), 5)
    optimizer.load_state_dict(saved)
    stepped(optimizer, 1)
    assert {name: optimizer.state[p]["step"] for name, p in named(optimizer).items()} == {"a": 3, "b": 1, "c": 3}


@pytest.mark.parametrize("grafting", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial", "exact"])
@pytest.mark.parametrize("power", [-40, -20, 15, 18])
def test_what_gradients_of_any_size_leave_can_be_loaded(method: Any, grafting: Any, power: int) -> None:
    p = nn.Parameter(torch.ones(6, 4))
    optimizer = Jorge([p], method=method, grafting=grafting)
    for _ in range(6):
        p.grad = torch.randn(6, 4) * 10.0**power
        optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_a_parameter_of_no_group_is_left_out_of_a_checkpoint_with_a_warning_and_keeps_its_state() -> None:
    optimizer = stepped(make("ab", "c"))
    group, p = optimizer.param_groups.pop(1), named(optimizer)["a"]
    kept = optimizer.state[group["params"][0]]
    optimizer.param_groups[0]["params"][0] = other = nn.Parameter(torch.eye(4))
    with pytest.warns(UserWarning, match=r"optimizer.state of 2 parameters that no param group has") as seen:
        saved = optimizer.state_dict()
    assert [warning.filename for warning in seen] == [__file__]
    assert list(saved["state"]) == [1]
    assert optimizer.state[group["params"][0]] is kept
    assert p in optimizer.state
    optimizer.param_groups[0]["params"][0] = p
    optimizer.param_groups.append(group)
    assert other not in optimizer.state
    stepped(optimizer, 1)
    assert [optimizer.state[q]["step"] for q in named(optimizer).values()] == [3, 3, 3]


def test_a_replaced_parameter_takes_the_state_that_is_moved_to_it() -> None:
    optimizer, straight = stepped(make("ab")), stepped(make("ab"), 4)
    old = named(optimizer)["a"]
    optimizer.param_groups[0]["params"][0] = new = nn.Parameter(old.detach().clone())
    optimizer.state[new] = optimizer.state.pop(old)
    optimizer.load_state_dict(optimizer.state_dict())
    stepped(optimizer, 2)
    assert all(torch.equal(named(optimizer)[name], p) for name, p in named(straight).items())


def test_a_name_that_two_parameters_share_decides_nothing() -> None:
    def made(first: str) -> Jorge:
        params = [nn.Parameter(torch.eye(4)) for _ in range(3)]
        return Jorge([{"params": list(zip(first, params[:2], strict=True))}, {"params": [("a", params[2])]}])

    saved = made("ab")
    for i, p in enumerate(p for group in saved.param_groups for p in group["params"]):
        p.grad = torch.full((4, 4), 1.0 + i)
    saved.step()
    optimizer = made("ba")
    with pytest.warns(UserWarning, match="the order alone says which state is whose"):
        optimizer.load_state_dict(saved.state_dict())
    own = [p for group in optimizer.param_groups for p in group["params"]]
    assert [round(10 * float(optimizer.state[p]["exp_avg"][0, 0])) for p in own] == [1, 2, 3]
