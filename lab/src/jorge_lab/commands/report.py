"""`jorge report`: tables, pictures and the page from records that are there, without training."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jorge_lab.commands.arguments import said_missing
from jorge_lab.errors import LabError

if TYPE_CHECKING:
    from jorge_lab.runs.records import Record


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "report",
        help="report on runs that jorge compare has recorded, of one folder or several",
        description="Write report.html, summary.csv, summary.md and a picture a task from records of runs. Several "
        "places are merged: of runs with the same key the newest counts.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="folders of jorge compare, or .jsonl or .jsonl.gz files"
    )
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="default: %(default)s")
    add_target(parser)
    parser.add_argument(
        "--docs", type=Path, metavar="FILE.md", help="write the tables to a page too, its pictures to images beside it"
    )
    parser.set_defaults(run=run)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the targets."""
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="[TASK=]LOSS",
        help="smoothed training loss to reach (default: the best of the task's first-order baseline)",
    )


def run(args: argparse.Namespace) -> int:
    """Read, write and say where; the exit status."""
    try:
        from jorge_lab.runs import records
        from jorge_lab.report import page as report
    except ModuleNotFoundError as error:
        raise SystemExit(said_missing(error)) from None
    try:
        found = records.read(args.runs)
        targets = given_targets(args.target, found)
        page = report.write(found, args.out, "jorge " + shlex.join(sys.argv[1:]), targets)
        if args.docs is not None:
            report.write_document(found, args.docs, targets, args.out)
    except (LabError, ValueError) as error:
        print(f"jorge report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"jorge report: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    for title, _, answer in report.tables(found, targets):
        print(f"{title}: {answer}")
    print(f"\n{len(found)} runs; report: {page}")
    return 0


def given_targets(given: Sequence[str], records: Iterable[Record]) -> dict[str, float]:
    """`[TASK=]LOSS` as losses by task.

    Raises:
        ValueError: it is no number, or the task is not in the records; the message says so.
    """
    tasks = list(dict.fromkeys(str(record["task"]) for record in records))
    targets = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            loss = float(value)
        except ValueError:
            loss = math.nan
        if not math.isfinite(loss):
            raise ValueError(f"--target takes a loss or TASK=LOSS, got {text!r}")
        if name and name not in tasks:
            raise ValueError(f"--target {text!r}: {name!r} is not among the tasks recorded, {', '.join(tasks)}")
        if not name and len(tasks) > 1:
            raise ValueError(f"--target {text!r}: with several tasks, write TASK={text}")
        targets[name or tasks[0]] = loss
    return targets
