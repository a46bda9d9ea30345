"""One dataclass says what the options are; signature, checks, documentation and command lines follow from it."""

import copy
import inspect
import re
from collections import UserList
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, checks, cli
from jorge.cost.counter import Meter
from jorge.cost.estimating import checked
from jorge.options import DEFAULTS, FIELDS, RULES, SHAPING, Options

ROOT = Path(__file__).parents[1]

#: For each option a value that is not its default, and one that is refused.
OTHERS: dict[str, tuple[Any, Any]] = {
    "lr": (0.2, -1.0),
    "momentum": (0.5, 1.0),
    "nesterov": (False, 1),
    "weight_decay": (0.1, -0.1),
    "method": ("exact", "shampoo"),
    "grafting": ("sgd", "adamw"),
    "graft_limit": (None, 0.5),
    "betas": ((0.8, 0.9), (0.9, 1.0)),
    "eps": (1e-6, -1e-8),
    "beta2_decay": (None, 0.8),
    "graft_memory": (None, 0),
    "graft_norm": ("frobenius", "spectral"),
    "adapt_variance": (False, 1),
    "interval": (3, 0),
    "warmup_refreshes": (0, -1),
    "block_size": (None, 0),
    "max_dim": (10, 0),
    "batch_dims": (1, -1),
    "splits": (2, 0),
    "preconditioner_beta2": (0.9, 1.0),
    "damping": (0.0, -1e-4),
    "degree": (1, 3),
    "init": ("paper", "zeros"),
    "root_eps": (1e-3, 0.0),
    "preconditioner_dtype": (torch.bfloat16, torch.float16),
    "matmul_precision": (("tf32", "bfloat16"), "fp8"),
    "stagger": (True, "yes"),
    "compile_step": (True, None),
    "workspace": (None, 0.0),
    "nonfinite": ("raise", "ignore"),
    "max_consecutive_skips": (None, 0),
    "maximize": (True, 1),
    "capturable": (True, 0),
    "cuda_graphs": (True, 1),
}


#: What else is refused.
REFUSED: dict[str, list[Any]] = {
    "lr": [float("nan"), float("inf"), True, "0.1", None],
    "momentum": [-0.1, float("nan"), True],
    "weight_decay": [float("inf"), True],
    "graft_limit": [0.0, float("inf"), True],
    "betas": [(0.9,), (0.9, 0.9, 0.9), 0.9, (True, 0.9), (-0.1, 0.9)],
    "beta2_decay": [0.0, -1.5, True],
    "graft_memory": [True, 50.0, -1],
    "graft_norm": [None, 4, "Schatten"],
    "interval": [True, 1.5, "5", None],
    "warmup_refreshes": [True, 2.0],
    "block_size": [True, "all", 0.5],
    "max_dim": [True, 10.0],
    "batch_dims": [True, 1.0],
    "splits": [True, 3.0],
    "preconditioner_beta2": [0.0, 1.5, True],
    "damping": [float("inf"), float("nan")],
    "degree": [0, True, 2.0],
    "root_eps": [-1e-3, float("inf")],
    "preconditioner_dtype": ["float32", torch.int32],
    "matmul_precision": [("tf32",), ("tf32",) * 3, ("tf32", "fp8"), True],
    "workspace": [-1.0, float("inf"), True],
    "method": [None, 1, "Whitening"],
    "grafting": [None, "SGD"],
}


def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(4, 4))


def test_the_constructor_has_just_these_options_and_defaults() -> None:
    *parameters, words = list(inspect.signature(Jorge.__init__).parameters.values())[2:]
    assert words.kind is words.VAR_KEYWORD  # torch's for how a step is computed
    *parameters, distributed, group, dtype = parameters  # of the optimizer, not of its groups
    assert {p.name: p.default for p in (distributed, group, dtype)} == {
        "distributed": "auto",
        "process_group": None,
        "communication_dtype": None,
    }
    assert [p.name for p in parameters] == list(FIELDS) == list(OTHERS)
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["lr"]
    for p in parameters:
        assert p.default == DEFAULTS[p.name]
        assert type(p.default) is type(DEFAULTS[p.name])


