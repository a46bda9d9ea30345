"""The results in the docs are those of the committed records, and no others."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from jorge_lab.contenders.tuned import TUNED, read_tuned
from jorge_lab.report import page as report
from jorge_lab.runs.records import read, setting
from jorge_lab.tuning import pruning
from lab.tests.report.quoted import FROM_SGD as FROM_SGD_ALONE

ROOT = Path(__file__).parents[3]
RECORDS, GENERATED = ROOT / "lab" / "records", ROOT / "docs" / "generated"
SUITE = (RECORDS / "suite.jsonl.gz", GENERATED / "results.md", TUNED)
HELD_OUT = (RECORDS / "held_out.jsonl.gz", GENERATED / "held-out" / "results.md", RECORDS / "held_out_tuned.json")
SECOND = (
    RECORDS / "held_out_second.jsonl.gz",
    GENERATED / "held-out-second" / "results.md",
    RECORDS / "held_out_second_tuned.json",
)
#: Nobody is tuned there.
FROM_SGD = (RECORDS / "from_sgd.jsonl.gz", GENERATED / "from-sgd" / "results.md", TUNED)
TO_THE_END = (RECORDS / "full.jsonl.gz", GENERATED / "full" / "results.md", TUNED)
IDS = ["suite", "held out", "the second five", "from SGD", "to the end"]


@pytest.mark.parametrize(("records", "page", "_"), [SUITE, HELD_OUT, SECOND, FROM_SGD, TO_THE_END], ids=IDS)
def test_the_page_is_made_of_the_records(records: Path, page: Path, _: Path, tmp_path: Path) -> None:
    found = read([records])
    report.write(found, tmp_path, "jorge report", {})
    report.write_document(found, tmp_path / "docs" / "results.md", {}, tmp_path)
    assert (tmp_path / "docs" / "results.md").read_text() == page.read_text(), (
        f"write it again: jorge report {records.relative_to(ROOT)} --docs {page.relative_to(ROOT)}"
    )
    drawn = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    assert drawn <= {path.name for path in (page.parent / "images").iterdir()}


def now(task: str) -> str:
    """The name of a task; the records of the held-out ones have the module that they were in when they were made."""
    return task.replace("benchmarks.held_out:", "jorge_lab.tasks.held_out:")


@pytest.mark.parametrize(("records", "_", "tuned"), [SUITE, HELD_OUT, SECOND, FROM_SGD, TO_THE_END], ids=IDS)
def test_tuned_opponents_have_the_tuned_settings(records: Path, _: Path, tuned: Path) -> None:
    for record in read([records]):
        if setting(record) == "tuned":
            entry = read_tuned(tuned)[now(record["task"])][record["size"]][record["optimizer"]]
            assert entry["trials"] >= 8
            assert entry["command"].startswith(f"jorge tune {now(record['task'])} --optimizers {record['optimizer']} ")
            assert all(record["settings"][name] == pytest.approx(value) for name, value in entry["options"].items())


@pytest.mark.parametrize("records", sorted(RECORDS.glob("*.jsonl.gz")), ids=lambda path: path.name)
def test_every_record_says_where_and_when(records: Path) -> None:
    for record in read([records]):
        assert {"jorge", "torch", "python", "machine", "device", "threads", "date"} <= record["environment"].keys()


def test_from_sgd_all_have_the_settings_of_sgds_recipe() -> None:
    found = read([FROM_SGD[0]])
    assert {r["optimizer"] for r in found} == {"sgd", *FROM_SGD_ALONE}
    lr = {r["task"]: r["settings"]["lr"] for r in found if r["optimizer"] == "sgd"}
    for record in found:
        assert setting(record) == "transferred"
        assert record["settings"]["lr"] == lr[record["task"]]
        assert record["optimizer"] == "sgd" or record["settings"]["grafting"] == "sgd"


def test_the_tuned_settings_are_the_best_of_the_committed_trials() -> None:
    journals = [
        (TUNED, ["tune.journal.gz", "tune.earlier.journal.gz", "tune.newer.journal.gz"]),
        (HELD_OUT[2], ["held_out.journal.gz"]),
        (SECOND[2], ["held_out_second.journal.gz"]),
    ]
    own = pruning.read(RECORDS / "tune.jorge.journal.gz")  # those before were of other defaults
    for tuned, names in journals:
        found = [{now(study): t for study, t in pruning.read(RECORDS / name).items()} for name in names]
        found = [{study: t for study, t in each.items() if study not in own} for each in found] + [own]
        for task, sizes in read_tuned(tuned).items():
            for optimizer, entry in sizes["small"].items():
                trials = [t for journal in found for t in journal.get(f"{task}/small/{optimizer}", [])]
                whole = (t for t in trials if t.state is TrialState.COMPLETE)
                best = min(whole, key=lambda t: float(t.value or 0))
                assert entry["options"] == pytest.approx(best.params)
                assert entry["loss"] == pytest.approx(best.value)
