"""Bad input: a typed error that names what was wrong, and nothing lost."""

import copy
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jorge import Jorge
from jorge.options import FIELDS


def weight(*shape: int, **kwargs: Any) -> nn.Parameter:
    return nn.Parameter(torch.randn(*(shape or (4, 4)), **kwargs))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": -0.1}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": torch.tensor([0.1, 0.2])}, "one such element"),
        ({"lr": torch.tensor(1)}, "floating-point tensor"),
        ({"momentum": 1.0}, r"momentum must be None, a number in \[0, 1\)"),
        ({"momentum": -0.1}, "momentum"),
        ({"method": "shampoo"}, "method must be one of 'whitening'"),
        ({"grafting": "rmsprop"}, "grafting"),
        ({"grafting": "adam", "betas": (0.9, 1.0)}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"interval": 0}, "interval must be a whole number of at least 1"),
        ({"interval": 1.5}, "interval"),
        ({"warmup_refreshes": -1}, "warmup_refreshes"),
        ({"block_size": 0}, "block_size"),
        ({"max_dim": 0}, "max_dim"),
        ({"beta2_decay": 0.8}, "beta2_decay"),
        ({"beta2_decay": 0.0}, "beta2_decay"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"preconditioner_beta2": 1.0}, "preconditioner_beta2"),
        ({"damping": -1.0}, "damping"),
        ({"init": "zeros"}, "init"),
        ({"root_eps": 0.0}, "root_eps"),
        ({"preconditioner_dtype": torch.float16}, "preconditioner_dtype"),
        ({"nesterov": 1}, "nesterov"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Jorge([weight()], **{"lr": 0.1, **options})
    optimizer = Jorge([weight()], lr=0.1)
    with pytest.raises(ValueError, match=says):
        optimizer.add_param_group({"params": [weight()], **options})
    assert len(optimizer.param_groups) == 1


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="momentun"):
        Jorge([weight()], lr=0.1, momentun=0.9)  # type: ignore[arg-type]
    for key in ("amsgrad", "dampening", "lr_decay"):
        given: Any = {key: True}
        with pytest.raises(TypeError, match=f"'{key}' is an option of another optimizer that Jorge has no counterpart"):
            Jorge([weight()], **given)
    with pytest.raises(TypeError, match=r"param group 0: unknown option 'intervall'; did you mean 'interval'"):
        Jorge([{"params": [weight()], "intervall": 5}], lr=0.1)
    optimizer = Jorge([weight()])
    for key in ("no_weight_decay", "use_weight_decay", "weight_decay_lr", "eps2", "max_momentum", "lr_scale"):
        optimizer.add_param_group({"params": [weight()], key: 1})
    optimizer.param_groups[0]["weight_deacy"] = 0.1  # too late to refuse: it is in checkpoints
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="differentiable must be False"):
        Jorge([weight()], differentiable=True)
    Jorge([weight()], differentiable=False, foreach=None)


def options_of_torch() -> list[str]:
    """What torch's own optimizers keep in their groups."""
    classes = [c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)]
    found = {name for c in classes for name in inspect.signature(c.__init__).parameters}
    assert len(found) > 30
    return sorted(found - {"self", "params", "args", "kwargs", *FIELDS})


FRAMEWORKS = ["beta", "beta1", "beta2", "lr_scale", "lr_mult", "wd_mult", "no_weight_decay", "use_weight_decay", "eps2"]
FRAMEWORKS += ["weight_decay_lr", "max_momentum", "base_momentum", "initial_lr", "max_lr", "min_lr", "swa_lr", "name"]
FRAMEWORKS += ["use_fallback", "lr_multiplier", "layer_id", "steps", "step_size", "stage", "method_name", "Name", "k"]


@pytest.mark.parametrize("key", [*options_of_torch(), *FRAMEWORKS])
def test_keys_of_other_optimizers_and_of_frameworks_are_kept(key: str) -> None:
    optimizer = Jorge([{"params": [weight()], key: 1}])
    optimizer.add_param_group({"params": [weight()], key: 2})
    assert [group[key] for group in optimizer.param_groups] == [1, 2]


def test_groups_that_sgd_has_had_are_taken() -> None:
    optimizer = Jorge(torch.optim.SGD([weight()], lr=0.1, momentum=0.9).param_groups, grafting="sgd")
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["dampening"]) == (0.1, 0)


NEAR = {"LR": "lr", "Lr": "lr", "lrs": "lr", "learning_rate": "lr", "wd": "weight_decay", "wdecay": "weight_decay"}
NEAR |= {
    "Weight_Decay": "weight_decay",
    "weight_deacy": "weight_decay",
    "weightdecay": "weight_decay",
    "WD": "weight_decay",
}
NEAR |= {"betta": "betas", "Betas": "betas", "momentun": "momentum", "MOMENTUM": "momentum", "intervall": "interval"}
NEAR |= {"weightdecay": "weight_decay", "WD": "weight_decay"}
NEAR |= {"epsilon": "eps", "EPS": "eps", "damp1ng": "damping", "graftin": "grafting", "blocksize": "block_size"}


