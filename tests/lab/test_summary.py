"""The arithmetic of the comparison, on records made by hand."""

from pathlib import Path
from typing import Any

import pytest

from jorge.lab import report
from jorge.lab.summary import first_step_below, smooth, summarize, targets
from jorge.lab.tasks import TASKS

MNIST = TASKS["mnist"]


def record(optimizer: str, seed: int, losses: list[float], ms: float, diverged_at: int | None = None) -> dict[str, Any]:
    return {
        "optimizer": optimizer,
        "seed": seed,
        "steps": 10,
        "losses": losses,
        "seconds": [ms / 1000 * (i + 1) for i in range(len(losses))],
        "optimizer_seconds": [ms / 4000] * len(losses),
        "evaluations": [(10, 0.9)],
        "diverged_at": diverged_at,
        "state_bytes": 100,
        "settings": {"lr": 0.1},
        "environment": dict.fromkeys(("jorge", "torch", "python", "device", "machine", "threads", "date"), "x"),
    }


SGD = [record("sgd", seed, [10 - i + seed for i in range(10)], 10) for seed in (0, 1)]
JORGE = [record("jorge", seed, [max(0.5, 10 - 3 * i + seed) for i in range(10)], 20) for seed in (0, 1)]
BROKEN = [record("adamw", 0, [9.0, 8.0], 10, diverged_at=3)]


def test_smoothing_and_the_first_step_below() -> None:
    assert smooth([1, 2, 3, 4], steps=40) == [1.5, 2.5, 3.5]
    assert first_step_below(SGD[0], 4.0) == 7
    assert first_step_below(SGD[0], 0.0) is None


def test_each_seed_has_its_baselines_best_as_target() -> None:
    assert targets(MNIST, [*SGD, *JORGE], None) == {0: 1, 1: 2}
    assert targets(MNIST, JORGE, None) == {}
    assert targets(MNIST, JORGE, 3.0) == {0: 3.0, 1: 3.0}


def test_rows() -> None:
    jorge, sgd, adamw = summarize(MNIST, [*JORGE, *SGD, *BROKEN])
    assert (sgd.steps_to_target, jorge.steps_to_target) == (10, 4)
    assert jorge.step_ratio == pytest.approx(0.4)
    assert jorge.speedup == pytest.approx(10 * 10 / (4 * 20))
    assert jorge.step_ms == pytest.approx(20)
    assert jorge.optimizer_share == pytest.approx(0.25)
    assert adamw.diverged == "seed 0 at step 3"
    assert adamw.steps_to_target is None
    assert adamw.final_loss is None


def test_the_answer_in_words() -> None:
    def said(records: list[dict[str, Any]], target: float | None = None) -> str:
        return report.answer(report.Section(MNIST, records, summarize(MNIST, records, target), target))

    assert said([*SGD, *JORGE]).startswith("Jorge reaches the target in the fewest steps, 4, 0.40 of SGD's.")
    assert "1.25 times as fast as SGD" in said([*SGD, *JORGE])
    assert said(JORGE).startswith("No target")
    assert said(SGD, -1.0).startswith("No optimizer reached")


def test_a_report_is_written_whatever_happened(tmp_path: Path) -> None:
    for records in ([*SGD, *JORGE, *BROKEN], BROKEN, [record("sgd", 0, [], 10, diverged_at=1)]):
        section = report.Section(MNIST, records, summarize(MNIST, records), None)
        page = report.write([section], tmp_path, "jorge compare").read_text()
        assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")
        assert "<script" not in page
        assert (tmp_path / "mnist.svg").read_text().startswith("<svg")