@pytest.mark.parametrize(("name", "pair"), [("betas", [0.8, 0.95]), ("matmul_precision", ["float32", "bfloat16"])])
def test_a_pair_of_a_configurations_own_type_is_taken_and_saved_as_a_tuple(name: str, pair: list[Any]) -> None:
    """OmegaConf's `ListConfig`, neither a list nor a tuple: a checkpoint with one would not load with weights alone."""
    own: Any = UserList(pair)
    optimizer = Jorge([weight()], **{name: own})
    optimizer.add_param_group({"params": [weight()], name: own})
    for group in optimizer.param_groups:
        assert group[name] == tuple(pair)
        assert type(group[name]) is tuple
        group["params"][0].grad = torch.ones(4, 4)
    optimizer.step()
    optimizer.param_groups[0][name] = own
    optimizer.step()
    short: Any = UserList(pair[:1])
    with pytest.raises(ValueError, match=rf"{name} must be"):
        Jorge([weight()], **{name: short})


#: As many schedulers and configurations give a number: 0-dim, of one element, of another dtype.
NUMBERS = [torch.tensor, lambda value: torch.tensor([value]), lambda value: torch.tensor(value, dtype=torch.float64)]


@pytest.mark.parametrize("method", ["whitening", "binomial"])
@pytest.mark.parametrize("grafting", ["adam", "sgd"])
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_schedules_change_may_be_tensors(
    number: Callable[[float], Tensor], grafting: Any, method: str
) -> None:
    def trained(of: Callable[[float], Any]) -> Tensor:
        torch.manual_seed(0)
        p, q = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))
        numbers = {"lr": of(0.1), "momentum": of(0.8), "weight_decay": of(0.1), "betas": (of(0.8), of(0.99))}
        optimizer = Jorge([p, q], **numbers, grafting=grafting, method=method)
        for step in range(6):
            if step == 3:  # through a checkpoint, a copy and a group's values set anew
                saved = optimizer.state_dict()
                optimizer = Jorge([p, q], grafting=grafting, method=method)
                optimizer.load_state_dict(saved)
                copy.deepcopy(optimizer)
                optimizer.param_groups[0].update(numbers)
            p.grad, q.grad = torch.randn(6, 4), torch.randn(6)
            optimizer.step()
        return torch.cat([p.detach().flatten(), q.detach()])

    torch.testing.assert_close(trained(number), trained(float), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_scheduler_that_cycles_with_tensors_is_followed(capturable: bool) -> None:
    p = weight()
    optimizer = Jorge([p], lr=torch.tensor(0.1), capturable=capturable)
    ends: Any = {"base_momentum": torch.tensor(0.85), "max_momentum": torch.tensor(0.95)}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20, **ends)
    seen = []
    for _ in range(10):
        p.grad = torch.randn(4, 4)
        optimizer.step()
        scheduler.step()
        seen.append(float(Options.of(optimizer.param_groups[0]).momentum))
    assert seen[0] > seen[-1] >= 0.85


@pytest.mark.parametrize("grafting", ["adam", "sgd"])
def test_a_step_does_not_read_them(grafting: Any) -> None:
    p, one = weight(), torch.tensor
    numbers: Any = {"lr": one(0.1), "momentum": one(0.8), "weight_decay": one(0.1), "betas": (one(0.8), one(0.99))}
    optimizer = Jorge([p], **numbers, grafting=grafting)
    p.grad = torch.randn(4, 4)
    optimizer.step()
    for name, value in numbers.items():  # new ones, as a scheduler gives them
        optimizer.param_groups[0][name] = tuple(map(torch.clone, value)) if name == "betas" else value.clone()
    with Meter(torch.device("cpu")) as meter:
        optimizer.step()
    assert meter.waits == 0


