"""A run that is cut off goes on from its checkpoint to the same losses, to the bit."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from jorge_lab.contenders import CONTENDERS, restore
from jorge_lab.runs import run
from jorge_lab.runs.checkpoints import Checkpoint, CheckpointError, Checkpoints
from jorge_lab.runs.compare import train_all
from jorge_lab.runs.jobs import Job
from jorge_lab.runs.progress import progress
from jorge_lab.runs.run import train
from jorge_lab.runs.store import Record, Store
from jorge_lab.tasks import TASKS
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Data, Task
from lab.tests.tiny import Images, Tokens, tiny

CPU = torch.device("cpu")
DEVICES = [CPU, *[torch.device("cuda")] * torch.cuda.is_available()]
SUITE = ("jorge", "sgd", "adamw", "shampoo", "soap", "muon", "psgd")
#: Seconds of the clock below, of which a step takes four: a checkpoint every third step.
EVERY = 12.0


@dataclass
class Clock:
    """Stands for the module `time`: each look at it takes a second."""

    now: float = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now

    process_time = perf_counter


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(run, "time", found)
    return found


class CutOffError(Exception):
    """Raised in the middle of a run."""


def steps_of(
    task: Task, name: str, checkpoints: Checkpoints | None = None, until: int | None = None, device: torch.device = CPU
) -> tuple[Record | None, dict[int, tuple[float, float | None]]]:
    """The record, None where the run is cut off, and each step's loss, not rounded, and newest metric."""
    if missing := CONTENDERS[name].missing():
        pytest.skip(missing)
    seen = {}

    def watch(step: int, loss: float, metric: float | None) -> None:
        seen[step] = loss, metric
        if step == until:
            raise CutOffError

    try:
        data = task.load().to(device)
        return train(task, CONTENDERS[name], 3, task.steps, data, watch, checkpoints=checkpoints), seen
    except CutOffError:
        return None, seen


def see_that_it_goes_on(task: Task, name: str, folder: Path, device: torch.device = CPU) -> None:
    """Cut it off twice; the steps since the checkpoint are made again, and are the same."""
    whole, steps = steps_of(task, name, device=device)
    checkpoints = Checkpoints(folder, EVERY)
    cuts = task.steps // 3, 3 * task.steps // 4
    for cut, first in zip(cuts, (1, cuts[0] - cuts[0] % 3 + 1), strict=True):
        _, seen = steps_of(task, name, checkpoints, cut, device)
        assert seen == {step: steps[step] for step in range(first, cut + 1)}
    record, seen = steps_of(task, name, checkpoints, device=device)
    assert min(seen) == cuts[1] - cuts[1] % 3 + 1
    assert seen == {step: steps[step] for step in range(min(seen), task.steps + 1)}
    assert record == whole, "seconds, too: each step has taken four, and the time between the runs is not counted"


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("model", [Images, Tokens])
@pytest.mark.parametrize("name", CONTENDERS)
def test_each_optimizer_goes_on(name: str, model: type[nn.Module], device: torch.device, tmp_path: Path) -> None:
    see_that_it_goes_on(tiny(model), name, tmp_path, device)


