from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jorge import Jorge
from jorge.options import Options
from jorge.transfer import lr_factor


def params(count: int = 1) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(4, 4)) for _ in range(count)]


def test_sgds_options_by_the_papers_rule() -> None:
    a, b = params(2)
    sgd = torch.optim.SGD(
        [{"params": [("a", a)], "weight_decay": 0.0}, {"params": [("b", b)], "lr": 0.02}],
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
        maximize=True,
    )
    optimizer, _ = Jorge.from_sgd(sgd, total_steps=90)
    first, second = optimizer.param_groups
    assert (first["lr"], second["lr"]) == (0.1, 0.02)
    assert first["weight_decay"] == 0.0
    assert second["weight_decay"] == pytest.approx(5e-3)
    assert first["param_names"] == ["a"]
    for group in (first, second):
        assert group["grafting"] == "sgd"
        assert group["momentum"] == 0.9
        assert group["nesterov"]
        assert group["maximize"]


def test_the_decay_rule_matches_heavy_ball() -> None:
    """With no gradient, many steps of SGD with coupled decay shrink a weight as decoupled λ/(1−μ) does."""
    sgd_weight, weight = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    sgd = torch.optim.SGD([sgd_weight], lr=0.01, momentum=0.9, weight_decay=0.01)
    mirror = torch.optim.SGD([weight], lr=0.01, momentum=0.9, weight_decay=0.01)
    optimizer, _ = Jorge.from_sgd(mirror, schedule="keep")
    for _ in range(2000):
        sgd_weight.grad, weight.grad = torch.zeros(4), torch.zeros(4)
        sgd.step()
        optimizer.step()
    assert torch.allclose(sgd_weight, weight, rtol=0.02)


def test_adamws_options_are_kept() -> None:
    (p,) = params()
    adamw = torch.optim.AdamW([p], lr=3e-3, betas=(0.85, 0.99), eps=1e-6, weight_decay=0.2)
    optimizer, scheduler = Jorge.from_adamw(adamw)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-3, (0.85, 0.99), 1e-6, 0.2)
    assert group["grafting"] == "adam"
    assert group["nesterov"]
    assert group["beta2_decay"] == -0.8
    assert Options.of(group).momentum == 0.85
    p.grad = torch.randn(4, 4)
    optimizer.step()
    scheduler.step()
    assert group["lr"] == 3e-3


def test_schedules() -> None:
    sgd = torch.optim.SGD(params(), lr=1.0, momentum=0.9)
    optimizer, scheduler = Jorge.from_sgd(sgd, total_steps=30, warmup_steps=5)
    seen = []
    for _ in range(30):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6, *[0.1] * 10, *[0.01] * 10])
    cosine = lr_factor("cosine", total_steps=11, warmup_steps=1)
    assert [cosine(t) for t in (0, 1, 6, 11)] == pytest.approx([1, 1, 0.5, 0])
    assert lr_factor("keep", total_steps=None)(10**6) == 1.0


