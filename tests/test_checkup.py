"""The doctor: each finding from a training that has it, and nothing that was handed over changes."""

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, cli, doctor, param_groups
from jorge.findings import Finding
from tests.test_diagnostics import same

Loss = Callable[[nn.Module, Any], Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(torch.relu(self.norm(self.first(x)))))
        return out


def mse(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 6, generator=generator), torch.randn(32, 3, generator=generator)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def told(findings: tuple[Finding, ...], level: str, says: str) -> bool:
    return any(finding.level == level and says in finding.what for finding in findings)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = doctor(net(), mse, batch())
    assert found.findings == ()
    assert found.healthy
    assert len(found.losses) == 3
    assert found.losses[2] < found.losses[0]
    assert found.diagnostics is not None
    assert set(found.diagnostics.parameters) == {name for name, _ in net().named_parameters()}
    assert str(found).endswith("nothing found")


@pytest.mark.parametrize("trained", [0, 3])
def test_all_that_is_handed_over_stays_as_it_is(trained: int) -> None:
    model = net()
    optimizer = Jorge(param_groups(model), lr=1e-3)
    for _ in range(trained):
        optimizer.zero_grad()
        mse(model, batch()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def everything() -> Any:
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        return copy.deepcopy((model.state_dict(), optimizer.state_dict(), grads)), torch.get_rng_state()

    before = everything()
    doctor(model, mse, batch(), optimizer)
    after = everything()
    assert same(before, after)
    assert model.training


def test_random_numbers_go_on_where_they_were() -> None:
    numpy = pytest.importorskip("numpy")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.mul(mse(model, batch), 1 + random.random() + numpy.random.rand() + float(torch.rand(1)))

    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), numpy.random.rand(), float(torch.rand(1))
    model = net()
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    doctor(model, loss, batch())
    assert (random.random(), numpy.random.rand(), float(torch.rand(1))) == expected


def sick(change: Callable[[Net], Any], level: str, says: str) -> Any:
    return pytest.param(change, level, says, id=says)


def unused(model: Net) -> None:
    model.spare = nn.Linear(4, 4)


def tied(model: Net) -> None:
    model.again = model.first


def table(model: Net) -> None:
    model.table = nn.Embedding(2000, 8)


def vocabulary(model: Net) -> None:
    model.table = nn.Embedding(40_000, 4)


def head(model: Net) -> None:
    model.table, model.head = nn.Embedding(3000, 8), nn.Linear(16, 3000)


def half(model: Net) -> None:
    model.extra = nn.Parameter(torch.ones(3, dtype=torch.float16))


def frozen(model: Net) -> None:
    model.requires_grad_(False)


class Steep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale.sqrt()


def overflowing(model: Net) -> None:
    model.drop = Steep()  # type: ignore[assignment]


def dead(model: Net) -> None:
    with torch.no_grad():
        model.norm.bias.fill_(-1e6)


@pytest.mark.parametrize(
    ("change", "level", "says"),
    [
        sick(unused, "warning", "no gradient reaches spare.weight, spare.bias"),
        sick(tied, "note", "first.weight and again.weight are one parameter"),
        sick(table, "note", "an embedding that is preconditioned as a matrix"),
        sick(vocabulary, "note", "table.weight has a side that is diagonal"),
        sick(head, "note", "head.weight: outputs over a vocabulary, preconditioned as a matrix"),
        sick(half, "warning", "extra is float16"),
        sick(frozen, "error", "no parameter requires a gradient"),
        sick(overflowing, "error", "the gradient of drop.scale is not finite"),
        sick(dead, "warning", "the gradient of first.weight, first.bias"),
        sick(lambda model: model.eval(), "warning", "evaluation mode"),
    ],
)
def test_a_sick_model_is_seen(change: Callable[[Net], Any], level: str, says: str) -> None:
    model = net()
    change(model)
    found = doctor(model, mse, batch())
    assert told(found.findings, level, says), str(found)
    if level != "note":
        assert not found.healthy


