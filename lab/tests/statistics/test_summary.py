"""The arithmetic of the comparison, on records made by hand."""

import csv
import math
from pathlib import Path

import pytest

from jorge_lab.report.columns import cells
from jorge_lab.statistics.reaching import first_step_below, smooth, targets
from jorge_lab.statistics.summary import summarize, write_csv
from lab.tests.factory import record

SGD = [record("sgd", seed, [10 - i + seed for i in range(10)], optimizer_ms=1) for seed in (0, 1)]
JORGE = [
    record("jorge", seed, [max(0.5, 10 - 3 * i + seed) for i in range(10)], ms=20, optimizer_ms=5) for seed in (0, 1)
]
BROKEN = [record("adamw", 0, [9.0, 8.0], steps=10)]


def test_smoothing_and_the_first_step_below() -> None:
    assert smooth([1, 2, 3, 4], steps=40) == [1.5, 2.5, 3.5]
    assert first_step_below(SGD[0], 4.0) == 7
    assert first_step_below(SGD[0], 0.0) is None


def test_each_seed_has_its_baselines_best_as_target() -> None:
    assert targets([*SGD, *JORGE]) == {0: 1, 1: 2}
    assert targets(JORGE) == {}
    assert targets(JORGE, 3.0) == {0: 3.0, 1: 3.0}


def test_the_baselines_tuned_run_is_the_target_where_there_is_one() -> None:
    tuned = record("sgd", 1, [5.0, 0.25, 0.5, *[1.0] * 7], setting="tuned")
    assert targets([*SGD, tuned, *JORGE]) == {0: 1, 1: 0.25}
    unlucky = record("sgd", 0, [5.0], setting="tuned", steps=10)
    own = record("sgd", 1, [0.1] * 10, setting="default")
    assert targets([*SGD, tuned, unlucky, own]) == {0: 1, 1: 0.25}, "neither a diverged run nor the default is a target"


def test_a_tuned_baseline_that_is_worse_sets_no_target() -> None:
    tuned = [record("sgd", seed, [5.0 + seed] * 10, setting="tuned") for seed in (0, 1)]
    assert targets([*SGD, *tuned]) == {0: 1, 1: 2}
    assert {row.baseline for row in summarize([*SGD, *tuned, *JORGE])} == {"SGD"}
    late = record("sgd", 2, [6.0] * 10, setting="tuned")
    assert targets([*SGD, late]) == {0: 1, 1: 2, 2: 2}, "the worse setting fills what the better one lacks"


def test_a_seed_with_which_the_baseline_failed_takes_the_median() -> None:
    runs = [record("sgd", seed, [loss] * 2) for seed, loss in enumerate([0.3, 0.4, 2.3])]
    assert targets(runs) == {0: 0.3, 1: 0.4, 2: 0.4}
    runs = [record("sgd", seed, [loss] * 2) for seed, loss in enumerate([-1.0, -1.5, -0.1])]
    assert targets(runs) == {0: -1.0, 1: -1.5, 2: -0.1}


def test_records_that_name_no_baseline_take_the_better_first_order_method() -> None:
    old = [record("sgd", 0, [3.0, 2.0]), record("adamw", 0, [3.0, 1.0]), record("jorge", 0, [0.5, 0.5])]
    for r in old:
        for name in ("task_info", "setting", "label", "size", "cpu_seconds"):
            del r[name]
    assert targets(old) == {0: 1.0}
    sgd, adamw, jorge = summarize(old)
    assert (jorge.label, jorge.setting, jorge.baseline) == ("jorge", "transferred", "adamw")
    assert (sgd.reached, adamw.steps_to_target, jorge.steps_to_target) == (0, 2, 1)
    assert jorge.cpu_seconds_to_target is None
    assert cells(jorge)["CPU seconds to target"] == "–"


def test_rows() -> None:
    jorge, sgd, adamw = summarize([*JORGE, *SGD, *BROKEN])
    assert (sgd.steps_to_target, jorge.steps_to_target) == (10, 4)
    assert jorge.step_ratio == pytest.approx(0.4)
    assert jorge.speedup == pytest.approx(10 * 10 / (4 * 20))
    assert jorge.cpu_seconds_to_target == pytest.approx(0.9 * jorge.seconds_to_target)  # type: ignore[operator]
    assert (jorge.model_ms, jorge.optimizer_ms, jorge.step_ms) == pytest.approx((15, 5, 20))
    assert jorge.optimizer_share == pytest.approx(0.25)
    assert adamw.diverged == "seed 0 at step 3"
    assert adamw.steps_to_target is None
    assert adamw.final_loss is None
    assert cells(adamw)["steps to target"] == "not reached"
    assert cells(jorge)["speed-up over SGD"] == "1.25×"


