"""Every opponent trains models with every kind of parameter, and leaves alone what is not its own."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge
from jorge.cost.muon_partition import hidden
from jorge.options import DEFAULTS, FIELDS
from jorge.options import Options as JorgeOptions
from jorge.transfer import lr_factor
from jorge_lab.contenders import (
    CONTENDERS,
    NEUTRAL,
    Contender,
    Setting,
    UnsuitableError,
    comparable,
    contender,
    settings,
    state_bytes,
    tuned,
)
from jorge_lab.contenders.parts import Parts
from jorge_lab.runs.records import read_file
from jorge_lab.runs.run import train
from lab.tests.tiny import Images, Tokens, WithUnused, tiny

RECORDS = (
    next(folder for folder in Path(__file__).resolve().parents if (folder / "CHANGELOG.md").exists()) / "lab/records"
)
#: Their packages change the gradients in place; putting them back would cost time that is counted against it.
CHANGES = ("schedule-free", "normuon")
#: They cannot take a model some of whose parameters have no gradient.
NEED_ALL = ("singd", "sirfshampoo")


def installed(name: str) -> Contender:
    found = CONTENDERS[name]
    if missing := found.missing():
        pytest.skip(missing)
    return found


def steps(
    name: str, model: nn.Module, setting: Setting = "transferred", count: int = 3
) -> Iterator[torch.optim.Optimizer]:
    """The optimizer after each of some steps, its gradients as they were before."""
    task = tiny(type(model))
    optimizer, scheduler = installed(name).build(task, model, count, setting)
    for _, batch in zip(range(count), task.batches(task.load(), 0), strict=False):
        optimizer.zero_grad()
        task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        optimizer.step()
        after = [p.grad for p in model.parameters()]
        for a, b in zip(before, after, strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.equal(a, b) or name in CHANGES
        scheduler.step()
        yield optimizer


def test_the_order_is_that_of_the_tables() -> None:
    assert list(CONTENDERS)[:7] == ["jorge", "sgd", "adamw", "shampoo", "soap", "muon", "psgd"]
    assert all(name == c.name and len(c.space) == 2 for name, c in CONTENDERS.items())


@pytest.mark.parametrize("model", [Images, Tokens])
@pytest.mark.parametrize("name", CONTENDERS)
def test_it_lowers_the_loss(name: str, model: type[nn.Module]) -> None:
    task = tiny(model)
    kept: list[nn.Module] = []
    record = train(
        dataclasses.replace(task, model=lambda: kept.append(model()) or kept[0]),  # type: ignore[func-returns-value]
        installed(name),
        0,
        task.steps,
        task.load(),
        lambda *_: None,
    )
    losses = record["losses"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all(p.isfinite().all() for p in kept[0].parameters())
    assert record["diverged_at"] is None
    assert json.loads(json.dumps(record["settings"])) == record["settings"]
    assert " at 0x" not in str(record["settings"]), "an address is another in each process"


@pytest.mark.parametrize("setting", ["transferred", "default"])
@pytest.mark.parametrize("name", CONTENDERS)
def test_gradients_are_left_as_they_were(name: str, setting: Setting) -> None:
    model = Images() if name in NEED_ALL else WithUnused()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = list(steps(name, model, setting))[-1]
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    unused = [n.startswith("unused") for n, _ in model.named_parameters()]
    assert moved == [not u for u in unused], "every parameter with a gradient is trained, and no other"
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    least = 4 * sum(p.numel() for p, used in zip(model.parameters(), moved, strict=True) if used)
    without = (name, setting) == ("sgd", "default")  # it has no momentum
    assert (state_bytes(optimizer) == 0) if without else (state_bytes(optimizer) >= least)


@pytest.mark.parametrize("name", CONTENDERS)
def test_options_are_plain_and_tuned_ones_are_looked_up(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, found = tiny(), CONTENDERS[name]
    monkeypatch.setattr(tuned, "TUNED", tmp_path / "tuned.json")
    with pytest.raises(LookupError, match=f"jorge tune {task.name} --optimizers {name}"):
        found.options(task, "tuned")
    best = dict.fromkeys(found.space, 0.5)
    (tmp_path / "tuned.json").write_text(json.dumps({task.name: {"smoke": {name: {"options": best}}}}))
    transferred = found.options(task, "transferred")
    assert json.loads(json.dumps(transferred)) == transferred
    assert found.options(task, "tuned") == transferred | best
    published = {"method", "interval", "graft_norm", "graft_memory", "adapt_variance"}  # Shampoo as it is in its paper
    assert found.options(task, "default").keys() <= published


def test_jorge_is_what_the_transfer_rule_makes() -> None:
    for model, source in ((Images(), "from_sgd"), (Tokens(), "from_adamw")):
        task = tiny(type(model))
        kind = torch.optim.SGD if source == "from_sgd" else torch.optim.AdamW
        recipe = task.recipe.sgd if source == "from_sgd" else task.recipe.adamw
        schedule = {"total_steps": 40, "warmup_steps": 4, "schedule": "cosine"}
        wanted, _ = getattr(Jorge, source)(kind(model.named_parameters(), **recipe), **schedule)
        optimizer, scheduler = CONTENDERS["jorge"].build(task, model, 40)
        momentum = {"momentum": JorgeOptions.of(wanted.param_groups[0]).momentum}  # here in numbers
        assert settings(optimizer) == settings(wanted) | momentum
        factor = lr_factor("cosine", total_steps=40, warmup_steps=4)
        assert scheduler.get_last_lr() == [wanted.param_groups[0]["initial_lr"] * factor(0)]


def test_muon_takes_the_hidden_layers_as_matrices() -> None:
    images, tokens = Images(), Tokens()
    assert [tuple(p.shape) for p in hidden(images)] == [(6, 1, 3, 3), (8, 6, 3), (8, 112)]
    names = {id(p): n for n, p in tokens.named_parameters()}
    assert {names[id(p)] for p in hidden(tokens)} == {"mix.in_proj_weight", "mix.out_proj.weight", "up.weight"}
    unnamed = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    assert [tuple(p.shape) for p in hidden(unnamed)] == [(4, 3)]
    tokens.up.weight = tokens.token.weight
    assert all(p is not tokens.token.weight for p in hidden(tokens))
    optimizer = list(steps("muon", images))[-1]
    assert isinstance(optimizer, Parts)
    muon, adamw = optimizer.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [tuple(p.shape) for p in muon.state] == [(6, 9), (8, 18), (8, 112)]
    assert len(adamw.state) == len(list(images.parameters())) - 3
    assert {group["lr"] for group in optimizer.param_groups} == {muon.param_groups[0]["lr"]}


class Long(nn.Module):
    """A matrix with a side that heavyball leaves out, one without, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(4, 3), nn.Linear(3, 2049, bias=False)