@pytest.mark.parametrize("name", ["eps", "interval", "damping", "preconditioner_beta2"])
def test_other_numbers_may_not_be_tensors_as_a_step_would_have_to_read_them(name: str) -> None:
    optimizer = Jorge([weight()])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 4)
    optimizer.param_groups[0][name] = torch.tensor(DEFAULTS[name])
    with pytest.raises(ValueError, match=f"{name} must be"):
        optimizer.step()


def test_a_tensor_out_of_range_is_refused_where_it_is_read_anyway() -> None:
    one = torch.tensor
    refused: dict[str, Any] = {"momentum": one(1.5), "weight_decay": one(-1.0), "betas": (one(0.9), one(2.0))}
    for name, value in refused.items():
        with pytest.raises(ValueError, match=name):
            Jorge([weight()], **{name: value})
        saved = Jorge([weight()]).state_dict()
        saved["param_groups"][0][name] = value
        with pytest.raises(ValueError, match=name):
            Jorge([weight()]).load_state_dict(saved)


def test_what_follows_the_step_length_follows_it() -> None:
    assert Options() == Options(momentum=0.9, nesterov=True, weight_decay=0.01)
    assert Options(betas=(0.8, 0.99)).momentum == 0.8
    assert Options(betas=(0.8, 0.99), momentum=0.0, weight_decay=0.0, nesterov=False).momentum == 0.0
    assert Options(grafting="sgd") == Options(grafting="sgd", momentum=0.9, nesterov=False, weight_decay=0.0)
    assert Options(grafting="sgd", betas=(0.8, 0.99)).momentum == 0.9


@pytest.mark.parametrize("recipe", [{}, {"lr": 3e-3, "betas": (0.8, 0.99), "weight_decay": 0.1, "eps": 1e-6}])
def test_the_constructor_gives_what_the_transfer_from_adamw_gives(recipe: dict[str, Any]) -> None:
    transferred, _ = Jorge.from_adamw(torch.optim.AdamW([weight()], **recipe))
    plain = Jorge([weight()], **recipe)
    assert Options.of(plain.param_groups[0]) == Options.of(transferred.param_groups[0])


@pytest.mark.parametrize("transferred", [False, True])
def test_momentum_follows_a_scheduler_that_cycles_betas(transferred: bool) -> None:
    parameter = weight()
    optimizer = Jorge([parameter], lr=0.1)
    if transferred:
        optimizer, _ = Jorge.from_adamw(torch.optim.AdamW([parameter], lr=0.1))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    seen = []
    for _ in range(10):
        parameter.grad = torch.randn(4, 4)
        optimizer.step()
        scheduler.step()
        seen.append(Options.of(optimizer.param_groups[0]).momentum)
    assert seen[0] > seen[-1] >= 0.85


def test_the_last_key_that_fastai_takes_for_momentum_is_the_one_that_all_follow() -> None:
    """fastai cycles one key of a group: of `momentum` and `betas`, both its `mom`, the last."""
    keys = list(Jorge([weight()]).param_groups[0])
    assert keys.index("betas") > keys.index("momentum")
    keys = list(Jorge([{"params": [weight()], "grafting": "adam"}], grafting="sgd").param_groups[0])
    assert "betas" in keys


