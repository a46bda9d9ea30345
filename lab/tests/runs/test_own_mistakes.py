"""What is said where a user's own task, or the disk, does not do."""

import errno
from pathlib import Path

import pytest

from jorge import cli
from jorge_lab.runs.store import Store

TASKS = """
import torch
from torch import nn

X, y = torch.randn(200, 8), torch.randint(0, 3, (200,))

def base(**parts):
    found = {"model": lambda: nn.Linear(8, 3), "data": ((X, y), (X[:50], y[:50])), "loss": nn.CrossEntropyLoss()}
    return {**found, "steps": 12, **parts}

def good():
    return base()

def model_raises():
    def model():
        raise KeyError("width")
    return base(model=model)

def inputs_and_targets():
    return base(data=(X, y))

def regression():
    return base(data=(X, torch.randn(200, 1)))

def loss_raises():
    return base(loss=lambda model, batch: model(batch[0]).nothing())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_mistakes.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model_raises", ["cannot be built: KeyError: 'width'", "own_mistakes.py:16"]),
        ("regression", ["not of inputs and targets"]),
        ("inputs_and_targets", ["not of inputs and targets: give ((inputs, targets), (validation inputs"]),
    ],
)
def test_a_task_that_cannot_be_is_told_in_a_line(
    name: str, says: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", f"own_mistakes:{name}", "--optimizers", "sgd", "--out", str(here / "out")]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert all(each in err for each in says)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_a_run_raises_has_the_users_file_and_line(
    workers: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "own_mistakes:loss_raises", "--optimizers", "sgd,adamw", "--workers", workers]
    assert cli.main([*words, "--out", str(here / "out")]) == 1
    out = capsys.readouterr().out
    assert out.count("own_mistakes.py:26)") == 2
    assert "Traceback" not in out


def test_the_suite_on_an_own_task_is_as_transferred(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "own_mistakes:good", "--optimizers", "suite", "--out", str(here / "out")]) == 0
    out = capsys.readouterr().out
    assert "nobody was tuned there" in out
    assert "jorge tune own_mistakes:good --optimizers sgd,adamw,shampoo,soap,muon,psgd" in out
    assert "left out" not in out
    assert len((here / "out" / "runs.jsonl").read_text().splitlines()) == 7


def test_a_full_disk_is_told_and_loses_no_earlier_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "own_mistakes:good", "--optimizers", "sgd,adamw", "--out", str(here / "out")]
    real = Store._add
    written: list[object] = []

    def add(self: Store, record: dict[str, object]) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(record)
        real(self, record)

    monkeypatch.setattr(Store, "_add", add)
    assert cli.main(words) == 2
    assert "No space left on device. The last run is not kept" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert cli.main(words) == 0
    assert "1 of 2 runs are in" in capsys.readouterr().out