def test_the_peak_is_taken_where_a_scheduler_has_already_lowered_lr() -> None:
    sgd = torch.optim.SGD(params(), lr=0.5, momentum=0.9)
    torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.01)
    with pytest.warns(UserWarning, match="build it anew on the optimizer that comes out") as caught:
        optimizer, _ = Jorge.from_sgd(sgd, schedule="keep")
    assert [Path(warning.filename).name for warning in caught] == ["test_transfer.py"]
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("kind", ["from_sgd", "from_adamw"])
def test_a_scheduler_of_the_old_optimizer_is_told_of_once(kind: str) -> None:
    groups = [{"params": params(), "lr": lr} for lr in (0.1, 0.2)]
    old = torch.optim.SGD(groups) if kind == "from_sgd" else torch.optim.AdamW(groups)
    torch.optim.lr_scheduler.CosineAnnealingLR(old, T_max=10)
    with pytest.warns(UserWarning, match="a scheduler is attached") as caught:
        optimizer, _ = getattr(Jorge, kind)(old, schedule="keep")
    assert [Path(warning.filename).name for warning in caught] == ["test_transfer.py"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_overrides_give_the_shampoo_control() -> None:
    optimizer, _ = Jorge.from_sgd(torch.optim.SGD(params(), lr=0.1), total_steps=10, method="exact", interval=3)
    assert optimizer.param_groups[0]["method"] == "exact"
    assert optimizer.param_groups[0]["interval"] == 3


def test_the_explanation_names_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    sgd = torch.optim.SGD(params(), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=True)
    Jorge.from_sgd(sgd, total_steps=90, warmup_steps=5, explain=True, method="exact")
    said = capsys.readouterr().out
    for word in (
        "lr",
        "momentum",
        "nesterov",
        "weight_decay",
        "0.001",
        "λ/(1−μ)",
        "foreach",
        "one third",
        "method='exact'",
    ):
        assert word in said
    Jorge.from_sgd(sgd, total_steps=90)
    assert capsys.readouterr().out == ""
    Jorge.from_adamw(torch.optim.AdamW(params()), explain=True)
    said = capsys.readouterr().out
    assert "betas" in said
    assert "looks ahead" in said


class Lars(torch.optim.SGD):
    pass


def test_what_cannot_be_carried_over_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.optim\.SGD, got Lars"):
        Jorge.from_sgd(Lars(params(), lr=0.1), total_steps=10)
    with pytest.raises(TypeError, match="got AdamW"):
        Jorge.from_sgd(torch.optim.AdamW(params()), total_steps=10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got Adam:"):
        Jorge.from_adamw(torch.optim.Adam(params()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"group 0 has dampening=0\.5"):
        Jorge.from_sgd(torch.optim.SGD(params(), lr=0.1, momentum=0.9, dampening=0.5), total_steps=10)
    with pytest.raises(ValueError, match="amsgrad"):
        Jorge.from_adamw(torch.optim.AdamW(params(), amsgrad=True))


def test_a_scheduler_that_cycled_the_recipe_and_other_traps() -> None:
    sgd = torch.optim.SGD(params(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=10)
    with pytest.raises(ValueError, match="transfer first"):
        Jorge.from_sgd(sgd, total_steps=10)
    with pytest.raises(ValueError, match=r"group 0 has momentum=1\.0"):
        Jorge.from_sgd(torch.optim.SGD(params(), lr=0.1, momentum=1.0), total_steps=10)
    with pytest.raises(TypeError, match="params come from"):
        Jorge.from_sgd(torch.optim.SGD(params(), lr=0.1), total_steps=10, params=params())


def test_names_are_kept_and_unknown_keys_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    group: dict[str, Any] = {"params": params(), "name": "decoder", "lr_scale": 0.5}
    optimizer, _ = Jorge.from_sgd(torch.optim.SGD([group], lr=0.1), schedule="keep", explain=True)
    assert optimizer.param_groups[0]["name"] == "decoder"
    assert "kept for the program that set it" in capsys.readouterr().out
    with pytest.raises(TypeError, match="unknown option 'lr_scales'"):
        Jorge.from_sgd(torch.optim.SGD([group], lr=0.1), schedule="keep", lr_scales=0.5)


def test_groups_with_another_momentum_keep_it() -> None:
    groups: list[dict[str, Any]] = [{"params": params()}, {"params": params(), "momentum": 0.5}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer, _ = Jorge.from_sgd(sgd, schedule="keep")
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.5]
    assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.02])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs total_steps"),
        ({"total_steps": 0}, "total_steps must be"),
        ({"total_steps": 10, "warmup_steps": 11}, "more than total_steps"),
        ({"total_steps": 10, "warmup_steps": -1}, "warmup_steps must be"),
        ({"total_steps": 10, "schedule": "linear"}, "schedule must be one of"),
    ],
)
def test_schedules_that_do_not_fit(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Jorge.from_sgd(torch.optim.SGD(params(), lr=0.1), **options)  # type: ignore[arg-type]


def test_keys_of_the_training_program_are_carried_over(capsys: pytest.CaptureFixture[str]) -> None:
    """timm multiplies each group's lr by `lr_scale` at every step of its schedule."""
    weight = nn.Parameter(torch.ones(3, 3))
    pairs: list[tuple[Any, Any]] = [(torch.optim.AdamW, Jorge.from_adamw), (torch.optim.SGD, Jorge.from_sgd)]
    for make, convert in pairs:
        theirs = make([{"params": [weight], "lr_scale": 0.3, "name": "head", "use_fallback": False}], lr=0.1)
        optimizer, _ = convert(theirs, schedule="keep", explain=True)
        group = optimizer.param_groups[0]
        assert (group["lr_scale"], group["name"], group["use_fallback"]) == (0.3, "head", False)
        assert "lr_scale" in capsys.readouterr().out
        theirs.param_groups[0] |= {"interval": 100, "method": "muon", "no_weight_decay": True}
        optimizer, _ = convert(theirs, schedule="keep", explain=True)
        assert (optimizer.param_groups[0]["interval"], optimizer.param_groups[0]["no_weight_decay"]) == (5, True)
        assert "left out: an option of Jorge's has this name" in capsys.readouterr().out
