"""The report as a terminal shows it: six columns in eighty, and all of them where they are asked for."""

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jorge_lab.report.columns import columns, main
from jorge_lab.report.grid import Table, first_table, plain
from jorge_lab.report.parts import parts
from jorge_lab.report.terminal import report
from lab.tests.factory import TWO_TASKS, comparison, record

LABELS = {
    "shampoo-pytorch-optimizer": "Shampoo (pytorch_optimizer)",
    "jorge:interval=5:damping=0": "Jorge, interval=5, damping=0",
    "jorge:preconditioner_dtype=bfloat16": "Jorge, preconditioner_dtype=bfloat16",
}
#: Long names, one that diverges, one that is late with a seed, one with a single seed, and several settings.
LONG = [
    run | {"label": LABELS.get(run["optimizer"], run["label"])}
    for run in [
        *comparison("mnist", {"sgd": 0.02, "adamw": 0.03, "jorge": 0.06, **dict.fromkeys(LABELS, 0.05)}),
        *(record("soap", seed, [3.0] * 20, steps=200) for seed in range(3)),
        *comparison("mnist", {"muon": 0.04}, seeds=2),
        record("muon", 2, [3.0] * 200),
        *comparison("mnist", {"psgd": 0.03}, seeds=1),
    ]
]
SETTINGS = [*LONG, *comparison("mnist", {"shampoo-pytorch-optimizer@tuned": 0.05, "jorge@tuned": 0.06})]


def printed(records: list[dict[str, Any]], folder: Path, width: int, *, wide: bool = False) -> list[str]:
    written = io.StringIO()
    report(records, folder, "jorge report", {}, Console(file=written, width=width, highlight=False), wide=wide)
    return written.getvalue().splitlines()


def blocks(lines: list[str]) -> list[list[str]]:
    """The tables: the lines around each rule, up to a blank line."""
    found = []
    for i, line in enumerate(lines):
        if line.startswith("──"):
            first = max(j for j in range(i) if not lines[j].strip()) + 1
            last = next((j for j in range(i, len(lines)) if not lines[j].strip()), len(lines))
            found.append(lines[first:last])
    return found


def words(lines: Iterable[str]) -> list[str]:
    return " ".join(lines).split()


def shown(block: list[str]) -> Counter[str]:
    """The words of a table, each once a time that it stands there; one that is broken is two others."""
    return Counter(words(line for line in block if not line.startswith("──")))


def expected(table: Table, first: int = 1) -> Counter[str]:
    """The words of all cells; those of the first column so many times."""
    columns = [[table.headings[j], *(line.cells[j].text for line in table.lines)] for j in range(len(table.headings))]
    return Counter(words(columns[0] * first + [text for column in columns[1:] for text in column]))


@pytest.mark.parametrize("records", [LONG, SETTINGS, TWO_TASKS[:15]], ids=["long names", "settings", "short names"])
def test_six_columns_fit_eighty_and_break_between_words(records: list[dict[str, Any]], tmp_path: Path) -> None:
    lines = printed(records, tmp_path, 80)
    where = next(i for i, line in enumerate(lines) if "; report: " in line)
    assert max(len(line) for line in lines[:where]) <= 80
    (part,) = parts(records, {})
    table = first_table(part.rows)
    assert len(table.headings) == 6
    (block,) = blocks(lines)
    assert shown(block) == expected(table)
    assert lines[1] == part.section.title
    assert lines[2].startswith(("Jorge reaches SGD's best loss in", "Jorge (transferred) reaches SGD's best loss in"))


def test_a_table_of_eighty_columns(tmp_path: Path) -> None:
    """Cells that are too long are broken before their parentheses, and else between words."""
    (block,) = blocks(printed(LONG, tmp_path, 80))
    assert [line.rstrip() for line in block[4:14]] == [
        "Jorge                               71      1.0 –           –             0.0098",
        "Shampoo (pytorch_optimizer)         84      1.3 slower      slower        0.0099",
        "                                                (1.18–1.18) (1.35–1.35)",
        "Jorge, interval=5, damping=0        84      1.5 slower      slower        0.0099",
        "                                                (1.18–1.18) (1.52–1.52)",
        "Jorge,                              84      1.7 slower      slower        0.0099",
        "preconditioner_dtype=bfloat16                   (1.18–1.18) (1.69–1.69)",
        "muon                               104      1.0 no clear    no clear      1.0071",
        "                              (2 of 3) (2 of 3) difference  difference",
        "                                                (0.71–4.67  (0.50–3.34",
    ]


def test_rows_stand_in_the_order_of_steps_to_the_target(tmp_path: Path) -> None:
    (block,) = blocks(printed(TWO_TASKS[:15], tmp_path, 120))
    below = block[next(i for i, line in enumerate(block) if line.startswith("──")) + 1 :]
    names = [line.split("  ")[0] for line in below if line[0] != " "]
    assert names == ["Jorge (tuned)", "Jorge (transferred)", "AdamW (transferred)", "SGD (tuned)", "SGD (transferred)"]


@pytest.mark.parametrize("width", [60, 80, 200, 400])
def test_wide_prints_every_column_in_tables_that_fit(width: int, tmp_path: Path) -> None:
    lines = printed(LONG, tmp_path, width, wide=True)
    where = next(i for i, line in enumerate(lines) if "; report: " in line)
    assert max(len(line) for line in lines[:where]) <= width
    (part,) = parts(LONG, {})
    found = blocks(lines)
    assert (len(found) == 1) == (width >= 200)
    table = plain(part.rows, columns(part.rows[0]))
    assert sum(map(shown, found), Counter()) == expected(table, len(found)), "each part says whose its lines are"
    assert "Jorge reaches the target in the fewest steps" in " ".join(words(lines))


def test_where_there_is_room_nothing_is_broken(tmp_path: Path) -> None:
    (block,) = blocks(printed(LONG, tmp_path, 180))
    headings = [column.heading for column in main(parts(LONG, {})[0].rows)]
    assert re.split(" {2,}", block[0].strip()) == headings
    assert len(block) == 2 + len({run["optimizer"] for run in LONG})


def test_several_tasks_end_with_an_overview_and_one_has_none(tmp_path: Path) -> None:
    lines = printed(TWO_TASKS, tmp_path, 80)
    assert len(blocks(lines)) == 3
    said = " ".join(words(lines))
    assert said.count("All tasks Jorge reaches the target in 0.40 of the baseline's steps") == 1
    assert "27 runs; report: " in said
    alone = printed(TWO_TASKS[:15], tmp_path, 80)
    assert len(blocks(alone)) == 1
    assert not re.search(r"All tasks|of 1 tasks|1 of 1", " ".join(words(alone)))


def test_what_records_say_is_no_markup(tmp_path: Path) -> None:
    runs = [run | {"label": "a[bold]b"} for run in TWO_TASKS if run["optimizer"] == "adamw" and run["task"] == "mnist"]
    assert "a[bold]b" in words(printed(runs, tmp_path, 80))


def test_no_records_no_report(tmp_path: Path) -> None:
    assert printed([], tmp_path / "none", 80) == []
    assert not (tmp_path / "none").exists()
