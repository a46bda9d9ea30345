"""The page of the checks is what a run gives today, for the optimizers that need no package."""

import re
from pathlib import Path
from typing import Any

import pytest

from jorge import testing
from jorge_lab.studies import conformance

PAGE = Path(__file__).parents[3] / "docs" / "generated" / "conformance.md"
FAST = [check for check in testing.CHECKS if not check.slow]


def cells(text: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Mark and reason, by optimizer and sentence."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    found: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in rows[0][1:]}
    for says, *marks in rows[2:]:
        for name, mark in zip(found, marks, strict=True):
            if mark and " of " not in mark:
                number = re.sub(r"\D", "", mark)
                found[name][says] = (mark[0], notes[number] if number else "")
    return found


def test_every_check_of_every_optimizer_is_on_the_page() -> None:
    found = cells(PAGE.read_text(encoding="utf-8"))
    assert list(found) == list(conformance.FACTORIES)
    assert all(list(column) == [check.says for check in testing.CHECKS] for column in found.values())


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Jorge"])
def test_the_page_is_what_a_run_gives_today(name: str) -> None:
    report = testing.conformance(conformance.FACTORIES[name], name, FAST)
    today = cells(conformance.page([report]))[name]
    committed = cells(PAGE.read_text(encoding="utf-8"))[name]
    assert today == {check.says: committed[check.says] for check in FAST}


@pytest.mark.parametrize("name", [name for name in conformance.FACTORIES if name not in ("SGD", "AdamW", "Jorge")])
def test_each_optimizer_can_be_built(name: str, request: Any) -> None:
    check = next(check for check in FAST if check.name == "least-squares")
    assert check.outcome(conformance.FACTORIES[name]).result == "passed"
