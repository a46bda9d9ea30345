"""`jorge ablate`: one option varied, everything else as it was, and a page that shows what came of it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jorge.cli import at_least
from jorge_lab.commands.arguments import add_machine, add_out, add_tasks, console, device_named, tasks_named
from jorge_lab.commands.frame import Command

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from jorge_lab.studies.ablations import Ablation

_DEFAULT_TASKS = ("mnist", "shakespeare", "autoencoder")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="an ablation (--list shows them), or all")
    add_tasks(parser, default=_DEFAULT_TASKS)
    parser.add_argument("--list", action="store_true", help="print the ablations with their questions, and do no more")
    parser.add_argument("--seeds", type=at_least(1), default=2, metavar="N", help="seeds 0 … N-1 (default: 2)")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="optimizer steps (default: the task's)")
    add_out(parser, "ablations", "a folder a name goes in it")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="write the page to this file too, or as NAME.md into this folder; with all, always a folder",
    )
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Ablate; the exit status."""
    import torch

    from jorge_lab.errors import UsageError
    from jorge_lab.studies.ablations import ABLATIONS
    from jorge_lab.studies.approximation_page import QUESTION

    questions = {name: ablation.question for name, ablation in ABLATIONS.items()} | {"error": QUESTION}
    if args.list:
        print("\n".join(f"{name}: {question}" for name, question in questions.items()))
        return 0
    if args.name not in (*questions, "all"):
        given = "name an ablation" if args.name is None else f"there is no ablation {args.name!r}"
        raise UsageError(f"{given}: {', '.join(questions)}, or all")
    args.tasks = tasks_named(args.tasks)
    device = device_named(args.device)
    torch.set_num_threads(args.threads)
    out = console()
    statuses = [0]
    for name in questions if args.name == "all" else [args.name]:
        out.print(f"\n{name}: {questions[name]}", soft_wrap=True)
        folder = args.out / name
        pages = [folder / "page.md"]
        if args.docs is not None:
            into_folder = args.name == "all" or args.docs.is_dir()
            pages.append(args.docs / f"{name}.md" if into_folder else args.docs)
        ablation = ABLATIONS.get(name)
        done = (
            _train(ablation, args, folder, pages, device, out)
            if ablation
            else _follow(args, folder, pages, device, out)
        )
        statuses.append(done)
        if done == 130:
            break
    return max(statuses)


def _command(name: str, args: argparse.Namespace) -> str:
    """The command that repeats one ablation, without where its files go."""
    words = ["jorge", "ablate", name, *args.tasks, "--size", args.size, "--seeds", str(args.seeds)]
    words += ["--steps", str(args.steps)] if args.steps else []
    words += ["--device", args.device] if args.device != "cpu" else []
    return shlex.join(words)


def _train(
    ablation: Ablation,
    args: argparse.Namespace,
    folder: Path,
    pages: list[Path],
    device: torch.device,
    console: Console,
) -> int:
    """An ablation whose variants are compared; the exit status."""
    from jorge_lab.report.terminal import report
    from jorge_lab.runs.compare import open_records, train_all
    from jorge_lab.studies.ablation_page import page
    from jorge_lab.studies.ablations import jobs_of, records_of, share
    from jorge_lab.tasks.finding import find_task

    tasks = [find_task(name, args.size) for name in args.tasks]
    jobs = jobs_of(ablation, tasks, args.tasks, args.size, args.seeds, args.steps)
    store = open_records(folder)
    share(jobs, store, device)
    trained, status = train_all(jobs, store, device, console, args.workers)
    report(trained, folder, "jorge " + shlex.join(sys.argv[1:]), {}, console)
    records = records_of(jobs, store)
    for path in pages if records else ():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(ablation, _command(ablation.name, args), records), encoding="utf-8")
        console.print(f"page:   {path}", soft_wrap=True)
    return status


def _follow(args: argparse.Namespace, folder: Path, pages: list[Path], device: torch.device, console: Console) -> int:
    """The ablation `error`, which looks at the roots; the exit status."""
    from jorge_lab.studies.approximation_page import write
    from jorge_lab.studies.approximation_runs import measure, runs_for

    runs = runs_for(args.tasks, args.size, args.seeds, args.steps)
    records, status = measure(runs, folder, device, console, args.workers)
    for path in pages if records else ():
        write(path, _command("error", args), records, images="" if path.parent == folder else "images")
        console.print(f"page:   {path}", soft_wrap=True)
    return status


COMMAND = Command(
    "ablate",
    "vary one option of Jorge: what does it do to training?",
    "Train with one option varied and everything else as it was, and write a page with what came of it, losers "
    "included. Runs that are finished are kept in --out/NAME and not trained again; those that several ablations have "
    "in common are trained once.",
    arguments,
    run,
)