def test_a_metric_that_is_not_finite_at_the_end_of_one_run_has_no_spread() -> None:
    found = [record("sgd", seed, [9.0, 8.0 - seed], metric=metric) for seed, metric in enumerate((0.9, math.nan, 0.8))]
    (row,) = summarize(found)
    assert row.metric_sd is None
    assert row.final_loss_sd is not None


def test_a_setting_has_a_row_of_its_own_and_settings_stand_together() -> None:
    kinds = [
        ("jorge", "default"),
        ("sgd", "transferred"),
        ("jorge", "transferred"),
        ("sgd", "tuned"),
        ("jorge", "tuned"),
    ]
    rows = summarize([record(name, 0, [3.0, 2.0], setting=setting) for name, setting in kinds])
    assert [row.key for row in rows] == [
        ("jorge", "transferred"),
        ("jorge", "tuned"),
        ("jorge", "default"),
        ("sgd", "transferred"),
        ("sgd", "tuned"),
    ]
    assert rows[0].baseline == "SGD (tuned)"
    assert [row.is_baseline for row in rows] == [False, False, False, False, True]


def test_a_seed_that_does_not_reach_the_target_is_infinitely_late() -> None:
    runs = [record("jorge", seed, losses) for seed, losses in enumerate([[3.0, 1.0, 1.0], [3.0, 3.0, 1.0], [3.0] * 3])]
    (row,) = summarize(runs, target=1.0)
    assert (row.steps_to_target, row.steps_low, row.steps_high) == (3, 2, 3)
    assert cells(row)["steps to target"] == "3 (2 of 3)"
    (row,) = summarize([*runs, record("jorge", 3, [3.0] * 3)], target=1.0)
    assert row.steps_to_target is None
    assert cells(row)["steps to target"] == "not reached (2 of 4)"


def test_the_optimizers_part_is_a_mean_and_the_models_a_median() -> None:
    run = record("jorge", 0, [1.0] * 5, ms=10, optimizer_ms=2)
    run["optimizer_seconds"] = [0.5, 0.001, 0.009, 0.001, 0.009]
    run["seconds"] = [0.6, 0.61, 0.63, 0.64, 0.66]
    (row,) = summarize([run])
    assert row.optimizer_ms == pytest.approx(5)
    assert row.model_ms == pytest.approx(10)  # 9, 11, 9 and 11 ms
    assert row.first_step_ms == pytest.approx(600)


def test_what_is_best_comes_from_the_test() -> None:
    def runs(name: str, at: list[int], metrics: list[float]) -> list[dict[str, object]]:
        """Runs of 100 steps that reach the target 1 at these steps, and end all alike."""
        whole = [[3.0] * (step - 1) + [0.0] * 5 + [2.0] * (96 - step) for step in at]
        return [record(name, s, x, metric=m) for s, (x, m) in enumerate(zip(whole, metrics, strict=True))]

    rows = summarize(
        [
            *runs("jorge", [20, 21, 22], [0.90, 0.91, 0.92]),
            *runs("shampoo", [21, 20, 22], [0.91, 0.90, 0.93]),
            *runs("adamw", [40, 42, 44], [0.80, 0.81, 0.82]),
        ],
        target=2.0,
    )
    jorge, shampoo, adamw = rows
    assert "steps_to_target" in jorge.best & shampoo.best
    assert "metric" in jorge.best & shampoo.best
    assert not adamw.best & {"steps_to_target", "metric"}
    assert (shampoo.verdicts["steps"], adamw.verdicts["steps"]) == ("level", "behind")
    assert not jorge.verdicts
    assert jorge.reference == "Jorge (transferred)"
    one_seed = summarize([*runs("jorge", [20], [0.9]), *runs("adamw", [40], [0.8])], target=2.0)
    assert all(not row.best for row in one_seed), "one seed proves nothing"


def test_the_table_as_csv(tmp_path: Path) -> None:
    write_csv(summarize([*JORGE, *SGD, *BROKEN]), tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open() as file:
        jorge, sgd, adamw = csv.DictReader(file)
    assert (jorge["optimizer"], jorge["setting"], jorge["size"]) == ("jorge", "transferred", "small")
    assert float(sgd["speedup"]) == 1.0
    assert sgd["steps_verdict"] == "slower"
    assert float(sgd["steps_ratio"]) == pytest.approx(2.5)
    assert float(sgd["steps_ratio_low"]) == float(sgd["steps_ratio_high"]) == pytest.approx(2.5)
    assert (jorge["steps_verdict"], jorge["steps_ratio"]) == ("", "")
    assert (adamw["steps_verdict"], adamw["steps_ratio_low"]) == ("", ""), "one seed"
    assert float(adamw["steps_ratio"]) > 1
    assert adamw["steps_to_target"] == ""