@pytest.mark.parametrize(("key", "option"), NEAR.items())
def test_near_misses_of_options_are_refused(key: str, option: str) -> None:
    optimizer = Jorge([weight()])
    with pytest.raises(TypeError, match=f"param group 1: unknown option '{key}'; did you mean '{option}'"):
        optimizer.add_param_group({"params": [weight()], key: 1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64, requires_grad=True), "complex"),
        (torch.zeros(3, 3, dtype=torch.int64), "dtype torch.int64"),
        (torch.zeros(3, 3).to_sparse().requires_grad_(), "dense"),
        ("weight", "not a tensor"),
    ],
)
def test_parameters_that_cannot_be_optimized(parameter: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says) as error:
        Jorge([("encoder.weight", weight()), ("encoder.odd", parameter)], lr=0.1)
    assert "encoder.odd" in str(error.value)
    optimizer = Jorge([weight()], lr=0.1)
    with pytest.raises(TypeError, match="parameter 0 of group 1"):
        optimizer.add_param_group({"params": [parameter]})
    assert len(optimizer.param_groups) == 1


def test_nothing_to_optimize_and_duplicates() -> None:
    with pytest.raises(ValueError, match="params is empty"):
        Jorge([], lr=0.1)
    with pytest.raises(ValueError, match="every param group is empty"):
        Jorge([{"params": []}], lr=0.1)
    with pytest.raises(ValueError, match=r"'w' .* is not a leaf"):
        Jorge([("w", weight() * 2)], lr=0.1)
    with pytest.raises(TypeError, match="single tensor"):
        Jorge(weight(), lr=0.1)
    p = weight()
    with pytest.raises(ValueError, match=r"'b' .*appears twice, also as 'a'"):
        Jorge([("a", p), ("b", p)], lr=0.1)
    optimizer = Jorge([p], lr=0.1)
    with pytest.raises(ValueError, match="appears twice, also as an earlier group"):
        optimizer.add_param_group({"params": [p]})
    with pytest.raises(TypeError, match="set"):
        Jorge([{"params": {p}}], lr=0.1)
    with pytest.raises(TypeError, match="the key 'params', got one with 'param', 'lr'"):
        Jorge([{"param": [p], "lr": 0.1}])
    with pytest.raises(TypeError, match="the key 'params', got a list"):
        optimizer.add_param_group([p])  # type: ignore[arg-type]


def snapshot(optimizer: Jorge) -> Any:
    return copy.deepcopy(optimizer.state_dict()), [
        p.detach().clone() for g in optimizer.param_groups for p in g["params"]
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_sparse_gradient_changes_nothing() -> None:
    table, other = nn.Embedding(5, 4, sparse=True), weight()
    optimizer = Jorge([("other", other), ("table", table.weight)], lr=0.1)
    for sparse in (False, True):
        other.grad = torch.ones(4, 4)
        table.weight.grad = torch.ones(5, 4).to_sparse() if sparse else torch.ones(5, 4)
        if not sparse:
            optimizer.step()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"gradient of table \(shape \(5, 4\)\) is sparse"):
        optimizer.step()
    assert same(before, snapshot(optimizer))


def test_a_gradient_of_another_shape_changes_nothing() -> None:
    p, other = weight(4, 4), weight(3, 3)
    optimizer = Jorge([("other", other), ("p", p)], lr=0.1)
    p.grad, other.grad = torch.ones(4, 4), torch.ones(3, 3)
    p.data = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="gradient of p has shape"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(p, torch.ones(2, 2))


def test_a_parameter_that_changed_its_shape_or_dtype_is_named() -> None:
    p, other = weight(4, 4), weight(3, 3)
    optimizer = Jorge([("other", other), ("w", p)], lr=0.1)
    p.grad, other.grad = torch.ones(4, 4), torch.ones(3, 3)
    optimizer.step()
    for data in (torch.zeros(1, 4), torch.zeros(4, 4, dtype=torch.float64)):
        p.data = data
        p.grad = None
        p.grad = torch.ones_like(p)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match=r"w is now .* its state is for \(4, 4\)"):
            optimizer.step()
        assert same(before, snapshot(optimizer))


@pytest.mark.parametrize(("option", "value"), [("block_size", 2), ("beta2_decay", -0.5)])
def test_an_option_that_shapes_the_state_cannot_change(option: str, value: object) -> None:
    p = weight()
    optimizer = Jorge([p], lr=0.1)
    p.grad = torch.ones(4, 4)
    optimizer.step()
    optimizer.param_groups[0][option] = value
    with pytest.raises(RuntimeError, match=f"{option} of param group 0 changed"):
        optimizer.step()


