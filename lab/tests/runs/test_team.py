"""Processes that `torchrun` has started train each run together, to the losses of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from jorge_lab.contenders import CONTENDERS
from jorge_lab.errors import UsageError
from jorge_lab.runs.team import Team, check_divides
from jorge_lab.tuning.search import open_storage

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def run(module: tuple[str, ...], *words: object) -> subprocess.CompletedProcess[str]:
    """A command, by torch's modules where several processes do it; again where gloo aborts at the end of a process."""
    command = [sys.executable, "-m", *module, "jorge", *map(str, words)]
    for _ in range(5):
        found = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=300, check=False
        )
        if "terminate called without an active exception" not in found.stderr:
            break
    return found


def compared(folder: Path, optimizers: str, *more: object, task: str = "lab.tests.tiny:tokens") -> list[object]:
    return ["compare", task, "--size", "smoke", "--optimizers", optimizers, "--out", folder, *more]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    return {record["optimizer"]: record for record in found}


def test_two_processes_come_to_the_losses_of_one_and_one_of_them_writes(tmp_path: Path) -> None:
    alone = run((), *compared(tmp_path / "alone", "jorge,sgd"))
    both = run(TORCHRUN, *compared(tmp_path / "both", "jorge,sgd"))
    assert alone.returncode == both.returncode == 0, both.stderr
    expected, found = records(tmp_path / "alone"), records(tmp_path / "both")
    assert (tmp_path / "both" / "runs.jsonl").read_text().count("\n") == 2
    assert both.stdout.count("2 runs; report:") == 1
    for name in ("jorge", "sgd"):
        assert found[name]["losses"] == pytest.approx(expected[name]["losses"], rel=1e-3)
        assert found[name]["settings"] == expected[name]["settings"]
        assert found[name]["environment"]["processes"] == 2
        assert found[name]["key"] == [*expected[name]["key"], "2 processes"]
    again = run(TORCHRUN, *compared(tmp_path / "both", "jorge,sgd"))
    assert "2 of 2 runs are in" in again.stdout
    assert (tmp_path / "both" / "runs.jsonl").read_text().count("\n") == 2


def test_all_opponents_that_can_take_the_same_steps_in_all_processes(tmp_path: Path) -> None:
    """The network has batch norms, and processes that differ in their weights at the end are an error."""
    found = run(TORCHRUN, *compared(tmp_path, "all", "--steps", 6, task="lab.tests.tiny:tiny"))
    assert found.returncode == 0, found.stderr
    there = {name for name, contender in CONTENDERS.items() if contender.missing() is None}
    assert records(tmp_path).keys() == there - {"singd", "sirfshampoo"}
    for name in {"singd", "sirfshampoo"} & there:
        assert f"left out: {name} looks at the examples that one process sees" in found.stdout


def test_a_run_goes_on_from_its_checkpoint_in_all_processes(tmp_path: Path) -> None:
    task, length = "jorge_lab.tasks.held_out:vae", ("--steps", 24, "--checkpoint-every", 1e-9)  # its loss draws
    whole = run(TORCHRUN, *compared(tmp_path / "whole", "jorge", *length, task=task))
    assert whole.returncode == 0, whole.stderr
    command = [*compared(tmp_path / "killed", "jorge", *length, task=task)]
    subprocess.run(
        [sys.executable, "-m", *TORCHRUN, "lab.tests.runs.killed", "12", *map(str, command)],
        capture_output=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    assert (tmp_path / "killed" / "runs.jsonl").read_text() == ""
    rest = run(TORCHRUN, *command)
    assert "goes on after step 11 of 24" in rest.stdout
    assert records(tmp_path / "killed")["jorge"]["losses"] == records(tmp_path / "whole")["jorge"]["losses"]


def test_trials_are_pruned_in_all_processes(tmp_path: Path) -> None:
    words = ["tune", "lab.tests.tiny:tokens", "--size", "smoke", "--optimizers", "sgd", "--trials", 5]
    studies = []
    for name, how in (("alone", ()), ("both", TORCHRUN)):
        found = run(how, *words, "--out", tmp_path / name, "--tuned", tmp_path / f"{name}.json")
        assert found.returncode == 0, found.stderr
        storage = open_storage(str(tmp_path / name / "tune.journal"))
        studies.append(optuna.load_study(study_name="tiny-tokens/smoke/sgd", storage=storage).get_trials())
    alone, both = studies
    assert [trial.params for trial in both] == [trial.params for trial in alone]
    assert [trial.state for trial in both] == [trial.state for trial in alone]
    assert {trial.state.name for trial in both} == {"COMPLETE", "PRUNED"}


def test_what_processes_cannot_share_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes batches of 20, which 3 processes.*--nproc-per-node 2 or another"):
        check_divides(20, 3)
    both = run(TORCHRUN, *compared(tmp_path, "sgd", "--workers", 2))
    assert both.returncode != 0
    assert "--workers is for one process" in both.stderr
    odd = run((*TORCHRUN[:3], "3", "-m"), *compared(tmp_path, "sgd"))
    assert "tiny-tokens takes batches of 20, which 3 processes cannot share evenly" in odd.stderr


def test_one_process_is_a_team_that_does_nothing() -> None:
    team = Team.here()
    assert (team.rank, team.size, team.first) == (0, 1, True)
    value = object()
    assert team.shared(value) is value
