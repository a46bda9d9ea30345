"""The runner, with jobs that take no time: what is kept, what is said, and how it ends."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console

from jorge_lab.errors import UsageError
from jorge_lab.runs.run import Watcher
from jorge_lab.runs.runner import do
from jorge_lab.runs.store import Record, Store
from jorge_lab.tasks import TASKS
from jorge_lab.tasks.task import DataMissingError, Size
from lab.tests.tiny import tiny

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """A job that ends as its name says."""

    title: str
    task: str = "tiny"
    size: Size = "smoke"
    steps: int = 1

    def run(self, device: torch.device, watch: Watcher) -> Record:
        if self.title == "fails":
            raise RuntimeError("no luck")
        if self.title == "interrupted":
            raise KeyboardInterrupt
        watch(1, 0.5, None)
        return {"title": self.title, "diverged_at": 1 if self.title == "diverges" else None}


@pytest.fixture(autouse=True)
def _a_task_with_data_and_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DataMissingError("apt-get install it")

    monkeypatch.setitem(TASKS, "tiny", lambda size: tiny())
    absent = tiny()
    object.__setattr__(absent, "load", missing)
    monkeypatch.setitem(TASKS, "absent", lambda size: absent)


def done(jobs: list[Job], folder: Path, before: dict[Job, Record] | None = None) -> tuple[int, list[str], str]:
    """The exit status, the titles that are kept in the file, and what is said."""
    store, said = Store.open(folder, "jobs.jsonl"), io.StringIO()
    found = dict(before or {})
    status = do(jobs, found, len(jobs) + len(found), store, CPU, Console(file=said, width=200), 1)
    assert [r["title"] for r in store.read()] == [j.title for j in found if j not in (before or {})]
    return status, [r["title"] for r in store.read()], said.getvalue()


def test_one_that_fails_or_diverges_does_not_cost_the_others(tmp_path: Path) -> None:
    status, kept, said = done([Job("a"), Job("fails"), Job("diverges"), Job("b")], tmp_path)
    assert (status, kept) == (1, ["a", "diverges", "b"])
    assert "fails: failed, the others go on. RuntimeError: no luck" in said
    assert "diverges: diverged at step 1" in said


def test_what_is_done_is_said_and_kept_when_the_keyboard_stops_it(tmp_path: Path) -> None:
    status, kept, said = done([Job("a"), Job("interrupted"), Job("b")], tmp_path, {Job("earlier"): {}})
    assert (status, kept) == (130, ["a"])
    assert "1 of 4 runs are in" in said
    assert "stopped: 2 of 4 runs are kept in" in said


def test_jobs_without_data_are_left_out(tmp_path: Path) -> None:
    status, kept, said = done([Job("a"), Job("c", task="absent")], tmp_path)
    assert (status, kept) == (0, ["a"])
    assert "absent is left out: apt-get install it" in said
    with pytest.raises(UsageError, match="nothing can be run"):
        done([Job("c", task="absent")], tmp_path)


def test_a_record_may_be_kept_under_several_jobs(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "jobs.jsonl")
    found: dict[Job, Record] = {}
    twin = Job("twin")
    status = do(
        [Job("a")],
        found,
        2,
        store,
        CPU,
        Console(file=io.StringIO()),
        1,
        lambda job, record: {job: record, twin: {**record, "title": "twin"}},
    )
    assert status == 0
    assert set(found) == {Job("a"), twin}
    assert [r["title"] for r in store.read()] == ["a", "twin"]


def test_a_line_that_was_cut_off_is_ended_and_not_read(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "jobs.jsonl")
    store.path.write_text('{"title": "a"}\n{"title": "b')
    store.add({"title": "c"})
    assert [r["title"] for r in store.read()] == ["a", "c"]
