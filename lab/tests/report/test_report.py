"""What a report writes: page, pictures, tables and documents, from records made by hand."""

import argparse
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jorge_lab.commands.report import COMMAND
from jorge_lab.report import page as report
from jorge_lab.report.grid import by_setting, by_task
from jorge_lab.report.markdown import overview_markdown, tasks_markdown
from jorge_lab.report.parts import answer, parts
from jorge_lab.report.styles import styles
from jorge_lab.statistics.curves import POINTS, curve
from jorge_lab.statistics.summary import summarize
from lab.tests.factory import TWO_TASKS, comparison, falling, record
from lab.tests.statistics.test_summary import BROKEN, JORGE, SGD


def test_the_answer_in_words() -> None:
    def said(records: list[dict[str, Any]], **targets: float) -> str:
        (part,) = parts(records, targets)
        return answer(part)

    assert said([*SGD, *JORGE]).startswith("Jorge reaches the target in the fewest steps, 4, 0.40 of SGD's")
    assert "1.25 times as fast as SGD" in said([*SGD, *JORGE])
    assert "not tested" in said([SGD[0], JORGE[0]])
    assert said(JORGE).startswith("No target")
    assert said(SGD, mnist=-1.0).startswith("No optimizer reached")
    several = said(TWO_TASKS[:15])
    assert several.startswith("Jorge (tuned) reaches the target in the fewest steps, 86, 0.43 of SGD (tuned)")
    assert "level with it in steps: Jorge (transferred)." in several
    assert "ahead of all others" in several
    once = [record("soap", seed, JORGE[seed]["losses"] if seed == 0 else [9.0] * 10) for seed in (0, 1)]
    assert ", ahead of all that reach it with every seed." in said([*SGD, *JORGE, *once])


def test_tables_for_a_terminal() -> None:
    (title, rows, said), (other, _, _) = report.tables(TWO_TASKS, {"mnist": 0.5})
    assert (title, other) == ("The task mnist (small)", "The task shakespeare (small)")
    assert [row.target for row in rows] == [0.5] * 5
    assert "reaches the target" in said


@pytest.mark.parametrize(
    "records",
    [
        [*SGD, *JORGE, *BROKEN],
        BROKEN,
        [record("sgd", 0, [], steps=10)],
        [record("jorge", 0, [-1.0, -2.0]), record("sgd", 0, [0.0, 0.0])],
        [{k: v for k, v in SGD[0].items() if k not in ("task_info", "environment", "key", "settings", "label")}],
    ],
    ids=["ordinary", "diverged", "empty", "not above 0", "old"],
)
def test_a_report_is_written_whatever_happened(records: list[dict[str, Any]], tmp_path: Path) -> None:
    page = report.write(records, tmp_path / "new", "jorge compare", {}).read_text()
    assert page.count("</html>") == 1
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"report.html", "summary.csv", "summary.md", "mnist.svg"}
    assert (tmp_path / "new" / "mnist.svg").read_text().startswith("<svg")


def test_what_records_say_does_not_become_markup(tmp_path: Path) -> None:
    runs = [record("sgd", seed, [2.0, 1.0]) for seed in (0, 1)]
    for run in runs:
        run["label"] = '<b>"|</b></script>'
        run["task_info"]["title"] = "A < B & C"
    page = report.write(runs, tmp_path, "jorge report <i>", {}).read_text()
    assert "<b>" not in page.split("plotly.js v")[0]
    assert "<i>" not in page.split("plotly.js v")[0]
    (data,) = re.findall(r'id="curves-mnist">(.*?)</script>', page)
    assert json.loads(data)["curves"][0]["name"] == '<b>"|</b></script> (transferred)'
    assert "\\|" in (tmp_path / "summary.md").read_text()


def test_two_tasks_have_a_profile_and_an_overview(tmp_path: Path) -> None:
    page = report.write(TWO_TASKS, tmp_path, "jorge compare", {}).read_text()
    assert '<section id="mnist">' in page
    assert '<section id="shakespeare">' in page
    assert (tmp_path / "profile.svg").read_text().startswith("<svg")
    assert "Not run on all tasks, and left out: SOAP (transferred)." in page
    text = (tmp_path / "summary.md").read_text()
    assert "| Jorge | transferred | **0.43** | 0.35 |" in text
    assert "| SOAP | transferred | – | **0.28, ahead** |" in text


def test_markdown() -> None:
    assert overview_markdown(TWO_TASKS).startswith("Jorge (transferred) is first or level in steps on 1 of 2 tasks")
    text = tasks_markdown(TWO_TASKS, images="images/")
    assert text.count("\n## ") + text.startswith("## ") == 2
    assert "](images/shakespeare.svg)" in text
    assert "| Jorge | **87** | **86** | – | **1.4** | 1.5 | – |" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 6
    assert all(len({line.count(" | ") for line in table.splitlines()}) == 1 for table in tables)