@pytest.mark.parametrize(
    ("options", "level", "says"),
    [
        ({"lr": 0.1}, "warning", "lr=0.1 with a step of Adam's length"),
        ({"lr": 1e-3, "grafting": "sgd"}, "note", "lr=0.001 with a step of SGD's length"),
        ({"graft_limit": 3.0}, "note", "sets graft_limit, which is not asked with grafting='adam'"),
        ({"grafting": "sgd", "lr": 0.1, "eps": 1e-6}, "note", "sets eps, which is not asked"),
        ({"lr": 1e-3, "weight_decay": 0.1}, "note", "first.bias, norm.weight, norm.bias, last.bias decay"),
        ({"lr": 10.0}, "warning", "last.weight by more than 30%"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_seen(options: dict[str, Any], level: str, says: str) -> None:
    model = net()
    found = doctor(model, mse, batch(), Jorge(model.named_parameters(), **options))
    assert told(found.findings, level, says), str(found)


def test_a_layer_as_wide_as_no_vocabulary_is_no_head() -> None:
    model = net()
    model.table, model.wide = nn.Embedding(3000, 8), nn.Linear(16, 3001)
    assert not any("outputs over" in finding.what for finding in doctor(model, mse, batch()).findings)


def test_gradients_that_are_finite_and_too_long_are_seen() -> None:
    found = doctor(net(), lambda model, batch: mse(model, batch) * 1e30, batch())
    assert told(found.findings, "error", "is longer than 1.8e19, where its square overflows"), str(found)
    assert told(found.findings, "error", "2 steps were skipped"), str(found)
    wide = net().double()
    x, y = batch()
    found = doctor(wide, lambda model, batch: mse(model, batch) * 1e30, (x.double(), y.double()))
    assert not told(found.findings, "error", "longer than"), str(found)


def test_groups_that_pull_the_loss_apart_are_seen() -> None:
    model = net()
    groups: list[dict[str, Any]] = [{"params": list(each.parameters())} for each in (model.first, model.last)]
    groups[0]["maximize"] = True
    found = doctor(model, mse, batch(), Jorge(groups))
    assert told(found.findings, "warning", "maximize=True in param group 0, and not"), str(found)
    for group in groups:
        group["maximize"] = True
    climbing = doctor(model, lambda model, batch: -mse(model, batch), batch(), Jorge(groups))
    assert not any("maximize" in finding.what for finding in climbing.findings)


def test_parameters_without_names_are_called_as_in_the_model_and_stay_without() -> None:
    model = net()
    params = list(model.parameters())
    optimizer = Jorge([{"params": params[:3]}, {"params": params[3:]}], lr=1e-3)
    (found,) = doctor(model, mse, batch(), optimizer).findings
    assert found.what.startswith("first.bias, norm.weight, norm.bias, last.bias decay")
    assert all("param_names" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize(("good", "level"), [(0, "warning"), (1, "note")])
def test_steps_that_the_optimizer_has_left_out_are_told(good: int, level: str) -> None:
    optimizer = Jorge(param_groups(model := net()))
    for value in [float("nan")] * 2 + [1e-3] * good:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        optimizer.step()
    found = doctor(model, mse, batch(), optimizer)
    assert told(found.findings, level, f"2 steps were left out so far, {2 - 2 * good} in a row"), str(found)
    assert optimizer.skipped_steps().total == 2
    assert not any("left out so far" in finding.what for finding in doctor(net(), mse, batch()).findings)


def test_weights_that_start_at_zero_are_no_finding() -> None:
    model = net()
    nn.init.zeros_(model.last.weight)
    assert doctor(model, mse, batch()).findings == ()


def test_a_rate_that_warms_up_is_the_recipes() -> None:
    model = net()
    sgd = torch.optim.SGD(param_groups(model), lr=0.05, momentum=0.9)
    optimizer, _ = Jorge.from_sgd(sgd, total_steps=1000, warmup_steps=100)
    assert doctor(model, mse, batch(), optimizer).findings == ()
    torch.optim.lr_scheduler.LambdaLR(optimizer := Jorge(param_groups(model)), lambda step: float(step > 0))
    assert told(doctor(model, mse, batch(), optimizer).findings, "note", "is 0 now")


def test_steps_that_rounding_swallows_are_seen() -> None:
    model = net().to(torch.bfloat16)
    given = tuple(part.bfloat16() for part in batch())
    found = doctor(model, mse, given, Jorge(param_groups(model), lr=1e-6))
    assert told(found.findings, "warning", "steps are too short to change"), str(found)


def test_a_loss_of_the_original_is_seen_and_leaves_it_as_it_is() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    found = doctor(model, lambda _, batch: mse(model, batch), batch())
    assert told(found.findings, "error", "any parameter of the model that the loss is handed")
    assert same(before, dict(model.state_dict()))
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_are_a_note() -> None:
    model = net()
    model.first.requires_grad_(False)
    found = doctor(model, mse, batch(), Jorge(model.named_parameters(), weight_decay=0.0))
    assert found.healthy
    assert told(found.findings, "note", "2 parameters that the optimizer has are frozen")


def test_an_optimizer_of_other_parameters_is_seen() -> None:
    model, other = net(), net()
    found = doctor(model, mse, batch(), Jorge([*other.last.named_parameters(), ("w", model.first.weight)]))
    assert told(found.findings, "error", "the optimizer does not have first.bias")
    assert told(found.findings, "warning", "2 parameters that the optimizer has are not the model's")


def test_any_optimizer_may_be_asked_about() -> None:
    model = net()
    found = doctor(model, mse, batch(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert found.findings == ()
    assert found.diagnostics is None


def test_what_module_says_of_its_matrices_is_seen() -> None:
    model = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, dropout=0.0)
    x = torch.randn(5, 3, 16)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return torch.square(model(x)).mean()

    found = doctor(model, loss, x, Jorge(model.named_parameters(), weight_decay=0.0))
    assert told(found.findings, "note", "self_attn.in_proj_weight: several matrices in one parameter")
    assert not doctor(model, loss, x).findings


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda model, batch: model(batch[0]), "no scalar tensor but of shape (32, 3)"),
        (lambda model, batch: 1.0, "no scalar tensor but float"),
        (lambda model, batch: torch.tensor(1.0), "does not depend"),
        (lambda model, batch: mse(model, batch) * float("nan"), "the loss is nan"),
    ],
)
def test_a_loss_that_cannot_be_is_seen(loss: Loss, says: str) -> None:
    found = doctor(net(), loss, batch())
    assert told(found.findings, "error", says), str(found)
    assert not found.healthy


def test_gradients_that_eps_hides_are_seen() -> None:
    found = doctor(net(), lambda model, batch: mse(model, batch) * 1e-12, batch())
    assert told(found.findings, "warning", "is smaller than eps"), str(found)
    quiet = Jorge(param_groups(model := net()), eps=0.0)
    assert not doctor(model, lambda model, batch: mse(model, batch) * 1e-12, batch(), quiet).findings


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"grafting": "sgd", "lr": 0.1}], ids=str)
def test_gradients_whose_squares_underflow_are_seen(options: dict[str, Any]) -> None:
    optimizer = Jorge(param_groups(model := net()), **options)
    found = doctor(model, lambda model, batch: mse(model, batch) * 1e-25, batch(), optimizer)
    assert told(found.findings, "warning", "so small that its squares underflow"), str(found)
    assert not told(found.findings, "warning", "smaller than eps")


