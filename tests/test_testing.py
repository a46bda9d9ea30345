"""`jorge.testing`: ours passes every check, torch's own pass what is expected of them, and each check can fail."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jorge import Jorge, testing
from jorge.testing import BEYOND, CHECKS, Check, NotApplicable
from jorge.testing.__main__ import main
from tests.broken_optimizers import BROKEN, Momentum

FAST = [check for check in CHECKS if not check.slow]
SLOW = [check for check in CHECKS if check.slow]
#: What of :data:`CHECKS` torch's own optimizers fail.
KNOWN: dict[Any, set[str]] = {
    torch.optim.SGD: {"words", "NaN", "inf"},
    torch.optim.AdamW: {"early-entries", "words", "NaN", "inf"},
}


def whitening(params: Any) -> torch.optim.Optimizer:
    return Jorge(params)


def congruence(params: Any) -> torch.optim.Optimizer:
    return Jorge(params, method="congruence")


def binomial(params: Any) -> torch.optim.Optimizer:
    return Jorge(params, method="binomial")


def exact(params: Any) -> torch.optim.Optimizer:
    return Jorge(params, method="exact")


def grafted_to_sgd(params: Any) -> torch.optim.Optimizer:
    return Jorge(params, grafting="sgd")


@testing.parametrize(whitening, congruence, binomial, exact, grafted_to_sgd, checks=FAST)
def test_ours_passes(check: Check, factory: testing.Factory) -> None:
    assert check.outcome(factory) == testing.Outcome(check, "passed")


@pytest.mark.slow
@testing.parametrize(Jorge, Momentum, checks=SLOW)
def test_another_process_takes_it(check: Check, factory: testing.Factory) -> None:
    check(factory)


@pytest.mark.parametrize("factory", KNOWN)
def test_what_torchs_own_fail_is_known(factory: testing.Factory) -> None:
    report = testing.conformance(factory, checks=FAST)
    assert {row.check.name for row in report.failures} == KNOWN[factory]
    assert all(row.check.group == BEYOND for row in report.failures)
    assert report.passed


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_each_check_can_fail(check: Check) -> None:
    found = check.outcome(BROKEN[check.name])
    assert found.result == "failed"
    assert found.reason
    assert "\n" not in found.reason
    if not check.slow and check.name != "words":
        check(Momentum)


def test_each_check_has_a_name_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) == len(BROKEN)
    assert all(check.says.endswith((".", ".)")) for check in CHECKS)


def test_every_check_that_is_declared_is_run() -> None:
    declared = {id(value) for module in testing._MODULES for value in vars(module).values() if isinstance(value, Check)}
    assert declared <= {id(check) for check in CHECKS}


def test_what_takes_matrices_alone_is_not_applicable_rather_than_broken() -> None:
    report = testing.conformance(torch.optim.Muon, checks=[c for c in FAST if c.name.startswith(("dims", "least"))])
    results = {row.check.name: row.result for row in report.rows}
    assert results.pop("dims-2") == results.pop("least-squares") == "passed"
    assert set(results.values()) == {"not applicable"}
    assert "2D" in report.rows[1].reason
    with pytest.raises(NotApplicable):
        report.rows[1].check(torch.optim.Muon)


def test_a_factory_that_fails_fails_every_check() -> None:
    def factory(params: Any) -> torch.optim.Optimizer:
        raise OSError("no such device")

    report = testing.conformance(factory, checks=FAST)
    assert not report.passed
    assert len(report.failures) == len(FAST)


def test_checks_leave_nothing_behind() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    testing.conformance(torch.optim.SGD, checks=FAST[:20])
    assert torch.equal(before, torch.get_rng_state())


def test_the_table_has_numbered_reasons() -> None:
    checks = [c for c in CHECKS if c.name in ("least-squares", "zero-lr", "NaN")]
    reports = [testing.conformance(f, checks=checks) for f in (torch.optim.SGD, BROKEN["zero-lr"], Jorge)]
    text = testing.table(reports)
    reasons = text.split("\n\n")[1]
    assert reasons.splitlines() == [
        "1. a weight of shape (6, 4) has moved at lr=0",
        "2. a weight is not finite after it",
    ]
    markdown = testing.table(reports, markdown=True)
    assert "| **passed** | 2 of 3 | 2 of 3 | 3 of 3 |" in markdown
    assert "✗<sup>1</sup>" in markdown
    assert [report.passed for report in reports] == [True, False, True]


def test_below_the_table_stands_what_failed() -> None:
    report = testing.conformance(torch.optim.SGD, "SGD", [check for check in testing.CHECKS if check.name == "NaN"])
    said = str(report)
    assert "beyond torch (does not count):" in said
    (check,) = (check for check in testing.CHECKS if check.name == "NaN")
    assert f"What failed:\n  NaN: {check.says}" in said
    assert "What failed" not in report.markdown()


def test_a_cell_breaks_no_table() -> None:
    check = Check("bars", "One | two.", "words", lambda _: None)
    assert r"One \| two." in testing.conformance(torch.optim.SGD, checks=[check]).markdown()


def test_the_command_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = tuple(check for check in CHECKS if check.name in ("zero-lr", "NaN", "spawned"))
    monkeypatch.setattr("jorge.testing.__main__.CHECKS", few)
    assert main(["torch.optim:SGD", "jorge:Jorge", "--fast"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["SGD", "Jorge"]
    above = out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in above if line.startswith("  ")] == ["SGD", "zero-lr", "NaN"]
    assert "1 of 2  2 of 2" in out
    assert main(["torch.optim:SGD", "--fast", "--strict", "--markdown"]) == 1
    assert capsys.readouterr().out.startswith("|  | SGD |")
    assert main(["tests.broken_optimizers:Decays", "--fast"]) == 1


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("torch.optim", "write a factory as module:name, not 'torch.optim'"),
        ("torch.optim:", "write a factory as module:name, not 'torch.optim:'"),
        ("no_such_module:SGD", "'no_such_module' cannot be imported: No module named 'no_such_module'"),
        ("torch.optim:SDG", "'torch.optim' has no 'SDG'"),
        ("builtins:list", "builtins:list returns a list, not an optimizer"),
        ("torch.optim:LRScheduler", "'torch.optim' has no 'LRScheduler'"),
        ("torch:__version__", "'torch:__version__' is no factory: it cannot be called"),
    ],
)
def test_a_mistake_is_one_line(argument: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([argument])
    assert raised.value.code == 2
    assert capsys.readouterr().err == f"python -m jorge.testing: {line}\n"


def test_a_command_without_arguments_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([])
    assert raised.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_in_pytest_what_does_not_apply_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import torch\n"
        "from jorge import testing\n"
        "checks = [c for c in testing.CHECKS if c.name in ('dims-1', 'dims-2', 'NaN')]\n"
        "@testing.parametrize(torch.optim.Muon, checks=checks)\n"
        "def test_conforms(check, factory):\n"
        "    check(factory)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "test_mine.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed, 1 skipped" in result.stdout


@pytest.mark.slow
def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\n\n\ndef build(params):\n    return torch.optim.SGD(params)\n")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "jorge.testing", "mine:build", "--fast"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{len(FAST) - 3} of {len(FAST)}" in result.stdout


def test_importing_jorge_does_not_load_the_checks() -> None:
    code = "import sys, jorge; print('jorge.testing' in sys.modules)"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