def test_tables_by_setting_and_by_task() -> None:
    found = parts(TWO_TASKS, {})
    table = by_setting(found[0].rows)
    assert table.headings == ["optimizer", *["transferred", "tuned", "default"] * 2]
    sgd, adamw, jorge = table.lines
    assert [cell.text for cell in adamw.cells[:4]] == ["AdamW", "169 (168–169)", "–", "–"]
    assert [cell.key for cell in sgd.cells[1:4]] == ["Infinity", "200", ""]
    assert [cell.best for cell in jorge.cells] == [False, True, True, False, True, False, False]
    overview = by_task(found, "seconds")
    assert overview.headings == ["optimizer", "setting", "mnist", "shakespeare"]
    assert overview.lines[0].cells[2].text == "not reached, behind"


def test_curves_are_thinned_and_show_the_median() -> None:
    runs = [record("sgd", seed, [loss * (1 + seed) for loss in falling(0.001, 0, 3000)]) for seed in range(3)]
    (row,) = summarize(runs)
    found = curve(row, runs)
    assert found is not None
    assert len(found.loss) == len(found.seconds) == len(found.low) == POINTS
    assert (found.steps[0], found.steps[-1]) == (150, 3000)
    assert found.seconds[-1] == pytest.approx(30)
    np.testing.assert_allclose(found.loss, 2 * found.low)
    np.testing.assert_allclose(found.high, 3 * found.low)


def test_a_curve_ends_where_most_runs_have_diverged() -> None:
    runs = [record("sgd", seed, [2.0] * length, steps=100) for seed, length in enumerate((100, 50, 30))]
    (row,) = summarize(runs)
    found = curve(row, runs)
    assert found is not None
    assert found.steps[-1] == 50
    assert np.isfinite(found.high).all()


def test_many_optimizers_look_different_in_colour_and_dash() -> None:
    look = styles(["jorge", *(f"other {i}" for i in range(30))])
    assert len(set(look.values())) == len(look) > 30
    first = list(look.values())
    assert all(a.colour != b.colour and a.dashes != b.dashes for a, b in pairwise(first))
    assert styles(["adamw", "jorge"])["jorge"] == look["jorge"]


def command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.add(parser.add_subparsers())
    args = parser.parse_args(["report", *map(str, arguments)])
    status: int = args.run(args)
    return status


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, TWO_TASKS)))
    return path


def test_the_command_writes_report_and_document(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(runs, "--out", tmp_path / "out", "--docs", tmp_path / "docs" / "results.md") == 0
    assert (tmp_path / "out" / "report.html").exists()
    out = capsys.readouterr().out
    assert "The task mnist (small): Jorge (tuned) reaches" in out
    assert "27 runs" in out
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "jorge 0.1, torch 2" in page
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert pictures == ["images/profile.svg", "images/mnist.svg", "images/shakespeare.svg"]
    assert all((tmp_path / "docs" / name).exists() for name in pictures)


def test_the_command_takes_targets(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(runs, "--out", tmp_path, "--target", "mnist=1e-9") == 0
    assert "The task mnist (small): No optimizer reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{nowhere}"], "cannot read"),
        (["{runs}", "--target", "low"], "--target takes a loss"),
        (["{runs}", "--target", "1"], "with several tasks"),
        (["{runs}", "--target", "cifar=1"], "not among the tasks"),
        (["{runs}", "--out", "{runs}"], "cannot write"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], says: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = {"runs": runs, "nowhere": tmp_path / "nowhere.jsonl"}
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    assert command(*(argument.format(**where) for argument in arguments)) == 2
    assert says in capsys.readouterr().err


def test_seconds_of_different_machines_are_not_compared_in_silence() -> None:
    mixed = comparison("mnist", {"sgd": 0.02, "jorge": 0.06})
    mixed[0]["environment"] = mixed[0]["environment"] | {"device": "GPU"}
    assert "Seconds were measured on 2 kinds of machine" in tasks_markdown(mixed)
    assert "kinds of machine" not in tasks_markdown(TWO_TASKS)


def test_the_picture_of_a_task_of_ones_own_has_a_name_that_every_system_has_files_with(tmp_path: Path) -> None:
    runs = [record("sgd", seed, [2.0, 1.0], task="my.tasks:cnn/large?") for seed in (0, 1)]
    page = report.write(runs, tmp_path, "jorge report", {})
    assert page.exists()
    assert (tmp_path / "my.tasks-cnn-large-.svg").exists()
    report.write_document(runs, tmp_path / "docs" / "results.md", {}, tmp_path)
    assert (tmp_path / "docs" / "images" / "my.tasks-cnn-large-.svg").exists()
    assert "(images/my.tasks-cnn-large-.svg)" in (tmp_path / "docs" / "results.md").read_text()
