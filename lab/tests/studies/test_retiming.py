"""Records of two days on one day's clocks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from jorge_lab.runs.records import measured, read
from jorge_lab.statistics.summary import summarize
from jorge_lab.studies import retiming
from jorge_lab.studies.retiming import as_of_the_later, factors, on_the_cpu_clock
from lab.tests.factory import record

LOSSES = [3.0, 2.0, 1.0]


def test_the_earlier_clocks_are_multiplied_by_what_the_same_runs_say() -> None:
    old = [record("sgd", seed, LOSSES, ms=10, optimizer_ms=2, date="2026-11-26") for seed in (0, 1)]
    new = [record("sgd", seed, LOSSES, ms=5, optimizer_ms=0.5, date="2026-11-27") for seed in (2, 3)]
    found, left_out = as_of_the_later(old, new)
    assert not left_out
    assert [r["seed"] for r in found] == [0, 1, 2, 3]
    for first, last in zip(found[:2], found[2:], strict=True):
        for clock in ("seconds", "optimizer_seconds", "cpu_seconds"):
            assert first[clock] == pytest.approx(last[clock], abs=1e-6)
        assert first["losses"] == LOSSES
        assert first["retimed"]["date"] == "2026-11-27"
        assert "retimed" not in last


def test_other_settings_of_the_optimizer_have_its_factor_and_keep_their_own_curve() -> None:
    old = [
        record("soap", 0, LOSSES, setting="tuned", ms=10),
        record("soap", 0, LOSSES, setting="default", ms=30),
    ]
    new = [record("soap", 1, LOSSES, setting="tuned", ms=20, date="2026-11-27")]
    found, _ = as_of_the_later(old, new)
    assert found[1]["setting"] == "default"
    assert found[1]["seconds"] == pytest.approx([2 * s for s in old[1]["seconds"]])


def test_settings_that_cost_different_amounts_are_not_compared_with_each_other() -> None:
    assert factors([record("soap", 0, LOSSES, setting="default")], [record("soap", 0, LOSSES, setting="tuned")]) == {}


def test_a_run_of_both_days_is_the_later_ones_and_one_without_a_counterpart_is_left_out() -> None:
    old = [record("sgd", 0, LOSSES), record("muon", 0, LOSSES), record("sgd", 1, LOSSES)]
    new = [record("sgd", 0, [3.0, 2.0, 0.5], date="2026-11-27")]
    found, left_out = as_of_the_later(old, new)
    assert [(r["optimizer"], r["seed"], r["losses"][-1]) for r in found] == [("sgd", 0, 0.5), ("sgd", 1, 1.0)]
    assert [r["optimizer"] for r in left_out] == ["muon"]


def test_another_task_of_the_same_optimizer_says_nothing() -> None:
    _, left_out = as_of_the_later([record("sgd", 0, LOSSES, task="mnist")], [record("sgd", 0, LOSSES, task="vit")])
    assert len(left_out) == 1


def test_a_clock_that_one_day_lacks_is_taken_out() -> None:
    old, new = record("sgd", 0, LOSSES), record("sgd", 1, LOSSES, date="2026-11-27")
    del new["cpu_seconds"]
    found, _ = as_of_the_later([old], [new])
    assert "cpu_seconds" not in found[0]
    assert found[0]["seconds"] == old["seconds"]


def test_the_cpu_clock_leaves_out_what_ran_beside_a_run() -> None:
    slow = record("sgd", 0, LOSSES, ms=10, optimizer_ms=2)
    slow["cpu_seconds"] = [0.01, 0.015, 0.025]  # the second step waited as long for the processor as it took
    found = on_the_cpu_clock(slow)
    assert found["seconds"] == found["cpu_seconds"] == slow["cpu_seconds"]
    assert found["optimizer_seconds"] == pytest.approx([0.002, 0.001, 0.002])
    assert slow["seconds"] == pytest.approx([0.01, 0.02, 0.03])


def test_the_command_writes_what_a_report_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = [record("sgd", 0, LOSSES), record("jorge", 0, LOSSES), record("muon", 0, LOSSES)]
    new = [
        record("sgd", 1, LOSSES, ms=20, date="2026-11-27"),
        record("jorge", 0, LOSSES, ms=20, date="2026-11-27"),
        record("jorge", 1, LOSSES, ms=20, date="2026-11-27"),
        record("jorge", 0, LOSSES, ms=21, date="2026-11-27", repetition=1),
    ]
    for name, records in (("old", old), ("new", new)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    out = tmp_path / "both.jsonl.gz"
    retiming.main([str(tmp_path / "old.jsonl"), str(tmp_path / "new.jsonl"), "--out", str(out), "--without", "jorge"])
    said = capsys.readouterr()
    assert "mnist, sgd: cpu_seconds × 2.00, optimizer_seconds × 1.00, seconds × 2.00" in said.out
    assert said.err == "left out: mnist, muon, seed 0\n"
    rows = {row.optimizer: row for row in summarize([r for r in read([out]) if not r.get("repetition")])}
    assert rows["sgd"].runs == rows["jorge"].runs == 2
    assert rows["sgd"].seconds == rows["jorge"].seconds == pytest.approx(0.06)
    assert sum(r.get("repetition", 0) for r in read([out])) == 1
    assert gzip.decompress(out.read_bytes()).count(b"\n") == 5
    both = [str(tmp_path / f"{name}.jsonl") for name in ("old", "new")]
    retiming.main([*both, "--out", str(out), "--without", "jorge,muon", "--cpu"])
    assert summarize(read([out])[:1])[0].seconds == pytest.approx(0.054)
    machine = "CPU (Linux), 1 thread, jorge 0.1, torch 2, Python 3"
    assert measured(read([out])) == [
        f"{machine}; 2026-11-23; all seconds are CPU seconds; seconds as on 2026-11-27",
        f"{machine}; 2026-11-27; all seconds are CPU seconds",
    ]
