"""The command `jorge` and the commands that other distributions add to it."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from jorge import cli


class Hello:
    """A command as another distribution may have it."""

    @staticmethod
    def add(commands: Any) -> None:
        commands.add_parser("hello", help="says hello").set_defaults(run=lambda args: 7)


HELLO = EntryPoint("hello", f"{__name__}:Hello", cli.GROUP)
BROKEN = EntryPoint("broken", "no.such.module:COMMAND", cli.GROUP)
WRONG = EntryPoint("wrong", f"{__name__}:HELLO", cli.GROUP)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points that there are, in place of the installed ones."""
    there: list[EntryPoint] = []
    monkeypatch.setattr(cli, "entry_points", lambda group: there if group == cli.GROUP else [])
    return there


def ended(*words: str) -> object:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return caught.value.code


def test_a_command_of_another_distribution_is_run(found: list[EntryPoint]) -> None:
    found += [BROKEN, HELLO]
    assert cli.main(["hello"]) == 7


def test_the_help_lists_what_is_there_and_says_what_the_laboratory_has(
    found: list[EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    for there in ([], [HELLO]):
        found[:] = there
        assert ended("--help") == 0
        said = capsys.readouterr()
        assert said.err == ""
        text = " ".join(said.out.split())
        assert "compare, tune, ablate, report and tasks come with the laboratory: pip install jorge-lab" in text
        assert "what would the optimizer cost" in text
        assert ("says hello" in text) == bool(there)


@pytest.mark.parametrize("command", cli.LABORATORY)
def test_without_the_laboratory_its_commands_are_a_line(
    command: str, found: list[EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(command, "mnist") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"jorge {command} comes with the laboratory, which is not installed: pip install jorge-lab")
    assert "pip install ./lab" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("entry", "says"), [(BROKEN, "ModuleNotFoundError: No module"), (WRONG, "AttributeError")])
def test_a_broken_command_is_a_line_and_the_others_go_on(
    entry: EntryPoint, says: str, found: list[EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    found += [entry, HELLO]
    assert ended("--help") == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"jorge: the command {entry.name} cannot be loaded: {says}")
    assert said.err.count("\n") == 1
    assert "says hello" in said.out
    assert ended(entry.name) == 2
    assert capsys.readouterr().err.startswith(f"jorge: the command {entry.name} cannot be loaded")


def test_a_command_that_nobody_has_is_refused(found: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    found.append(HELLO)
    assert ended("halo") == 2
    said = capsys.readouterr().err
    assert "hello" in said
    assert "cost" in said


def test_only_the_command_that_is_asked_for_is_loaded(found: list[EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    found += [HELLO, BROKEN]
    loaded: list[str] = []
    load = EntryPoint.load
    monkeypatch.setattr(EntryPoint, "load", lambda entry: loaded.append(entry.name) or load(entry))  # type: ignore[func-returns-value]
    cli.main(["hello"])
    assert loaded == ["hello"]
    assert cli.main(["cost", "no.such.target:x"]) == 2
    assert loaded == ["hello"]


def test_an_interrupt_is_a_word_and_a_status(
    found: list[EntryPoint], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        Hello, "add", staticmethod(lambda commands: commands.add_parser("hello").set_defaults(run=interrupted))
    )
    found.append(HELLO)
    assert cli.main(["hello"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "jorge", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("jorge ")
