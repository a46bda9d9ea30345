"""`jorge compare` as a user runs it: in a process of its own, on real data."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jorge_lab.commands.arguments import optimizers_named
from jorge_lab.contenders import CONTENDERS
from jorge_lab.runs import jobs
from jorge_lab.runs.run import first_loss
from jorge_lab.tasks import TASKS
from jorge_lab.tasks.task import DataMissingError

COMMAND = [sys.executable, "-m", "jorge", "compare"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False
    )


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    result = compare("mnist", "--size", "smoke", "--steps", 100, "--seeds", 2, "--out", folder)
    assert result.returncode == 0, result.stderr
    for word in ("Jorge", "SGD", "AdamW", "Shampoo", "steps to target", "report:", "step 100/100", "accuracy"):
        assert word in result.stdout
    return folder


@pytest.mark.slow
def test_records_and_summary(finished: Path) -> None:
    found = records(finished)
    assert len(found) == 8
    by_seed: dict[int, set[float]] = {}
    for record in found:
        assert {len(record[k]) for k in ("losses", "seconds", "cpu_seconds", "optimizer_seconds")} == {100}
        assert (record["setting"], record["size"]) == ("transferred", "smoke")
        assert record["seconds"] == sorted(record["seconds"])
        assert record["evaluations"][-1][0] == 100
        assert record["environment"]["torch"]
        by_seed.setdefault(record["seed"], set()).add(record["losses"][0])
    assert all(len(first_losses) == 1 for first_losses in by_seed.values()), "same weights, same batches"
    with (finished / "summary.csv").open() as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"jorge", "sgd", "adamw", "shampoo"}
    assert float(rows["adamw"]["speedup"]) == 1.0
    assert int(rows["jorge"]["state_bytes"]) > int(rows["adamw"]["state_bytes"]) > int(rows["sgd"]["state_bytes"]) > 0
    assert float(rows["jorge"]["step_ratio"]) < 0.9


@pytest.mark.slow
def test_finished_runs_are_not_trained_again(finished: Path) -> None:
    before = (finished / "runs.jsonl").read_bytes()
    result = compare(
        "mnist", "--size", "smoke", "--steps", 100, "--seeds", 2, "--out", finished, "--target", "0.000001"
    )
    assert result.returncode == 0
    assert "8 of 8 runs" in result.stdout
    assert (finished / "runs.jsonl").read_bytes() == before
    assert "not reached" in result.stdout
    assert "Jorge does not reach a loss of 1e-06; optimizer" in result.stdout
    # another optimizer is added to what is there, a line that was cut off is trained again
    with (finished / "runs.jsonl").open("a") as file:
        file.write('{"key": [1, "mnist"')
    result = compare(
        "mnist", "--size", "smoke", "--steps", 100, "--optimizers", "sgd,jorge-binomial", "--out", finished
    )
    assert "1 of 2 runs" in result.stdout
    good = (finished / "runs.jsonl").read_text().splitlines()
    assert len(good) == 10
    assert json.loads(good[-1])["optimizer"] == "jorge-binomial"


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    arguments = [
        "mnist",
        "--size",
        "smoke",
        "--steps",
        "120",
        "--optimizers",
        "sgd,adamw,jorge",
        "--out",
        str(tmp_path),
    ]
    # where the tests are a background job of a shell, they ignore the interrupt, and a child would as they do
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    signal.signal(signal.SIGINT, before)
    path = tmp_path / "runs.jsonl"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "are kept in" in out
    assert "Traceback" not in err
    kept = len(records(tmp_path))
    assert 1 <= kept < 3
    assert (tmp_path / "report.html").exists()
    again = compare(*arguments)
    assert f"{kept} of 3 runs" in again.stdout
    assert len(records(tmp_path)) == 3


def test_a_task_that_has_changed_is_seen_in_its_first_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    loss = first_loss(TASKS["mnist"]("smoke"), 0, TASKS["mnist"]("smoke").load())

    def stale(losses: list[float]) -> bool:
        return jobs.is_stale("mnist", "smoke", {"seed": 0, "losses": losses}, cpu)

    assert not stale([float(f"{loss:.5g}"), 1.0])
    assert not stale([])
    assert stale([1.001 * loss, 1.0])

    def missing(*_: object) -> float:
        raise DataMissingError("apt-get install it")

    monkeypatch.setattr(jobs, "_first_loss", missing)
    assert not stale([1.001 * loss]), "nothing is known against it"


@pytest.mark.slow
def test_a_diverging_optimizer_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    code = (
        "import sys, dataclasses\n"
        "from jorge_lab.tasks import TASKS\n"
        "t = TASKS['mnist']('smoke')\n"
        "hot = dataclasses.replace(t, recipe=dataclasses.replace(t.recipe, adamw={'lr': 1e30}))\n"
        "TASKS['mnist'] = lambda size: hot\n"
        "from jorge.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [
        "compare",
        "mnist",
        "--size",
        "smoke",
        "--steps",
        "20",
        "--optimizers",
        "adamw,sgd",
        "--out",
        str(tmp_path),
    ]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "diverged at step" in result.stdout
    assert result.stderr == ""
    adamw, sgd = records(tmp_path)
    assert adamw["diverged_at"] == len(adamw["losses"]) + 1
    assert sgd["diverged_at"] is None
    assert "diverged: seed 0 at step" in (tmp_path / "report.html").read_text()


def test_all_optimizers_may_be_named_in_one_word() -> None:
    assert optimizers_named("jorge:interval=2,all,sgd") == ["jorge:interval=2", *CONTENDERS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cifar"], "unknown task 'cifar': there are mnist, fashion, autoencoder"),
        (["mnist", "--optimizers", "sgd,adagrad"], "unknown optimizer 'adagrad'"),
        (["mnist", "--optimizers", ","], "--optimizers or --settings is empty"),
        (["mnist", "--optimizers", "sgd:interval=3"], "take other options"),
        (["mnist", "--optimizers", "jorge:interval"], "name=value"),
        (["mnist", "--optimizers", "schedule-free:schedule=cosine"], "has no schedule"),
        (["mnist", "--optimizers", "sgd:schedule=ramp"], "there is no schedule 'ramp'"),
        (["mnist", "--optimizers", "jorge:interval=0"], "interval"),
        (["mnist", "--optimizers", "sgd@best"], "there is no setting 'best'"),
        (["mnist", "--settings", "best"], "there is no setting 'best'"),
        (["mnist", "--size", "huge"], "invalid choice"),
        (["nowhere.at_all:task"], "cannot import the task"),
        (["mnist", "--out", "/proc/nowhere"], "cannot write to --out"),
        (["mnist", "--seeds", "0"], "at least 1"),
        (["mnist", "--epochs", "-1"], "above 0"),
        (["mnist", "--target", "low"], "--target takes a loss"),
        (["mnist", "shakespeare", "--target", "1"], "with several tasks"),
        (["mnist", "--target", "shakespeare=1"], "not among the tasks"),
        (["mnist", "--device", "abacus"], "--device abacus"),
        (["mnist", "--capture"], "--capture is for --device cuda"),
    ],
    ids=str,
)
def test_mistakes_are_told_without_a_traceback(arguments: list[str], says: str, tmp_path: Path) -> None:
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path)]
    result = compare(*arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_epochs_and_two_tasks_in_one_report(tmp_path: Path) -> None:
    result = compare(
        "mnist", "shakespeare", "--size", "smoke", "--steps", 20, "--optimizers", "sgd,adamw", "--out", tmp_path
    )
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "report.html").read_text()
    assert '<section id="mnist">' in page
    assert '<section id="shakespeare">' in page
    result = compare("mnist", "--size", "smoke", "--epochs", "0.5", "--optimizers", "sgd", "--out", tmp_path)
    half = round(0.5 * (4000 // TASKS["mnist"]("smoke").batch_size))
    assert f"step {half}/{half}" in result.stdout


@pytest.mark.slow
def test_side_by_side_and_by_settings(tmp_path: Path) -> None:
    """Two processes write what one writes; an optimizer may have a setting of its own."""
    arguments = ["mnist", "--size", "smoke", "--steps", 20, "--optimizers", "jorge,adamw@default,sgd:schedule=cosine"]
    for workers in (1, 2):
        result = compare(*arguments, "--workers", workers, "--out", tmp_path / str(workers))
        assert result.returncode == 0, result.stderr
    one, two = ({r["optimizer"]: r for r in records(tmp_path / str(n))} for n in (1, 2))
    assert list(one) == ["jorge", "adamw", "sgd:schedule=cosine"]
    for name, record in one.items():
        assert record["losses"] == two[name]["losses"]
        assert record["settings"] == two[name]["settings"]
    assert one["adamw"]["setting"] == "default"
    assert one["adamw"]["settings"]["lr"] == 1e-3
    # what was tuned for nobody is left out with a line that says how to tune
    result = compare(*arguments[:5], "--optimizers", "sgd@tuned,sgd:schedule=keep@tuned", "--out", tmp_path / "t")
    assert result.returncode == 2
    assert "left out: sgd was not tuned on mnist at size smoke: run `jorge tune mnist --optimizers sgd" in result.stdout
    assert "left out: sgd:schedule=keep was not tuned on mnist at size smoke" in result.stdout
    assert result.stderr == "jorge compare: nothing is left to run\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_settings_that_are_the_same_are_trained_once(tmp_path: Path, workers: int) -> None:
    recipe = TASKS["mnist"]("smoke").recipe
    tuned = tmp_path / "tuned.json"
    entry = {"adamw": {"options": recipe.adamw}, "sgd": {"options": {**recipe.sgd, "lr": 0.5 * recipe.sgd["lr"]}}}
    tuned.write_text(json.dumps({"mnist": {"smoke": entry}}))
    command = [
        "mnist",
        "--size",
        "smoke",
        "--steps",
        20,
        "--settings",
        "transferred,tuned",
        "--tuned",
        tuned,
        "--workers",
        workers,
    ]
    result = compare(*command, "--optimizers", "adamw,sgd", "--out", tmp_path / "both")
    assert result.returncode == 0, result.stderr
    found = {(r["optimizer"], r["setting"]): r for r in records(tmp_path / "both")}
    assert len(found) == len(records(tmp_path / "both")) == 4
    one, other = found["adamw", "transferred"], found["adamw", "tuned"]
    assert {name: value for name, value in one.items() if other[name] != value}.keys() == {"key", "setting"}
    assert found["sgd", "transferred"]["losses"] != found["sgd", "tuned"]["losses"]
    assert "4 of 4 runs" in compare(*command, "--optimizers", "adamw,sgd", "--out", tmp_path / "both").stdout
    # and those of an earlier command are taken
    compare("mnist", "--size", "smoke", "--steps", 20, "--optimizers", "adamw", "--out", tmp_path / "later")
    result = compare(*command, "--optimizers", "adamw", "--out", tmp_path / "later")
    assert "2 of 2 runs" in result.stdout
    assert [r["setting"] for r in records(tmp_path / "later")] == ["transferred", "tuned"]
