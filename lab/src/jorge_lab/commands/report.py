"""`jorge report`: tables and pictures from records that are there, without training."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from jorge_lab.commands.arguments import add_out, add_target, add_wide, console, given_targets
from jorge_lab.commands.frame import Command


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="folders of jorge compare, or .jsonl or .jsonl.gz files"
    )
    add_out(parser, "report")
    add_target(parser)
    parser.add_argument(
        "--docs", type=Path, metavar="FILE.md", help="write the tables to a page too, its pictures to images beside it"
    )
    add_wide(parser)


def run(args: argparse.Namespace) -> int:
    """Read, write and say where; the exit status."""
    from jorge_lab.report import page
    from jorge_lab.report.terminal import report
    from jorge_lab.runs import records

    found = records.read(args.runs)
    targets = given_targets(args.target, found)
    report(found, args.out, "jorge " + shlex.join(sys.argv[1:]), targets, console(), wide=args.wide)
    if args.docs is not None:
        page.write_document(found, args.docs, targets, args.out)
    return 0


COMMAND = Command(
    "report",
    "report on runs that jorge compare has recorded, of one folder or several",
    "Write report.html, summary.csv, summary.md and a picture a task from records of runs. Several places are merged: "
    "of runs with the same key the newest counts.",
    arguments,
    run,
)
