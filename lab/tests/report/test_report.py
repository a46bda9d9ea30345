"""What a report writes: page, pictures, tables and documents, from records made by hand."""

import argparse
import json
import re
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jorge_lab.commands.report import COMMAND
from jorge_lab.report import overview
from jorge_lab.report import page as report
from jorge_lab.report.grid import by_setting, by_task, first_table
from jorge_lab.report.markdown import all_tasks, tasks_markdown
from jorge_lab.report.parts import answer, parts
from jorge_lab.report.styles import styles
from jorge_lab.statistics.curves import LEGIBLE, POINTS, curve, legible
from jorge_lab.statistics.paired import RULE
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
    assert "not clearly slower in steps: Jorge (transferred)." in several
    assert "clearly faster than all others" in several
    once = [record("soap", seed, JORGE[seed]["losses"] if seed == 0 else [9.0] * 10) for seed in (0, 1)]
    assert ", clearly faster than all that reach it with every seed." in said([*SGD, *JORGE, *once])


def test_the_first_table_has_six_columns_and_begins_with_the_first() -> None:
    (part,) = parts(TWO_TASKS[15:], {})
    table = first_table(part.rows)
    assert table.headings == [
        "optimizer",
        "steps to target",
        "seconds to target",
        "steps, against Jorge",
        "seconds, against Jorge",
        "final loss",
    ]
    soap, jorge, *_ = ([cell.text for cell in line.cells] for line in table.lines)
    assert soap == ["SOAP", "55", "0.8", "faster (0.77–0.77)", "faster (0.68–0.68)", "0.0098"]
    assert jorge[3:5] == ["–", "–"]
    assert [line.optimizer for line in table.lines] == ["soap", "jorge", "adamw", "sgd"]
    assert table.text == [0, 3, 4]
    assert [cell.key for cell in table.lines[1].cells[3:5]] == ["1.0", "1.0"]


def test_without_a_reference_the_first_table_has_costs() -> None:
    for records in (SGD, [*SGD, *BROKEN]):
        (part,) = parts(records, {})
        table = first_table(part.rows)
        assert table.headings[3:5] == ["optimizer's share", "state"]
        assert len(table.headings) == 6
    shown = [cell.text for cell in table.lines[-1].cells]
    assert shown == ["AdamW", "not reached", "not reached", "20%", "0.00 MB", "diverged"]


def test_a_row_that_alone_misses_the_target_is_sorted_last() -> None:
    (part,) = parts([*JORGE, *SGD, *(record("soap", seed, [9.0] * 10) for seed in (0, 1))], {})
    soap = first_table(part.rows).lines[-1]
    assert [cell.key for cell in soap.cells[1:5]] == ["Infinity"] * 4


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
    assert "Not run on all tasks, and left out: SOAP (one setting each); SOAP (transferred)." in page
    text = (tmp_path / "summary.md").read_text()
    assert "| Jorge | transferred | **0.43** | 0.35 |" in text
    assert "| SOAP | transferred | – | **0.28, faster (0.77–0.77)** |" in text
    assert text.startswith(
        "![Performance profiles](./profile.svg)\n\nJorge reaches the target in 0.40 of the baseline's"
    )


def test_where_the_median_is_infinite_the_tasks_are_counted() -> None:
    never = comparison("shakespeare", {"sgd": 0.06, "jorge": 0.001})
    found = parts([*comparison("mnist", {"sgd": 0.02, "jorge": 0.06}), *never], {})
    assert overview.lead(found).startswith("Jorge reaches the target on 1 of 2 tasks; ")


def test_one_task_has_no_overview(tmp_path: Path) -> None:
    page = report.write(TWO_TASKS[:15], tmp_path, "jorge compare", {}).read_text().split("plotly.js v")[0]
    text = (tmp_path / "summary.md").read_text()
    for written in (page, text):
        assert "1 of 1" not in written
        assert "of 1 tasks" not in written
        assert "Every optimizer on every task" not in written
    assert 'id="overview"' not in page
    assert text.startswith(
        "## The task mnist (small)\n\n![Training loss: The task mnist (small)](./mnist.svg)\n\nJorge"
    )
    assert text.count(RULE) == unescape(page).count(RULE) == 1


def test_a_task_leads_with_picture_sentence_and_six_columns_and_folds_the_rest(tmp_path: Path) -> None:
    page = report.write(TWO_TASKS, tmp_path, "jorge compare", {}).read_text().split("plotly.js v")[0]
    for section in re.findall(r"<section.*?</section>", page, flags=re.DOTALL):
        open_part = re.sub(r"<details.*?</details>", "", section, flags=re.DOTALL)
        places = [open_part.index(mark) for mark in ("<svg", '<p class="answer">', '<table class="main">')]
        assert places == sorted(places)
        assert open_part.count("<table") == 1
        assert open_part.count("<th ") == 6
        assert section.count("<table") > 2
    text = tasks_markdown(TWO_TASKS, images="images")
    for chapter in text.split("\n## "):
        open_part = chapter[: chapter.index("<details>")]
        (table,) = re.findall(r"(?:^\|.*\n)+", open_part, flags=re.MULTILINE)
        assert table.splitlines()[0].count("|") == 7
        assert (
            open_part.index("![") < open_part.index(" reaches SGD's best loss in ") < open_part.index("| optimizer |")
        )


def test_markdown() -> None:
    assert all_tasks(parts(TWO_TASKS, {})).startswith("Jorge reaches the target in 0.40 of the baseline's steps")
    text = tasks_markdown(TWO_TASKS, images="images/")
    assert text.count("\n## ") + text.startswith("## ") == 2
    assert "](images/shakespeare.svg)" in text
    assert "| Jorge | **87** | **86** | – | **1.4** | 1.5 | – |" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 8
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
    assert overview.lines[0].cells[2].text == "not reached, slower (never gets there)"


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


def test_of_many_curves_one_an_optimizer_is_shown() -> None:
    rates = {"jorge": 0.06, "jorge@tuned": 0.07, "sgd": 0.03, "sgd@tuned": 0.02, "soap": 0.04, "soap@tuned": 0.05}
    few = summarize(comparison("mnist", rates), 0.1)
    assert legible(few) == few
    more = {"muon": 0.001, "muon@tuned": 0.002, "adamw": 0.06}
    many = summarize(comparison("mnist", {**rates, **more}), 0.1)
    assert len(many) == LEGIBLE + 1
    best = [
        ("jorge", "transferred"),
        ("sgd", "transferred"),
        ("soap", "tuned"),
        ("muon", "tuned"),
        ("adamw", "transferred"),
    ]
    assert [row.key for row in legible(many)] == best, (
        "the reference, the quickest, and of two that miss the lower loss"
    )


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
    assert "The task mnist (small)\nJorge (transferred) reaches SGD's best loss in 0.43 of the steps" in out
    assert "27 runs" in out
    assert "accuracy" not in out
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "jorge 0.1, torch 2" in page
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert pictures == [
        "images/profile.svg",
        "images/profile-by-setting.svg",
        "images/mnist.svg",
        "images/shakespeare.svg",
    ]
    assert all((tmp_path / "docs" / name).exists() for name in pictures)


def test_the_command_takes_targets_and_prints_all_columns(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(runs, "--out", tmp_path, "--target", "mnist=1e-9", "--wide") == 0
    out = capsys.readouterr().out
    assert "Jorge (transferred) does not reach a loss of 1e-09; optimizer 44 % of a step" in out
    assert "No optimizer reached the target with every seed." in out
    assert "accuracy" in out


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