@pytest.mark.parametrize("name", ["sgd", "adamw", "jorge"])
def test_a_task_with_noise_of_its_own_goes_on(name: str, tmp_path: Path) -> None:
    task = find_task("jorge_lab.tasks.held_out:vae", "smoke")
    gentle = replace(task.recipe, sgd={**task.recipe.sgd, "lr": 1e-4})  # it has no recipe for SGD, and diverges
    see_that_it_goes_on(replace(task, recipe=gentle), name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize("task", ["mnist", "shakespeare"])
def test_the_suite_goes_on(task: str, name: str, tmp_path: Path) -> None:
    see_that_it_goes_on(replace(TASKS[task]("smoke"), steps=40), name, tmp_path)


def test_the_time_between_is_not_counted(clock: Clock, tmp_path: Path) -> None:
    task, checkpoints = tiny(steps=12), Checkpoints(tmp_path, EVERY)
    steps_of(task, "sgd", checkpoints, 8)
    clock.now += 1e6
    record, _ = steps_of(task, "sgd", checkpoints)
    assert record is not None
    assert record["seconds"] == [4.0 * step for step in range(1, 13)]
    assert record["optimizer_seconds"] == [1.0] * 12


def test_a_run_that_diverges_after_it_went_on_is_recorded_as_if_it_had_not_been_cut_off(tmp_path: Path) -> None:
    def explode(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        loss = tiny().loss(model, batch)
        return loss / (loss.detach() > 1.0)  # becomes infinite in the end

    task = replace(tiny(), loss=explode)
    whole, _ = steps_of(task, "adamw")
    assert whole is not None
    assert whole["diverged_at"] > 4
    steps_of(task, "adamw", Checkpoints(tmp_path, EVERY), whole["diverged_at"] - 1)
    assert steps_of(task, "adamw", Checkpoints(tmp_path, EVERY))[0] == whole


@pytest.mark.parametrize(("count", "batch"), [(60, 20), (61, 20), (7, 20), (20, 20)])
def test_skipped_batches_are_the_first(count: int, batch: int) -> None:
    task = replace(tiny(), batch_size=batch)
    data = Data((torch.arange(count),), (torch.arange(1),))
    whole = [b[0].tolist() for b in islice(task.batches(data, 5), 12)]
    for skip in range(9):
        assert [b[0].tolist() for b in islice(task.batches(data, 5, skip), 12 - skip)] == whole[skip:]


def test_a_state_is_put_back_in_the_dtype_it_had() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    third = torch.tensor(1 / 3, dtype=torch.float64)
    optimizer.state[weight] = {"deep": {"list": [third, torch.ones(1)], "count": 3}}
    saved = optimizer.state_dict()
    other = torch.optim.SGD([weight], lr=0.1)
    restore(other, saved)
    inside = other.state[weight]["deep"]
    assert torch.equal(inside["list"][0], third), "torch would have rounded it to the weight's float32"
    assert (inside["list"][1].dtype, inside["count"]) == (torch.float32, 3)


def test_a_write_that_is_cut_off_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, key = Checkpoints(tmp_path / "made", 1.0), [2, "mnist", 0]
    assert checkpoints.read(key) is None
    checkpoints.write(key, {"losses": [1.0]})

    def stop(checkpoint: Checkpoint, file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise CutOffError

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(CutOffError):
        checkpoints.write(key, {"losses": [2.0]})
    assert checkpoints.read(key) == {"losses": [1.0]}
    assert checkpoints.read([2, "mnist", 1]) is None, "each run has its own"
    checkpoints.remove(key)
    assert list(checkpoints.folder.iterdir()) == []


JOB = Job("tiny", "smoke", "adamw", "transferred", seed=0, steps=40)


@pytest.fixture
def left_at_17(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    """The checkpoints of an output folder whose one run was cut off after step 17."""
    monkeypatch.setitem(TASKS, "tiny", lambda size: tiny())

    def watch(step: int, loss: float, metric: float | None) -> None:
        if step == 17:
            raise CutOffError

    checkpoints = Checkpoints(tmp_path / "checkpoints", 1.0)
    with pytest.raises(CutOffError):
        replace(JOB, checkpoints=checkpoints).run(CPU, watch)
    return checkpoints


def trained(checkpoints: Checkpoints | None, folder: Path) -> tuple[list[Record], str]:
    """The records of the run, and what is said."""
    said = io.StringIO()
    store = Store.open(folder, "runs.jsonl")
    records, status = train_all([JOB], store, CPU, Console(file=said, width=200), checkpoints=checkpoints)
    assert status == 0
    assert store.read() == [{**records[0], "evaluations": list(map(list, records[0]["evaluations"]))}]
    return records, said.getvalue()


def test_a_command_goes_on_and_removes_the_checkpoint_when_the_record_is_kept(
    left_at_17: Checkpoints, tmp_path: Path
) -> None:
    whole, _ = trained(None, tmp_path / "other")
    records, said = trained(left_at_17, tmp_path)
    assert "tiny · adamw · seed 0: goes on after step 17 of 40" in said
    assert records == whole
    assert list(left_at_17.folder.iterdir()) == []
    # of a command that was cut off between the record and the removal
    left_at_17.write(JOB.key(), {})
    trained(left_at_17, tmp_path)
    assert list(left_at_17.folder.iterdir()) == []


def test_a_repetition_has_a_checkpoint_of_its_own(left_at_17: Checkpoints, tmp_path: Path) -> None:
    def watch(step: int, loss: float, metric: float | None) -> None:
        if step == 21:
            raise CutOffError

    again = replace(JOB, repetition=1, checkpoints=left_at_17)
    with pytest.raises(CutOffError):
        again.run(CPU, watch)
    steps = {repetition: len(left_at_17.read(job.key())["losses"]) for repetition, job in ((0, JOB), (1, again))}  # type: ignore[index]
    assert steps == {0: 17, 1: 21}
    record = again.run(CPU, lambda *_: None)
    assert (record["repetition"], record["key"]) == (1, again.key())


def test_no_checkpoint_is_left_of_a_run_under_the_name_of_another_setting(
    left_at_17: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORGE_TUNED", str(tmp_path / "tuned.json"))
    entry: dict[str, Any] = {find_task(JOB.task, JOB.size).name: {JOB.size: {"adamw": {"options": {}}}}}
    (tmp_path / "tuned.json").write_text(json.dumps(entry))
    tuned = replace(JOB, setting="tuned")
    left_at_17.write(tuned.key(), {})
    store = Store.open(tmp_path, "runs.jsonl")
    records, _ = train_all([JOB, tuned], store, CPU, Console(file=io.StringIO()), checkpoints=left_at_17)
    assert [r["setting"] for r in records] == ["transferred", "tuned"]
    assert list(left_at_17.folder.iterdir()) == []


def _no_optimizer(checkpoint: Checkpoint) -> None:
    checkpoint["optimizer"]["param_groups"] = []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["settings"].update(lr=0.5), "is of other settings"),
        (lambda c: c.update(key=[1]), "is of other settings"),
        (lambda c: c["environment"].update(torch="1.0"), "was written under another torch"),
        (lambda c: c["losses"].__setitem__(0, 1.01 * c["losses"][0]), "is of another network, loss or data"),
        (lambda c: c["model"].popitem(), "cannot be loaded: RuntimeError: Error(s) in loading state_dict"),
        (_no_optimizer, "cannot be loaded: ValueError"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_told_and_not_used(
    change: Callable[[Any], object], says: str, left_at_17: Checkpoints, tmp_path: Path
) -> None:
    checkpoint = left_at_17.read(JOB.key())
    assert checkpoint is not None
    change(checkpoint)
    left_at_17.write(JOB.key(), checkpoint)
    records, said = trained(left_at_17, tmp_path)
    said = " ".join(said.split())
    assert f"tiny · adamw · seed 0: begins again, as the checkpoint {left_at_17.path(JOB.key())} {says}" in said
    assert records == trained(None, tmp_path / "other")[0]
    assert list(left_at_17.folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_torn_file_is_told_and_not_used(content: bytes | None, left_at_17: Checkpoints, tmp_path: Path) -> None:
    path = left_at_17.path(JOB.key())
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        left_at_17.read(JOB.key())
    records, said = trained(left_at_17, tmp_path)
    assert f"begins again, as the checkpoint {path} cannot be read" in " ".join(said.split())
    assert records == trained(None, tmp_path / "other")[0]


def test_something_else_in_its_place_is_told(left_at_17: Checkpoints, tmp_path: Path) -> None:
    torch.save([1], left_at_17.path(JOB.key()))
    assert "holds a list, not a dict" in trained(left_at_17, tmp_path)[1]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_pace_that_is_shown_is_that_of_the_steps_since_it_went_on(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jorge_lab.runs.progress.time", Clock())
    said = io.StringIO()
    console = Console(file=said, width=200, force_terminal=terminal)
    with progress(console, 1) as watch, watch("title", 1000, "metric") as step:
        for done in range(981, 1001):
            step(done, 1.0, None)
    assert "loss 1.0000  1 steps/s" in said.getvalue()
