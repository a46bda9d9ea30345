"""The ablations: their optimizers can all be built, and the command trains them and writes a page."""

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from jorge.schedule import Schedule
from jorge_lab.commands.ablate import COMMAND
from jorge_lab.contenders import settings
from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.compare import open_records
from jorge_lab.runs.records import measured
from jorge_lab.runs.run import key
from jorge_lab.studies.ablation_page import page
from jorge_lab.studies.ablations import ABLATIONS, jobs_of, records_of, share
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Task
from lab.tests.factory import comparison, record
from lab.tests.tiny import Images, Tokens, tiny

TASKS = [tiny(Images), tiny(Tokens)]
CPU = torch.device("cpu")


def ablate(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.add(parser.add_subparsers())
    args = parser.parse_args(["ablate", *map(str, arguments)])
    status: int = args.run(args)
    return status


def built(name: str, task: Task) -> dict[str, Any]:
    """The settings of an optimizer, with the schedule's factor in the middle of a run."""
    optimizer, scheduler = find_contender(name).build(task, task.model(), 100)
    middle = [factor(60) for factor in scheduler.lr_lambdas]
    return {**settings(optimizer), "optimizer": type(optimizer).__name__, "middle": middle}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.recipe.baseline)
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_optimizer_is_built_and_no_two_are_the_same(name: str, task: Task) -> None:
    names = ABLATIONS[name].names(task)
    assert names[:2] == [task.recipe.baseline, "jorge"]
    found = [built(optimizer, task) for optimizer in names]
    twins = [b for i, b in enumerate(names) if any(found[i] == found[j] for j in range(i))]
    assert not twins


@pytest.mark.parametrize(
    ("name", "option", "wanted"),
    [
        ("interval", "interval", {1, 2, 5, 10, 20, 50}),
        ("memory", "preconditioner_beta2", {0.8, 0.9, 0.95, 0.98, 0.99}),
        ("damping", "damping", {0, 1e-5, 1e-4, 1e-3}),
        ("warmup", "warmup_refreshes", {0, 10, 20, 40}),
        ("block-size", "block_size", {32, 64, 128, "auto", 256, 1024, None}),
        ("degree", "degree", {1, 2}),
        ("grafting", "grafting", {"sgd", "adam"}),
        ("length-memory", "beta2_decay", {None, -0.8}),
        ("dtype", "preconditioner_dtype", {None, "torch.bfloat16"}),
        ("dtype", "matmul_precision", {None, "bfloat16"}),
        ("method", "method", {"whitening", "congruence", "binomial", "exact"}),
    ],
)
def test_the_values_that_an_option_takes(name: str, option: str, wanted: set[object]) -> None:
    for task in TASKS:
        found: dict[str, set[object]] = {}
        for optimizer in ABLATIONS[name].names(task)[1:]:
            chosen = built(optimizer, task)
            found.setdefault(str(chosen["method"]), set()).add(chosen[option])
        together = set().union(*found.values())
        assert together == wanted
        if name == "interval":
            assert found == {"whitening": wanted, "exact": wanted}


def test_no_two_intervals_refresh_at_the_same_steps() -> None:
    task = tiny(Images)
    for method in ("whitening", "exact"):
        found = [built(name, task) for name in ABLATIONS["interval"].names(task)[1:]]
        schedules = [Schedule(s["interval"], s["warmup_refreshes"]) for s in found if s["method"] == method]
        refreshes = {tuple(step for step in range(1, 301) if schedule.at(step)) for schedule in schedules}
        assert len(refreshes) == len(schedules) == 6


def test_the_schedules_of_the_baseline_and_of_jorge() -> None:
    names = ABLATIONS["schedule"].names(tiny(Images))
    assert Counter(name.partition(":")[0] for name in names) == {"sgd": 3, "jorge": 3}
    middles = {name: built(name, tiny(Images))["middle"] for name in names}
    assert len({str(middle) for middle in middles.values()}) == 3
    assert middles["sgd:schedule=step"] == middles["jorge:schedule=step"] == [pytest.approx(0.1)]


