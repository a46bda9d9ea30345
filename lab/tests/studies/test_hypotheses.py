"""Changes of the step that were tried: each is one, none outlives its run, and what is learned from a run is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import jorge.step
from jorge import Jorge, grafting
from jorge_lab.contenders import CONTENDERS
from jorge_lab.runs.run import train
from jorge_lab.runs.store import Store
from jorge_lab.studies import hypotheses
from jorge_lab.studies.hypotheses import HYPOTHESES, changed
from lab.tests.factory import falling, record
from lab.tests.tiny import Images, Tokens, tiny

#: Of AdamW's recipe, with decay for what changes the decay.
TASK = replace(tiny(Tokens, steps=150), recipe=replace(tiny(Tokens).recipe, adamw={"lr": 1e-2, "weight_decay": 0.1}))


@pytest.fixture(scope="module")
def losses() -> list[float]:
    """Of Jorge as it is."""
    record = train(TASK, CONTENDERS["jorge"], 0, TASK.steps, TASK.load(), lambda *_: None)
    return [float(x) for x in record["losses"]]


@pytest.mark.parametrize("name", HYPOTHESES)
def test_a_hypothesis_changes_the_step_and_nothing_after_it(name: str, losses: list[float]) -> None:
    hooked = ("begin", "_directions", "_adapted", "move")
    before = grafting.ratios, *(vars(jorge.step)[hook] for hook in hooked)
    record = hypotheses.run(TASK, name, 0)
    assert (grafting.ratios, *(vars(jorge.step)[hook] for hook in hooked)) == before
    assert record["diverged_at"] is None
    assert record["losses"][-1] < record["losses"][0]
    same = record["losses"] == pytest.approx(losses, rel=1e-4)
    assert same == (name in ("as it is", "kernels too"))  # the model has no kernels


def test_a_recipe_for_sgd_alone_has_nothing_to_change() -> None:
    with pytest.raises(ValueError, match="tiny-images has no recipe for AdamW"):
        hypotheses.run(tiny(Images), "x1.3", 0)


def moved(name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix after three steps, what it was before the third, and the same without the change."""
    found = []
    for hypothesis in (name, "as it is"):
        torch.manual_seed(1)
        p = torch.nn.Parameter(torch.randn(6, 8))
        optimizer = Jorge([p], lr=0.1, **options)
        with changed(HYPOTHESES[hypothesis]):
            for _ in range(3):
                before = p.detach().clone()
                p.grad = torch.randn(6, 8) * torch.logspace(0, -2, 6)[:, None]
                optimizer.step()
        found.append((before, p.detach().clone()))
    return found[0][1], found[0][0], found[1][1]


def test_what_the_changes_are() -> None:
    after, before, _ = moved("constant", weight_decay=0.0)
    assert (after - before).square().mean().sqrt().item() == pytest.approx(0.1 * 0.4, rel=1e-4)
    after, before, _ = moved("norms kept")
    assert after.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
    after, before, _ = moved("as it is", weight_decay=0.0)
    longer, from_there, _ = moved("x1.3", weight_decay=0.0)
    assert (longer - from_there).norm().item() == pytest.approx(1.3 * (after - before).norm().item(), rel=1e-4)
    after, _, usual = moved("cautious decay", weight_decay=1.0)
    assert after.norm().item() > usual.norm().item()


def test_what_is_averaged_and_what_refreshes_see() -> None:
    """A first step is the same, as the average is then along the gradient; later ones are not."""
    steps = {}
    for name in ("as it is", "directions averaged", "refreshes by averages", "refreshes by averages later"):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.zeros(6, 8))
        optimizer = Jorge([p], lr=0.1, weight_decay=0.0, adapt_variance=False)
        found = []
        with changed(HYPOTHESES[name]):
            for _ in range(3):
                p.grad = torch.randn(6, 8)
                optimizer.step()
                found.append(p.detach().clone())
        steps[name] = found
    usual, directions, whitened, later = steps.values()
    for changes in (directions, whitened):
        assert torch.allclose(changes[0], usual[0], atol=1e-5)
        assert not torch.allclose(changes[2], usual[2], rtol=1e-3)
    assert torch.equal(later[2], usual[2])


def test_kernels_are_no_linear_maps_but_for_one_change() -> None:
    for name, has in (("as it is", False), ("kernels too", True)):
        kernel = torch.nn.Parameter(torch.randn(6, 4, 3))
        kernel.grad = torch.randn(6, 4, 3)
        optimizer = Jorge([kernel])
        with changed(HYPOTHESES[name]):
            optimizer.step()
        assert ("row_var" in optimizer.state[kernel]) == has


def test_decay_may_follow_the_schedule_once_more() -> None:
    kept = []
    for name in ("as it is", "scheduled decay"):
        p = torch.nn.Parameter(torch.ones(3, 4))
        optimizer = Jorge([p], lr=1.0, weight_decay=0.5)
        with changed(HYPOTHESES[name]):
            for lr in (0.4, 1.0, 0.1):
                optimizer.param_groups[0]["lr"], p.grad = lr, torch.zeros(3, 4)
                optimizer.step()
        kept.append(p[0, 0].item())
    assert kept == pytest.approx([0.8 * 0.5 * 0.95, 0.8 * 0.5 * 0.995])


def test_the_target_is_that_of_runs_as_long() -> None:
    runs = [record("sgd", 0, falling(0.02, 0), task="mnist"), record("sgd", 0, [9.0] * 50, task="mnist")]
    assert hypotheses.goals_of(runs, runs[0])[0] < 1
    assert hypotheses.goals_of(runs, runs[0] | {"size": "smoke"}) == {}


def test_it_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["mnist1d-mlp", "--size", "smoke", "--seeds", "1", "--out", str(tmp_path)]
    hypotheses.main([*given, "--hypotheses", "as it is"])
    hypotheses.main([*given, "--hypotheses", "as it is", "x1.3"])
    assert [r["hypothesis"] for r in Store.open(tmp_path, "hypotheses.jsonl").read()] == ["as it is", "x1.3"]
    out = capsys.readouterr().out
    assert "| Jorge as it is | – | " in out
    assert "| 1.3 times as long | – | " in out
