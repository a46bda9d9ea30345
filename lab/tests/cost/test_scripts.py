"""Each benchmark script from end to end with `--quick`: the structure of its figures, and counts, never seconds.

The rivals' packages need not be there: what is missing is a line of the table.
"""

import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial, create_trial

from jorge_lab.cost import harness, import_time, iteration_overhead, launches, memory, shapes, stagger, step_time
from jorge_lab.cost.rivals import RIVALS
from jorge_lab.tasks import held_out
from jorge_lab.tuning import pruning, recipes
from jorge_lab.tuning.search import REPORTS

pytestmark = pytest.mark.slow

PACKAGED = "soap-heavyball"


def figures(
    main: Callable[[Sequence[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> Any:
    out = tmp_path / "out.json"
    main(["--quick", "--threads", "1", "--out", str(out), *options])
    printed = capsys.readouterr().out
    assert "threads; torch" in printed.splitlines()[0]
    assert "\n|---|" in printed
    found = json.loads(out.read_text())
    assert {"torch", "threads", "date", "cpu"} <= set(found["environment"])
    return found


def rows_by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows without those of rivals that are not installed, which say how to install them."""
    for row in rows:
        assert "missing" not in row or "pip install" in row["missing"]
    return {row["optimizer"]: row for row in rows if "missing" not in row}


def test_a_missing_package_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    packaged = [name for name, rival in RIVALS.items() if rival.package]
    memory.main(["--quick", "--optimizers", *packaged])
    lines = capsys.readouterr().out.splitlines()
    assert sum("not installed: pip install" in line for line in lines) == len(packaged)


def test_step_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sgd", "muon-float32", "jorge", "jorge-exact", "jorge-16", PACKAGED]
    found = figures(step_time.main, tmp_path, capsys, "--together", "4", "--optimizers", *names)
    (model,) = found["models"].values()
    assert model["gemm_flops_per_second"] > 0
    rows = [row for row in model["rows"] if "missing" not in row]
    assert [row["optimizer"] for row in rows].count("sgd") == 1  # once, though it runs in both batches
    for name in ("jorge", "jorge-exact", "jorge-16"):
        work = {row["interval"]: row["flops"] for row in rows if row["optimizer"] == name}
        assert list(work) == [1, 10, 50, "never"]
        assert work[1] > work[10] > work[50] > work["never"] > 0
    for row in rows:
        assert row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1]
        assert row["to_sgd"] > 0
        assert (row["to_gemm"] is None) == (row["flops"] == 0)


def test_step_time_in_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = []
    for options in ((), ("--blocks",)):
        found = figures(step_time.main, tmp_path, capsys, "--optimizers", "jorge", *options)
        work.append([row["flops"] for row in found["models"]["tiny"]["rows"]])
    assert work[0] == pytest.approx(work[1])


def test_iteration_overhead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(iteration_overhead.main, tmp_path, capsys)
    assert set(found["models"]) == {"resnet18", "vit", "gpt"}
    for model in found["models"].values():
        rows = rows_by_name(model["rows"])
        assert rows["sgd"]["to_sgd"] == 1
        assert {"adamw", "muon-float32", "jorge", "jorge/1"} <= set(rows)
        assert all(row["rounds"] >= 2 and row["to_sgd"] > 0 for row in rows.values())


def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sgd", "adamw", "jorge", "jorge-bf16", "jorge-16", PACKAGED]
    found = figures(memory.main, tmp_path, capsys, "--optimizers", *names)
    rows = rows_by_name(found["models"]["tiny"]["rows"])
    assert rows["sgd"]["state"] == 1
    assert rows["adamw"]["state"] == pytest.approx(2, abs=0.01)  # and a counter a parameter
    assert rows["jorge"]["state"] > rows["jorge-bf16"]["state"] > 1
    for name in ("jorge", "jorge-bf16", "jorge-16"):
        nbytes = rows[name]["bytes"]
        assert nbytes["state"] == nbytes["plan"]
        assert nbytes["peak_refresh"] >= nbytes["peak_plain"] > 0


def test_launches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sgd", "muon-float32", "jorge", "jorge-exact", PACKAGED]
    found = figures(launches.main, tmp_path, capsys, "--optimizers", *names)
    rows = rows_by_name(found["rows"])
    for row in rows.values():
        counts = row["models"]["tiny"]
        assert 0 < counts["operators"][1] <= counts["operators"][0] <= counts["with_views"][0]
        assert counts["kernels"] is None
        assert row["growth"] == [1, 1]
    assert rows["jorge"]["models"]["tiny"]["operators"][0] > rows["jorge"]["models"]["tiny"]["operators"][1]
    assert rows["jorge"]["waits"] == 0
    assert rows["jorge-exact"]["waits"] > 0


def test_import_time(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.2 <= import_time.seconds("time.sleep(0.2)") < 5, "torch, which takes as long, is imported before"
    clock = iter([0.001, 0.03, 0.04, 0.003, 0.05, 0.08])
    monkeypatch.setattr(import_time, "seconds", lambda statement: next(clock))
    found = figures(import_time.main, tmp_path, capsys)
    assert {row["import"]: row["ms"] for row in found["rows"]} == pytest.approx({"jorge": 38, "jorge.cost": 58})


def test_stagger(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    def seconds(call: Callable[[], object], device: torch.device) -> float:
        call()
        taken.append(3.0 if len(taken) == 7 else 1.0)  # one late step of the first
        return taken[-1]

    monkeypatch.setattr(harness, "seconds", seconds)
    found = figures(stagger.main, tmp_path, capsys)
    (rows,) = found["models"].values()
    assert [(row["stagger"], row["steps"]) for row in rows] == [("False", 20), ("True", 20)]
    # of twenty the 99th percentile lies 0.81 of the way from the last but one to the last
    assert [row["p99"] for row in rows] == pytest.approx([2.62, 1])
    assert [row["ratio"] for row in rows] == pytest.approx([2.62, 1])
    assert [row["mean"] for row in rows] == pytest.approx([1.1, 1])


def test_staggered_refreshes_are_spread_over_the_interval() -> None:
    named = shapes.parameters("tiny", torch.device("cpu"))
    work = []
    for spread in (False, True):
        contender = stagger._contender(named, stagger=spread)
        work.append([harness.flops(contender.step) for _ in range(stagger.INTERVAL)])
    assert max(work[0]) > 2 * sorted(work[0])[-2], "all in one step"
    assert max(work[1]) < 0.7 * max(work[0])


def test_pruning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(pruning.main, tmp_path, capsys)
    assert found["studies"] == 2
    hours = [row["hours"] for row in found["rows"]]
    assert hours == sorted(hours, reverse=True)  # the rules are in the order of how soon they stop a trial
    assert hours[-1] > 0


def test_a_stopped_trial_costs_its_share_and_what_it_would_have_found_is_lost() -> None:
    def trial(number: int, values: Sequence[float]) -> FrozenTrial:
        made = create_trial(value=values[-1], intermediate_values=dict(enumerate(values, start=1)))
        made.number, made.datetime_start = number, datetime(2026, 1, 1)
        made.datetime_complete = made.datetime_start + timedelta(seconds=100)
        return made

    level, late = [2.0] * REPORTS, [3.0] * (REPORTS - 1) + [1.0]
    trials = [trial(0, level), trial(1, level), trial(2, late)]
    assert pruning.replay(trials, 3, 5) == pruning.Replayed(300, 1.0)  # too few are complete for any to be stopped
    assert pruning.replay(trials, 2, 5) == pruning.Replayed(225, 2.0)
    assert pruning.replay(trials[::-1], 2, 5) == pruning.Replayed(300, 1.0)  # the first is never stopped


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1.0, (0.3, 1.0, 3.0)),
        (3.0, (0.3, 1.0, 3.0, 10.0)),
        (30.0, (0.3, 1.0, 3.0, 10.0, 30.0)),
        (0.1, (0.03, 0.1, 0.3, 1.0, 3.0)),
    ],
)
def test_a_grid_of_learning_rates_goes_on_until_its_best_is_inside(best: float, tried: Sequence[float]) -> None:
    found = recipes.bottom(lambda factor: max(factor / best, best / factor))
    assert tuple(found) == tried
    assert min(found, key=found.__getitem__) == best


def test_a_grid_in_which_nothing_converges_ends() -> None:
    assert set(recipes.bottom(lambda _: math.inf).values()) == {math.inf}


def test_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(recipes.main, tmp_path, capsys, "jorge_lab.tasks.held_out:denoising")
    (losses,) = found["losses"].values()
    rate = held_out.denoising("smoke")["adamw"]["lr"]
    factors = [float(lr) / rate for lr in losses]
    place = recipes.GRID.index(pytest.approx(factors[0]))
    assert factors == pytest.approx(recipes.GRID[place : place + len(factors)])
    assert {0.3, 1.0, 3.0} <= {round(factor, 6) for factor in factors}
    # the noise alone has a squared error of 0.01: a rate that is good takes a part of it off
    assert min(losses.values()) < 0.02