def test_the_list_names_every_ablation(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*ABLATIONS, "error"]
    assert all(line.endswith("?") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name an ablation: interval, method"),
        (["colour"], "there is no ablation 'colour'"),
        (["damping", "cifar"], "unknown task 'cifar'"),
        (["error", "cifar"], "unknown task 'cifar'"),
        (["damping", "mnist", "--device", "abacus"], "--device abacus"),
        (["damping", "mnist", "--out", "/proc/nowhere"], "cannot write to --out"),
        (["error", "mnist", "--out", "/proc/nowhere"], "cannot write to --out"),
    ],
    ids=str,
)
def test_mistakes_are_told(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate(*arguments) == 2
    assert says in capsys.readouterr().err


def test_the_page_shows_losers_and_what_varies() -> None:
    runs = comparison("mnist", {"sgd": 0.02, "jorge": 0.06, "jorge:interval=50": 0.001, "jorge:interval=1": 0.07})
    runs += [record("jorge:interval=2", seed, [2.0, 1.0], steps=200) for seed in range(3)]
    for run in runs:
        _, _, value = run["optimizer"].partition("=")
        run["settings"] = {"lr": 0.1} | ({"interval": int(value or 5)} if "jorge" in run["optimizer"] else {})
    text = page(ABLATIONS["interval"], "jorge ablate interval mnist", runs)
    assert text.startswith("# Ablation: interval\n\n" + ABLATIONS["interval"].question)
    assert "`jorge ablate interval mnist`" in text
    assert "- CPU (Linux), 1 thread, jorge 0.1, torch 2, Python 3; 2026-11-23" in text
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert table[0][:3] == ["optimizer", "interval", "warmup_refreshes"]
    assert table[0][3:5] == ["steps ÷ baseline's", "seconds ÷ baseline's"]
    shown = {line[0]: line for line in table[2:]}
    assert [shown[name][1] for name in ("SGD", "Jorge", "jorge:interval=50")] == ["–", "5", "50"]
    assert shown["SGD"][3] == "1.00, slower (2.82–2.82)"
    assert shown["jorge:interval=50"][3] == "not reached, slower (never gets there)"
    assert "diverged" in shown["jorge:interval=2"][5]
    assert len({len(line) for line in table}) == 1


def test_where_and_when() -> None:
    runs = [record("sgd", 0, [1.0], date=date) for date in ("2026-11-24", "2026-11-23")]
    (line,) = measured(runs)
    assert line.endswith("2026-11-23 to 2026-11-24")
    runs[0]["environment"]["device"] = "Another"
    assert len(measured([*runs, {"seed": 0}])) == 3


def test_runs_in_common_are_shared_on_the_same_machine_only(tmp_path: Path) -> None:
    from jorge_lab.runs.environment import environment

    task = find_task("mnist", "smoke")
    jobs = jobs_of(ABLATIONS["damping"], [task], ["mnist"], "smoke", 1, 30)
    assert [job.optimizer for job in jobs][:2] == ["adamw", "jorge"]

    def written(name: str, folder: str, **other: object) -> dict[str, Any]:
        run = record(name, 0, [1.0], task="mnist", size="smoke")
        job = next(job for job in jobs if job.optimizer == name)
        run["key"] = key(task, find_contender(name), "transferred", 0, 30)
        run["settings"] = job.settings() | other
        run["environment"] = environment(CPU)
        open_records(tmp_path / folder).add(run)
        return run

    mine = open_records(tmp_path / "damping")
    written("jorge", "interval")
    written("jorge", "method", lr=3.0)
    written("adamw", "elsewhere")
    path = tmp_path / "elsewhere" / "runs.jsonl"
    path.write_text(path.read_text().replace('"threads":1', '"threads":64'))
    assert share(jobs, mine, CPU) == 1
    assert share(jobs, mine, CPU) == 0
    (found,) = records_of(jobs, mine)
    assert found["optimizer"] == "jorge"
    assert found["settings"]["lr"] != 3.0


@pytest.mark.slow
def test_an_ablation_is_trained_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs" / "damping.md"
    small = ("mnist", "--size", "smoke", "--steps", 30, "--seeds", 2, "--out", tmp_path / "out")
    assert ablate("damping", *small, "--docs", docs) == 0
    text = docs.read_text()
    assert text == (tmp_path / "out" / "damping" / "page.md").read_text()
    assert "`jorge ablate damping mnist --size smoke --seeds 2 --steps 30`" in text
    assert str(tmp_path) not in text
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")][2:]
    found = {label.strip(): value.strip() for label, value in rows}
    assert found == {
        "AdamW": "–",
        "Jorge": "0.0001",
        "Jorge, damping=0": "0",
        "Jorge, damping=1e-05": "1e-05",
        "Jorge, damping=0.001": "0.001",
    }
    docs.unlink()
    assert ablate("damping", *small, "--docs", docs.parent) == 0  # a folder
    assert docs.read_text() == text
    # what it has in common with another is not trained again
    capsys.readouterr()
    assert ablate("grafting", *small) == 0
    assert "4 of 6 runs" in capsys.readouterr().out
    assert "Jorge, grafting=sgd" in (tmp_path / "out" / "grafting" / "page.md").read_text()


@pytest.mark.slow
def test_the_error_is_followed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs" / "error.md"
    arguments = ("error", "mnist", "--size", "smoke", "--steps", 25, "--seeds", 1, "--out", tmp_path, "--docs", docs)
    assert ablate(*arguments) == 0
    text = docs.read_text()
    for label in ("Jorge", "Jorge, congruence", "Jorge, binomial (paper)", "Shampoo"):
        assert sum(line.startswith(f"| {label} |") for line in text.splitlines()) == 2
    assert "(images/error-mnist.svg)" in text
    assert (docs.parent / "images" / "error-mnist.svg").read_text().startswith("<svg")
    assert "(error-mnist.svg)" in (tmp_path / "error" / "page.md").read_text()
    path = tmp_path / "error" / "approximation.jsonl"
    lines = path.read_text().splitlines()
    assert [json.loads(line)["optimizer"] for line in lines] == [
        "jorge",
        "jorge-congruence",
        "jorge-binomial",
        "shampoo",
    ]
    # one that was cut off is done again, side by side with none
    path.write_text("\n".join([*lines[:3], lines[3][:50]]))
    capsys.readouterr()
    assert ablate(*arguments, "--workers", 2) == 0
    assert "3 of 4 runs are in" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 5
    assert docs.read_text() == text


def test_ablations_are_not_changed_by_a_task() -> None:
    """Names are formatted for each task anew."""
    sgd, adamw = TASKS
    assert ABLATIONS["grafting"].names(sgd)[2:] == ["jorge:grafting=adam"]
    assert ABLATIONS["grafting"].names(adamw)[2:] == ["jorge:grafting=sgd"]
    cosine = dataclasses.replace(sgd, recipe=dataclasses.replace(sgd.recipe, schedule="step"))
    assert "sgd:schedule=cosine" in ABLATIONS["schedule"].names(cosine)
    assert "sgd:schedule=step" not in ABLATIONS["schedule"].names(cosine)