def stepped(*shapes: tuple[int, ...], **options: Any) -> Jorge:
    params = [weight(*shape) for shape in shapes]
    optimizer = Jorge(params, lr=0.1, **options)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (stepped((4, 4), (3, 3)).state_dict(), "2 parameters and has 1"),
        (stepped((6, 6)).state_dict(), r"parameter 0 of group 0.*shape \(6, 6\)"),
        (stepped((4,)).state_dict(), "left.0"),
        (torch.optim.SGD([weight()], lr=0.1).state_dict(), "not saved by jorge"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(saved: dict[str, Any], says: str) -> None:
    optimizer = stepped((4, 4))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=re.compile(says, re.DOTALL)):
        optimizer.load_state_dict(saved)
    assert same(before, snapshot(optimizer))


def test_a_state_of_another_version_is_refused() -> None:
    optimizer = stepped((4, 4))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["state_version"] = 99
    with pytest.raises(ValueError, match="state_version must be 5"):
        optimizer.load_state_dict(saved)


def test_flat_shards_of_a_model_are_warned_of_once() -> None:
    """FSDP1's and DeepSpeed's: every matrix would silently take Adam's step."""
    flat = nn.Parameter(torch.zeros(20_000))
    with pytest.warns(UserWarning, match=r"parameter 0 of group 0 has 20000 elements.*fully_shard") as caught:
        Jorge([flat, nn.Parameter(torch.zeros(30))])
    assert [Path(warning.filename).name for warning in caught] == ["test_errors.py"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Jorge([flat, weight()])
        Jorge([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4096))])
        Jorge([nn.Parameter(torch.zeros(4096)) for _ in range(3)])  # a model's biases alone, say
        optimizer = Jorge([weight()])
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(4096))]})
        optimizer.add_param_group({"params": [flat, weight()]})
    with pytest.warns(UserWarning, match=r"parameter 0 of group 3 has 20001 elements") as caught:
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(20_001))]})
    assert [Path(warning.filename).name for warning in caught] == ["test_errors.py"]


def test_flat_shards_that_take_the_place_of_matrices_are_warned_of_once() -> None:
    """DeepSpeed's ZeRO, stages 1 to 3, puts one into each group of the optimizer that it is given, nameless."""
    optimizer = Jorge([{"params": [weight()]}, {"params": [nn.Parameter(torch.ones(4))]}])
    for group, size in zip(optimizer.param_groups, (20_000, 3), strict=True):
        group["params"] = [nn.Parameter(torch.zeros(size))]
        group["params"][0].grad = torch.ones(size)
    with pytest.warns(UserWarning, match=r"parameter 0 of group 0 has 20000 elements.*DeepSpeed's ZeRO") as caught:
        optimizer.step()
    assert [Path(warning.filename).name for warning in caught] == ["test_errors.py"]
    optimizer.step()  # a warning is an error here
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    copy.deepcopy(optimizer).step()


@pytest.mark.parametrize("sizes", [(1500,), (9000,), (9000, 2000)])
def test_short_flat_shards_are_warned_of_where_there_is_nothing_else(sizes: tuple[int, ...]) -> None:
    with pytest.warns(UserWarning, match=rf"parameter 0 of group 0 has {sizes[0]} elements"):
        Jorge([nn.Parameter(torch.zeros(size)) for size in sizes])


def test_a_parameter_that_becomes_sharded_begins_anew() -> None:
    """accelerate swaps DTensors in after the optimizer was built."""
    script = """
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, init_device_mesh, distribute_tensor
from jorge import Jorge
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
model = torch.nn.Linear(4, 3)
optimizer = Jorge(model.named_parameters())
sharded = torch.nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
optimizer.param_groups[0]["params"][0] = sharded
sharded.grad = distribute_tensor(torch.ones(3, 4), mesh, [Shard(0)])
model.bias.grad = torch.ones(3)
optimizer.step()
assert not torch.equal(sharded.full_tensor(), model.weight) and optimizer.state[sharded]["step"] == 1
dist.destroy_process_group()
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.returncode == 0


def test_a_saved_root_of_whole_numbers_is_refused() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Jorge([weight], lr=0.1)
    weight.grad = torch.eye(4)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["left.0"] = torch.ones(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"left\.0 of .* is of torch.int64"):
        optimizer.load_state_dict(saved)


def test_flat_parameters_under_the_names_of_many_are_refused() -> None:
    """DeepSpeed's ZeRO puts one flat tensor in the place of a group's parameters, and leaves their names."""
    model = nn.Linear(4, 3)
    optimizer = Jorge(model.named_parameters())
    flat = nn.Parameter(torch.ones(15))
    optimizer.param_groups[0]["params"] = [flat]
    flat.grad = torch.ones(15)
    with pytest.raises(RuntimeError, match=r"has 1 parameters and 2 names.*DeepSpeed"):
        optimizer.step()
