"""`--repeat`: the first seed's runs are trained several times, and each time is kept by itself."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from jorge_lab.runs.compare import open_records, train_all
from jorge_lab.runs.jobs import Job, jobs_for
from jorge_lab.runs.records import read, repetition
from jorge_lab.tasks import TASKS
from lab.tests.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _a_tiny_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "tiny-images", lambda size: tiny())


def jobs(repeat: int) -> list[Job]:
    return jobs_for(["tiny-images"], "smoke", ["sgd", "jorge"], ["transferred"], seeds=2, steps=3, repeat=repeat)


def trained(repeat: int, folder: Path) -> tuple[list[tuple[str, int, int]], str]:
    """Optimizer, seed and repetition of the records of the jobs, and what is said."""
    said = io.StringIO()
    found, status = train_all(jobs(repeat), open_records(folder), CPU, Console(file=said, width=200))
    assert status == 0
    return [(r["optimizer"], r["seed"], repetition(r)) for r in found], said.getvalue()


def test_the_first_seed_is_repeated_after_all_seeds() -> None:
    found = [(job.optimizer, job.seed, job.repetition) for job in jobs(3)]
    once = [("sgd", 0, 0), ("jorge", 0, 0), ("sgd", 1, 0), ("jorge", 1, 0)]
    assert found == [*once, ("sgd", 0, 1), ("jorge", 0, 1), ("sgd", 0, 2), ("jorge", 0, 2)]
    assert jobs(1) == jobs(3)[:4]
    assert jobs(3)[4].title == "tiny-images · sgd · seed 0, once more (1)"


def test_repetitions_are_kept_beside_the_runs_and_not_trained_again(tmp_path: Path) -> None:
    once, _ = trained(1, tmp_path)
    assert len(once) == 4
    found, said = trained(2, tmp_path)
    assert "4 of 6 runs" in said, "a repetition is not taken for the run"
    assert found == [*once, ("sgd", 0, 1), ("jorge", 0, 1)]
    before = (tmp_path / "runs.jsonl").read_bytes()
    found, said = trained(2, tmp_path)
    assert "6 of 6 runs" in said
    assert (tmp_path / "runs.jsonl").read_bytes() == before
    assert trained(1, tmp_path)[0] == once, "nor the run for a repetition"
    kept = read([tmp_path])
    assert len(kept) == 6
    run, again = (next(r for r in kept if repetition(r) == n and r["optimizer"] == "jorge") for n in (0, 1))
    assert run["losses"] == again["losses"]
    assert run["key"] == again["key"][:-1]