@pytest.mark.parametrize(("name", "most"), [("kl-shampoo", 1), ("kl-soap", 2)])
def test_the_kl_methods_leave_vectors_to_adamw(name: str, most: int) -> None:
    optimizer, _ = installed(name).build(tiny(), Long(), 10)
    assert isinstance(optimizer, Parts)
    matrices, rest = ([tuple(p.shape) for g in part.param_groups for p in g["params"]] for part in optimizer.parts)
    assert matrices == [(3, 4), (2049, 3)][:most]
    assert rest == [(3,), (2049, 3)][: 3 - most]
    assert isinstance(optimizer.parts[1], torch.optim.AdamW)
    assert len({(g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups}) == 1


@pytest.mark.parametrize("name", ["adamw", "muon", "soap", "kl-shampoo", "kl-soap", "psgd-pro", "normuon"])
def test_a_step_is_as_long_as_adams(name: str) -> None:
    """Of noise it is √((1−β1)/(1+β1)) of the lr: 0.23 with β1 = 0.9, 0.16 with SOAP's 0.95. Muon's is 0.2."""
    first = nn.Linear(24, 16)
    model, weight = nn.Sequential(first, nn.Linear(16, 4)), first.weight
    optimizer, _ = installed(name).build(tiny(), model, 1000)
    shares: list[float] = []
    for step in range(300):
        for p in model.parameters():
            p.grad = 1e-2 * torch.randn_like(p)
        weight.grad = torch.logspace(0, -2, 16)[:, None] * torch.randn(16, 24)
        before = weight.detach().clone()
        optimizer.step()
        if step >= 200:
            shares.append(float((weight.detach() - before).square().mean().sqrt()))
    warming = optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["initial_lr"]
    assert sum(shares) / len(shares) / (warming * 1e-2) == pytest.approx(0.2, abs=0.05)


def test_muon_takes_recurrent_layers() -> None:
    model = nn.ModuleDict(
        {
            "token": nn.Embedding(7, 4),
            "mix": nn.LSTM(4, 6, proj_size=3),
            "cell": nn.GRUCell(3, 5),
            "up": nn.Linear(5, 7),
        }
    )
    assert [tuple(p.shape) for p in hidden(model)] == [(24, 4), (24, 3), (3, 6), (15, 3), (15, 5)]
    assert [tuple(p.shape) for p in hidden(nn.Sequential(nn.Linear(2, 4), nn.RNN(4, 3)))] == [(3, 4), (3, 3)]


def test_state_is_counted_wherever_it_is() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.ones(4, 4)
    adamw = torch.optim.AdamW([weight])
    adamw.step()
    assert state_bytes(adamw) == 2 * 64 + 4
    shared = torch.zeros(8)

    class Holder:
        inside = None

        def __init__(self) -> None:
            self.deep = [{"a": shared[:4]}, (shared[4:], weight.grad, torch.zeros(2, dtype=torch.float64))]

    adamw.state[weight] = {"nested": {0: Holder(), "again": shared, "mine": weight}}
    assert state_bytes(adamw) == 8 * 4 + 2 * 8


@pytest.mark.parametrize("model", [Images, Tokens])
def test_jorges_state_is_its_plan(model: type[nn.Module]) -> None:
    optimizer = list(steps("jorge", model()))[-1]
    assert isinstance(optimizer, Jorge)
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    assert state_bytes(optimizer) == sum(t.numel() * t.element_size() for t in tensors) == optimizer.plan().state_bytes


def test_schedule_free_evaluates_other_weights_and_keeps_its_lr() -> None:
    model = Images()
    for optimizer in steps("schedule-free", model, count=8):
        assert optimizer.param_groups[0]["lr"] == 1e-2
    training = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()  # type: ignore[attr-defined]
    assert not all(torch.equal(a, b) for a, b in zip(training, model.parameters(), strict=True))
    optimizer.train()  # type: ignore[attr-defined]
    for a, b in zip(training, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach())


@pytest.mark.parametrize("name", NEED_ALL)
def test_what_it_cannot_train_is_said_in_a_line(name: str) -> None:
    with pytest.raises(UnsuitableError, match=f"{name} needs a gradient of every parameter"):
        list(steps(name, WithUnused()))


def test_singd_says_which_models_it_cannot_take() -> None:
    task, singd = tiny(), installed("singd")
    with pytest.raises(UnsuitableError, match="Linear and Conv2d"):
        singd.build(task, nn.Conv1d(1, 1, 1), 10)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(UnsuitableError, match="share a weight"):
        singd.build(task, tied, 10)


@pytest.mark.parametrize("name", [n for n, c in CONTENDERS.items() if c.requires])
def test_a_missing_package_is_told_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = CONTENDERS[name]
    assert found.requires is not None
    there = found.missing() is None
    asked: list[str] = []
    monkeypatch.setattr(contender, "find_spec", asked.append)  # which returns None
    message = found.missing()
    (module,) = asked
    if there:
        package = re.split("[<>=]", found.requires)[0]
        assert package.replace("_", "-") in [each.replace("_", "-") for each in packages_distributions()[module]]
    assert message is not None
    assert f"pip install '{found.requires}'" in message
    assert "\n" not in message
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        found.build(tiny(), Images(), 10)


@pytest.mark.slow
def test_torchs_settings_stay_as_they_were() -> None:
    code = """
import warnings, torch
from lab.tests.contenders.test_opponents import CONTENDERS, Images, steps
def flags():
    cudnn, einsum = torch.backends.cudnn, torch.backends.opt_einsum
    return {
        "matmul": torch.get_float32_matmul_precision(), "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.benchmark_limit, cudnn.allow_tf32),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "einsum": (einsum.enabled, einsum.strategy),
        "anomaly": torch.is_anomaly_enabled(), "dtype": torch.get_default_dtype(), "grad": torch.is_grad_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()), "filters": list(warnings.filters),
    }
for _ in steps("sgd", Images()):
    before = flags()  # torch imports a lot at the first step
for name, contender in CONTENDERS.items():
    if contender.missing() is None:
        for _ in steps(name, Images()):
            assert flags() == before, (name, flags(), before)
        print(name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "adamw" in result.stdout


def test_settings_stay_the_same_when_neutral_options_come_and_go() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    now = settings(Jorge([weight], lr=0.1))
    earlier = {name: value for name, value in now.items() if name not in NEUTRAL} | {"fused": False}
    assert comparable(now) == comparable(now)
    assert comparable(earlier) == comparable(now)
    assert comparable(now) == comparable(earlier)
    assert comparable(earlier | {"fused": True}) != comparable(now)
    assert comparable(earlier) != comparable(now | {"compile_step": True})
    assert comparable({name: value for name, value in now.items() if name != "graft_memory"}) != comparable(now)
    assert comparable(now | {"lr": 0.2}) != comparable(now)
    assert comparable(now) != comparable(now | {"no option": None})


def test_an_option_that_came_after_the_records_is_neutral() -> None:
    """Without a line in `NEUTRAL` each run of the records would be trained again."""
    record = next(r for r in read_file(RECORDS / "suite.jsonl.gz") if r["optimizer"] == "jorge")
    came = FIELDS.keys() - record["settings"].keys()
    assert came <= NEUTRAL.keys(), "say in NEUTRAL at which value it changes nothing"
    assert all(DEFAULTS[name] in NEUTRAL[name] for name in came)
