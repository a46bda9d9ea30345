"""`jorge ablate`: one option varied, everything else as it was, and a page that shows what came of it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jorge_lab.commands.arguments import add_machine, add_tasks, at_least, console, device_named, said_missing, tasks_named
from jorge_lab.errors import LabError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from jorge_lab.studies.ablations import Ablation

_DEFAULT_TASKS = ("mnist", "shakespeare", "autoencoder")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "ablate",
        help="vary one option of Jorge: what does it do to training?",
        description="Train with one option varied and everything else as it was, and write a page with what came of "
        "it, losers included. Runs that are finished are kept in --out/NAME and not trained again; those that several "
        "ablations have in common are trained once.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="an ablation (--list shows them), or all")
    add_tasks(parser, default=_DEFAULT_TASKS)
    parser.add_argument("--list", action="store_true", help="print the ablations with their questions, and do no more")
    parser.add_argument("--seeds", type=at_least(1), default=2, metavar="N", help="seeds 0 … N-1 (default: 2)")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="optimizer steps (default: the task's)")
    parser.add_argument(
        "--out", type=Path, default=Path("ablations"), metavar="DIR", help="a folder a name goes in it: %(default)s"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE",
        help="write the page to this file too, or as NAME.md into this folder; with all, always a folder",
    )
    add_machine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ablate; the exit status."""
    try:
        import torch

        from jorge_lab.studies.ablations import ABLATIONS
        from jorge_lab.studies.approximation_page import QUESTION
        from jorge_lab.runs.jobs import UsageError
    except ModuleNotFoundError as error:
        raise SystemExit(said_missing(error)) from None
    questions = {name: ablation.question for name, ablation in ABLATIONS.items()} | {"error": QUESTION}
    if args.list:
        print("\n".join(f"{name}: {question}" for name, question in questions.items()))
        return 0
    try:
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
            done = (
                _train(ABLATIONS[name], args, folder, pages, device, out)
                if name in ABLATIONS
                else _follow(args, folder, pages, device, out)
            )
            statuses.append(done)
            if done == 130:
                break
        return max(statuses)
    except (LabError, ValueError) as error:
        print(f"jorge ablate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"jorge ablate: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


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
    from jorge_lab.studies.ablation_page import page
    from jorge_lab.studies.ablations import jobs_of, records_of, share
    from jorge_lab.runs.compare import compare, open_folder
    from jorge_lab.runs.jobs import find_task

    tasks = [find_task(name, args.size) for name in args.tasks]
    jobs = jobs_of(ablation, tasks, args.tasks, args.size, args.seeds, args.steps)
    share(jobs, folder, device)
    status = compare(jobs, folder, {}, device, console, args.workers)
    records = records_of(jobs, open_folder(folder))
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
