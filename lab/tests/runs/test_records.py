"""Records from files: merged, and put into sections."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jorge_lab.runs.records import machines, merge, read, repetition, sections
from jorge_lab.runs.store import RecordsError
from lab.tests.factory import record


def write(path: Path, *records: dict[str, Any], end: str = "\n") -> Path:
    text = "\n".join(map(json.dumps, records)) + end
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_folders_and_files_are_merged_and_the_newest_wins(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    old = record("sgd", 0, [3.0], date="2026-01-01")
    new = record("sgd", 0, [2.0], date="2026-02-01")
    tuned = record("sgd", 0, [1.0], setting="tuned")
    write(tmp_path / "one" / "runs.jsonl", new, tuned, end='\n{"key": [1, "mn')
    second = write(tmp_path / "two.jsonl.gz", old, record("jorge", 0, [1.0]))
    found = read([tmp_path / "one", second])
    assert [(r["optimizer"], r["losses"]) for r in found] == [("sgd", [2.0]), ("sgd", [1.0]), ("jorge", [1.0])]
    same_day = record("sgd", 0, [7.0], date="2026-02-01")
    assert [r["losses"] for r in merge([new, same_day])] == [[7.0]]


@pytest.mark.parametrize("content", [None, b"", b"nothing\n[1]\n{}\n"])
def test_a_place_without_records_is_told(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordsError, match=r"runs\.jsonl"):
        read([path])
    if content is not None:
        with pytest.raises(RecordsError, match="no records"):
            read([tmp_path])


def test_a_broken_archive_is_told(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl.gz", record("sgd", 0, [1.0] * 100)).read_bytes()
    (tmp_path / "half.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordsError, match="cannot read"):
        read([tmp_path / "half.jsonl.gz"])


def test_sizes_and_lengths_are_sections_of_their_own() -> None:
    one = record("sgd", 0, [1.0])
    assert [(s.name, s.title) for s in sections([one])] == [("mnist", "The task mnist (small)")]
    full = record("sgd", 0, [1.0], size="full")
    longer = record("sgd", 0, [1.0, 1.0], size="full")
    found = sections([one, full, record("jorge", 0, [1.0]), longer])
    assert [(s.name, len(s.records)) for s in found] == [
        ("mnist-small", 2),
        ("mnist-full-1-steps", 1),
        ("mnist-full-2-steps", 1),
    ]
    assert found[1].title == "The task mnist (full, 1 steps)"


def test_a_repetition_is_neither_the_run_nor_compared_with_others() -> None:
    run, other = record("sgd", 0, [2.0], date="2026-01-01"), record("jorge", 0, [1.0])
    again = [record("sgd", 0, [2.0], repetition=n, date="2026-02-01") for n in (1, 2)]
    found = merge([run, *again, other, {**again[0], "losses": [3.0]}])
    assert [(repetition(r), r["losses"]) for r in found] == [(0, [2.0]), (1, [3.0]), (2, [2.0]), (0, [1.0])]
    (section,) = sections(found)
    assert [r["optimizer"] for r in section.records] == ["sgd", "jorge"]
    assert [repetition(r) for r in section.repetitions] == [1, 2]
    assert sections(again) == []


def test_machines_are_told_apart() -> None:
    other = record("jorge", 0, [1.0])
    other["environment"]["device"] = "another"
    assert machines([record("sgd", 0, [1.0]), record("sgd", 1, [1.0])]) == ["CPU (Linux), 1 thread"]
    assert len(machines([record("sgd", 0, [1.0]), other])) == 2
