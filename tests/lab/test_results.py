"""The results in the docs are those of the committed records, and no others."""

from pathlib import Path

import pytest

from benchmarks import pruning
from jorge.lab import report
from jorge.lab.opponents.tuned import TUNED, read_tuned
from jorge.lab.records import read, setting

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "results" / "suite.jsonl.gz"
PAGE = ROOT / "docs" / "results.md"


def test_the_page_is_made_of_the_records(tmp_path: Path) -> None:
    records = read([RECORDS])
    report.write(records, tmp_path, "jorge report", {})
    report.write_document(records, tmp_path / "docs" / "results.md", {}, tmp_path)
    assert (tmp_path / "docs" / "results.md").read_text() == PAGE.read_text(), (
        f"write it again: jorge report {RECORDS.relative_to(ROOT)} --docs {PAGE.relative_to(ROOT)}"
    )
    drawn = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    assert drawn <= {path.name for path in (ROOT / "docs" / "images").iterdir()}


def test_every_record_says_where_and_when_and_has_tuned_opponents() -> None:
    for record in read([RECORDS]):
        assert {"jorge", "torch", "python", "machine", "device", "threads", "date"} <= record["environment"].keys()
        if setting(record) == "tuned":
            entry = read_tuned(TUNED)[record["task"]][record["size"]][record["optimizer"]]
            assert entry["trials"] >= 8
            assert entry["command"].startswith(f"jorge tune {record['task']} --optimizers {record['optimizer']} ")
            assert all(record["settings"][name] == pytest.approx(value) for name, value in entry["options"].items())


def test_the_tuned_settings_are_the_best_of_the_committed_trials() -> None:
    found = [pruning.read(path) for path in (pruning.JOURNAL, pruning.JOURNAL.with_name("tune.earlier.journal.gz"))]
    checked = 0
    for task, sizes in read_tuned(TUNED).items():
        for optimizer in sizes["small"].keys() & set(pruning.OPTIMIZERS):
            trials = [t for journal in found for t in journal.get(f"{task}/small/{optimizer}", [])]
            best = min((t for t in trials if t.value is not None), key=lambda t: float(t.value or 0))
            assert sizes["small"][optimizer]["options"] == pytest.approx(best.params)
            assert sizes["small"][optimizer]["loss"] == pytest.approx(best.value)
            checked += 1
    assert checked == 60
