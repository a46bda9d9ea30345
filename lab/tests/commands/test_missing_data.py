"""A task whose data is not installed is left out with a line that says how to install it, and the others go on."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from jorge_lab.commands.ablate import COMMAND as ABLATE
from jorge_lab.commands.compare import COMMAND as COMPARE
from jorge_lab.commands.tune import COMMAND as TUNE
from jorge_lab.tasks import TASKS
from jorge_lab.tasks.task import Data, DataMissingError
from lab.tests.tiny import tiny

COMMANDS = {
    "compare": (COMPARE, ["--optimizers", "sgd,jorge", "--seeds", "1"]),
    "tune": (TUNE, ["--optimizers", "sgd", "--trials", "1"]),
    "ablate": (ABLATE, ["--seeds", "1"]),
}


def missing() -> Data:
    raise DataMissingError("the pictures: apt-get install pictures")


@pytest.fixture(autouse=True)
def _two_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "there", lambda size: dataclasses.replace(tiny(steps=20), name="there"))
    absent = dataclasses.replace(tiny(steps=20), name="absent", load=missing)
    monkeypatch.setitem(TASKS, "absent", lambda size: absent)


def run(command: str, tasks: list[str], folder: Path) -> int:
    registered, options = COMMANDS[command]
    parser = argparse.ArgumentParser()
    registered.add(parser.add_subparsers())
    given = [command, *(["error"] if command == "ablate" else []), *tasks, *options, "--out", str(folder)]
    given += ["--tuned", str(folder / "tuned.json")] if command == "tune" else []
    args = parser.parse_args(given)
    status: int = args.run(args)
    return status


@pytest.mark.parametrize("command", COMMANDS)
def test_the_others_go_on(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["absent", "there"], tmp_path) == 0
    said = capsys.readouterr()
    assert "absent is left out: the pictures: apt-get install pictures" in said.out + said.err
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json*") if path.name != "tune.journal")
    assert "there" in written
    assert "absent" not in written


@pytest.mark.parametrize("command", COMMANDS)
def test_alone_it_is_an_error(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["absent"], tmp_path) == 2
    said = capsys.readouterr()
    assert "absent is left out: the pictures" in said.out + said.err
    assert said.err.endswith("nothing can be run: the data is not installed\n")