def test_a_group_has_them_and_what_is_read_is_what_was_given() -> None:
    optimizer = Jorge([weight()], lr=0.1)
    group = optimizer.param_groups[0]
    assert set(FIELDS) - {"betas"} <= set(group)
    assert Options.of(group) == Options(lr=0.1)
    for name, (value, _) in OTHERS.items():
        if name != "lr":
            given = Jorge([weight()], lr=0.1, **{name: value})
            assert Options.of(given.param_groups[0]) == Options(**{"lr": 0.1, name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_what_an_option_accepts(name: str) -> None:
    good, bad = OTHERS[name]
    base = {"lr": 0.1}
    for value in (good, DEFAULTS[name]):
        checks.check(base | {name: value}, "here")
    for value in (bad, *REFUSED.get(name, [])):
        with pytest.raises(ValueError, match=rf"here: {name} must be {re.escape(checks.wants(name))}, got"):
            checks.check(base | {name: value}, "here")
    optimizer = Jorge([weight()], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 4)
    optimizer.param_groups[0][name] = bad
    with pytest.raises(ValueError, match=name):
        optimizer.step()
    with pytest.raises(ValueError, match=name):
        checked({name: bad})


def test_the_documentation_is_made_of_them() -> None:
    text = re.sub(r"\s+", " ", Jorge.__doc__ or "")
    main, _, others = text.partition("Further options:")
    assert sum(rule.main for rule in RULES.values()) == 10
    for name, rule in RULES.items():
        default = f" Default {DEFAULTS[name]!r}."
        sentence = re.sub(r"\s+", " ", f" {name}: {rule.says}{default}")
        assert (sentence in main, sentence in others) == (rule.main, not rule.main), name
        assert rule.says[-1] == "."


def test_the_page_of_options_is_made_of_them() -> None:
    """`python -c "from jorge import checks; print(checks.markdown())"` prints its tables."""
    page = (ROOT / "docs" / "generated" / "options.md").read_text(encoding="utf-8")
    assert page.endswith(checks.markdown() + "\n")


@pytest.mark.parametrize("name", FIELDS)
def test_a_command_line_may_say_them(name: str) -> None:
    good, bad = OTHERS[name]

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return str(value).removeprefix("torch.")

    assert checks.parse(name, text(good)) == good
    assert checks.parse(name, text(DEFAULTS[name])) == DEFAULTS[name]
    if name not in ("compile_step",):  # of which None is refused in words of its own
        with pytest.raises(ValueError, match=rf"{name} must be"):
            checks.parse(name, text(bad))
    with pytest.raises(TypeError, match="did you mean 'interval'"):
        checks.parse("intervall", "3")


def test_jorge_cost_takes_each_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["cost", "torch.nn:Linear", "--args", "in_features=40", "out_features=30"]
    assert cli.main(base) == 0
    plain = capsys.readouterr().out
    assert cli.main([*base, "--options", "max_dim=35", "preconditioner_dtype=bfloat16"]) == 0
    assert capsys.readouterr().out != plain
    assert cli.main([*base, "--interval", "5", "--block-size", "auto", "--method", "whitening"]) == 0
    assert capsys.readouterr().out == plain
    for bad in (["--interval", "0"], ["--method", "shampoo"], ["--options", "max_dims=3"], ["--options", "degree"]):
        with pytest.raises(SystemExit):
            cli.main([*base, *bad])
        says = capsys.readouterr().err
        assert any(word in says for word in ("must be", "did you mean", "name=value"))


def test_which_options_shape_the_state() -> None:
    """In the method, the graft, the memory of its averages, the cuts and the dtype lies what the state means."""
    graft = {"grafting", "beta2_decay", "graft_norm", "adapt_variance"}
    assert set(SHAPING) == graft | {"method", "block_size", "max_dim", "batch_dims", "splits", "preconditioner_dtype"}


@pytest.mark.parametrize("name", FIELDS)
def test_what_shapes_the_state_cannot_change_and_all_else_may(name: str) -> None:
    value, _ = OTHERS[name]
    p = weight()
    optimizer = Jorge([p], lr=0.1)
    p.grad = torch.ones(4, 4)
    optimizer.step()
    if name == "compile_step":
        return  # compiled, in tests/test_arrange.py
    optimizer.param_groups[0][name] = value
    if name in SHAPING:
        with pytest.raises(RuntimeError, match=f"{name} of param group 0 changed"):
            optimizer.step()
    else:
        optimizer.step()
    assert optimizer.state[p]["step"] == (1 if name in SHAPING else 2)
