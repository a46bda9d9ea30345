"""The faults of :mod:`tests.mutants` are still faults of the source, and what is asked are tests that there are."""

import ast
import re

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, chosen, survives


def test_there_are_enough_and_each_once() -> None:
    assert len(MUTANTS) >= 40
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert next(number for number, _ in chosen(["3", "skips"])) == 3
    assert {mutant.file for _, mutant in chosen(["skips"])} == {"skips.py"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: f"{each.file}: {each.new.strip()[:40]}")
def test_a_fault_is_one_line_of_the_source_and_some_tests_are_asked(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert "\n" not in mutant.old + mutant.new
    ast.parse(text.replace(mutant.old, mutant.new))
    file, names = mutant.asked
    tests = re.findall(r"def (test_\w+)", (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
    for name in names.split(" or "):
        assert any(name in test for test in tests), name


@pytest.mark.slow
def test_a_fault_is_noticed_and_none_is_not() -> None:
    fault = MUTANTS[next(i for i, each in enumerate(MUTANTS) if each.file == "schedule.py")]
    assert survives(fault) is None
    assert "passed" in str(survives(Mutant(fault.file, fault.old, fault.old, fault.asked)))