def test_memory_that_is_not_there_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jorge.findings._free", lambda device: 100)
    assert told(doctor(net(), mse, batch()).findings, "error", "the optimizer's state takes 0.0 GB")


def test_what_an_optimizer_refuses_is_a_finding() -> None:
    model = net()
    overflowing(model)
    strict = Jorge(model.named_parameters(), nonfinite="raise")
    assert told(doctor(model, mse, batch(), strict).findings, "error", "a step cannot be taken: not finite")
    lbfgs = torch.optim.LBFGS(net().parameters())
    assert told(doctor(net(), mse, batch(), lbfgs).findings, "error", "a step cannot be taken")


def test_sparse_gradients_and_lazy_layers_are_findings() -> None:
    table = nn.Embedding(20, 4, sparse=True)

    def loss(model: nn.Module, rows: Any) -> Tensor:
        return torch.square(model(rows)).mean()

    assert told(doctor(table, loss, torch.arange(5)).findings, "error", "the gradient of weight is sparse")
    found = doctor(nn.LazyLinear(3), loss, torch.ones(2, 4))
    assert told(found.findings, "error", "no shape yet has weight, bias")
    assert told(doctor(nn.LazyBatchNorm1d(), loss, torch.ones(2, 4)).findings, "error", "no shape yet")
    loss(table, torch.arange(3)).backward()  # type: ignore[no-untyped-call]
    before = table.weight.grad
    doctor(table, loss, torch.arange(5))
    assert table.weight.grad is before


def test_it_may_be_asked_in_inference_mode() -> None:
    model, given = net(), batch()
    with torch.inference_mode():
        found = doctor(model, mse, given)
    assert len(found.losses) == 3


def test_mistakes_are_told() -> None:
    with pytest.raises(TypeError, match="takes a module first"):
        doctor(net().parameters(), mse, batch())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a function"):
        doctor(net(), 3, batch())  # type: ignore[arg-type]
    model = net()
    object.__setattr__(model, "handle", (each for each in "ab"))  # a generator cannot be copied
    with pytest.raises(TypeError, match="cannot be copied"):
        doctor(model, mse, batch())


TRAINING = """
import torch
from torch import nn

def mse(model, batch):
    return nn.functional.mse_loss(model(batch), torch.ones(8, 3))

def fine():
    return nn.Linear(6, 3), mse, torch.randn(8, 6)

def frozen():
    return nn.Linear(6, 3).requires_grad_(False), mse, torch.randn(8, 6)

def two():
    return 1, 2

def raises():
    return nn.Linear(5, 3), mse, torch.randn(8, 6)
"""


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("fine", 0, "nothing found"),
        ("frozen", 1, "error: no parameter requires a gradient"),
        ("two", 2, "is to return model, loss and batch"),
        ("raises", 2, "raised RuntimeError"),
        ("absent", 2, "has no absent"),
        ("", 2, "expected module:function"),
    ],
)
def test_on_the_command_line(
    name: str,
    status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a_training.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("a_training", None)
    assert cli.main(["doctor", f"a_training:{name}", "--full"]) == status
    out, err = capsys.readouterr()
    assert says in out + err
    if name == "raises":
        assert "a_training.py:6" in err
    if name == "fine":
        assert "update÷weight" in out
