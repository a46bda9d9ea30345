"""Seconds of records of an earlier day, as of a later one: `python -m jorge_lab.studies.retiming OLD NEW --out FILE`.

Losses of a run do not depend on the day, seconds do: machines of one name differ. Where a few runs of an optimizer on a
task were made on both days, their seconds a step say by what factor the later day is faster or slower for it, and the
earlier records' clocks are multiplied by that. Records that have no such runs beside them are left out, by name. A
record says in `retimed` by which factors, and of which day its clocks are now.

`--cpu` takes the processor's clock for the wall's in all of them, where other work ran beside the runs: a run of one
thread takes as long by both on a machine of its own.

OLD and NEW are what `jorge report` reads; FILE is `.jsonl.gz` and has both, NEW's where a run is in both. `--without`
names optimizers whose OLD records no longer hold, as a default of theirs has changed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from jorge_lab.runs.records import merge, read, repetition, setting
from jorge_lab.runs.store import Record

#: The clocks of a record that are cumulative, and the one that has each step's own.
_CUMULATIVE, _EACH = ("seconds", "cpu_seconds"), "optimizer_seconds"
#: The clocks of a task and an optimizer.
_Kind = tuple[str, str, int, str]


def _kind(record: Record) -> _Kind:
    return record["task"], str(record.get("size") or ""), record["steps"], record["optimizer"]


def paces(record: Record) -> dict[str, float]:
    """Seconds a step by clock, for those clocks that the record has."""
    found = {clock: record[clock][-1] / len(record[clock]) for clock in _CUMULATIVE if record.get(clock)}
    if record.get(_EACH):
        found[_EACH] = sum(record[_EACH]) / len(record[_EACH])
    return found


def factors(old: Sequence[Record], new: Sequence[Record]) -> dict[str, float]:
    """By clock, seconds a step of the new records over those of the old, medians of each; all of one optimizer.

    Those of one setting are compared with each other, as settings may differ in what a step costs; the first of
    transferred, tuned and default that both have. Empty where they share none.
    """
    for kind in ("transferred", "tuned", "default"):
        before, after = ([paces(r) for r in some if setting(r) == kind] for some in (old, new))
        if before and after:
            shared = set.intersection(*map(set, before), *map(set, after))
            return {c: median(p[c] for p in after) / median(p[c] for p in before) for c in sorted(shared)}
    return {}


def retimed(record: Record, by: dict[str, float], date: str) -> Record:
    """The record with its clocks multiplied; those without a factor are taken out."""
    found = {key: value for key, value in record.items() if key not in (*_CUMULATIVE, _EACH)}
    for clock, factor in by.items():
        if record.get(clock):
            found[clock] = [round(value * factor, 6) for value in record[clock]]
    return found | {"retimed": {"date": date, "factors": {clock: round(f, 4) for clock, f in by.items()}}}


def on_the_cpu_clock(record: Record) -> Record:
    """The record with CPU seconds for wall seconds; what the optimizer took of a step is the same share of it."""
    cpu: Sequence[float] = record["cpu_seconds"]
    walls, cpus = ([b - a for a, b in pairwise([0.0, *clock])] for clock in (record["seconds"], cpu))
    shares = (c / w if w else 1.0 for w, c in zip(walls, cpus, strict=True))
    spent = [round(s * share, 6) for s, share in zip(record[_EACH], shares, strict=True)]
    return record | {"seconds": cpu, _EACH: spent, "clock": "cpu"}


def as_of_the_later(old: Iterable[Record], new: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """All records on the later day's clocks, and those of the old ones for which nothing tells the factor."""
    before: defaultdict[_Kind, list[Record]] = defaultdict(list)
    after: defaultdict[_Kind, list[Record]] = defaultdict(list)
    for record in old:
        before[_kind(record)].append(record)
    for record in new:
        if not repetition(record):
            after[_kind(record)].append(record)
    kept: list[Record] = []
    left_out: list[Record] = []
    for kind, records in before.items():
        by = factors(records, after[kind])
        if by:
            date = max(str(r.get("environment", {}).get("date", "")) for r in after[kind])
            kept += [retimed(record, by, date) for record in records]
        else:
            left_out += records
    return merge([*kept, *new]), left_out


def main(argv: Sequence[str] | None = None) -> None:
    """Read both, write one file, and print the factors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--without", default="", metavar="A,B,…")
    args = parser.parse_args(argv)
    stale = args.without.split(",")
    old, new = [r for r in read([args.old]) if r["optimizer"] not in stale], read([args.new])
    if args.cpu:
        old, new = list(map(on_the_cpu_clock, old)), list(map(on_the_cpu_clock, new))
    found, left_out = as_of_the_later(old, new)
    for record in left_out:
        print(f"left out: {record['task']}, {record['optimizer']}, seed {record['seed']}", file=sys.stderr)
    said = {_kind(r): r["retimed"]["factors"] for r in found if "retimed" in r}
    for (task, _, _, optimizer), by in said.items():
        print(f"{task}, {optimizer}: " + ", ".join(f"{clock} × {factor:.2f}" for clock, factor in by.items()))
    lines = (json.dumps(record, separators=(",", ":")) for record in found)
    args.out.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


if __name__ == "__main__":
    main()
