"""The command `jorge`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import jorge
from jorge.methods import METHODS

_EXTRA = "this command needs the extra packages of the laboratory: pip install 'jorge[lab]'"


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return parse


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _budget(text: str) -> float:
    """`5%` or `0.05`."""
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf or (value > 1 and not percent):
        raise argparse.ArgumentTypeError(f"must be a part, written 5% or 0.05, got {text!r}")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_at_least(1)(size) for size in text.split(","))


def _block_size(text: str) -> int | str:
    return text if text == "auto" else _at_least(1)(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jorge", description="Second-order optimization without inverses.")
    parser.add_argument("--version", action="version", version=f"jorge {jorge.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="train one model with several optimizers: which reaches the target first, and at what cost?",
        description="Train the same model from the same weights on the same batches with each optimizer, and report "
        "which reaches the target first, in steps and in seconds. Runs that are finished are kept in --out and not "
        "trained again, so the command can be stopped and repeated.",
    )
    compare.add_argument(
        "tasks", nargs="*", metavar="TASK", default=["mnist"], help="mnist (default), autoencoder, shakespeare"
    )
    compare.add_argument(
        "--optimizers", default="jorge,sgd,adamw,shampoo", metavar="A,B,…", help="default: %(default)s"
    )
    compare.add_argument("--seeds", type=_at_least(1), default=1, metavar="N", help="seeds 0 … N-1 (default: 1)")
    compare.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    length = compare.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_at_least(1), metavar="N", help="optimizer steps (default: the task's)")
    length.add_argument(
        "--epochs", type=_above_zero, metavar="X", help="passes over the training data instead of steps"
    )
    compare.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="[TASK=]LOSS",
        help="smoothed training loss to reach (default: the best of the task's first-order baseline)",
    )
    compare.add_argument("--threads", type=_at_least(1), default=1, metavar="N", help="CPU threads (default: 1)")
    compare.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    compare.set_defaults(run=_compare)
    _add_cost(commands)
    return parser


def _add_cost(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cost = commands.add_parser(
        "cost",
        help="what would the optimizer cost a model, in state, FLOPs and launches, before anything is trained?",
        description="Count state bytes, FLOPs and launches of Jorge and of other optimizers for a model, without "
        "allocating its weights, and predict the overhead over training with SGD or AdamW (docs/cost.md).",
    )
    cost.add_argument(
        "target",
        metavar="TARGET",
        help="module:callable, such as torchvision.models:resnet50; a directory or .json file with a Hugging Face "
        "config; a state dict in a .pt, .pth, .bin or .safetensors file",
    )
    cost.add_argument("--args", nargs="+", default=[], metavar="KEY=VALUE", help="arguments for module:callable")
    model = cost.add_mutually_exclusive_group()
    model.add_argument("--input", type=_sizes, metavar="N,…", help="shape of one float32 example: 3,224,224")
    model.add_argument("--tokens", type=_at_least(1), metavar="N", help="length of one example of token numbers")
    model.add_argument("--model-flops", type=_above_zero, metavar="X", help="of a forward and backward pass instead")
    cost.add_argument("--batch", type=_at_least(1), default=32, metavar="N", help="examples a step (default: 32)")
    cost.add_argument("--interval", type=_at_least(1), default=10, metavar="K", help="default: %(default)s")
    cost.add_argument("--block-size", type=_block_size, default="auto", metavar="N", help="a number, or auto (default)")
    cost.add_argument("--method", choices=list(METHODS), default="whitening", help="default: %(default)s")
    cost.add_argument("--grafting", choices=["sgd", "adam"], default="sgd", help="default: %(default)s")
    cost.add_argument("--bf16-roots", action="store_true", help="store the roots in bfloat16")
    cost.add_argument(
        "--balance", type=_above_zero, default=20.0, metavar="X", help="FLOPs in the time of a byte (default: 20)"
    )
    cost.add_argument(
        "--model-speed",
        type=_above_zero,
        default=1.0,
        metavar="X",
        help="model's FLOPs a second over ours (default: 1)",
    )
    cost.add_argument("--budget", type=_budget, metavar="X", help="5%% or 0.05: suggest interval and block size")
    rows = cost.add_mutually_exclusive_group()
    rows.add_argument("--rows", type=_at_least(0), default=12, metavar="N", help="parameters to show (default: 12)")
    rows.add_argument("--all", action="store_true", help="show all parameters, in order")
    cost.add_argument("--json", action="store_true", help="print JSON, with all parameters")
    cost.set_defaults(run=_cost)


def _cost(args: argparse.Namespace) -> int:
    from jorge.cost import ModelFlopsError, estimate, suggest
    from jorge.cost.targets import load_target, token_input

    options = {"interval": args.interval, "block_size": args.block_size, "method": args.method}
    options |= {"grafting": args.grafting, "preconditioner_dtype": torch.bfloat16 if args.bf16_roots else None}
    scale = {"balance": args.balance, "model_speed": args.model_speed}
    size = args.input or (args.tokens and (args.tokens,))
    try:
        if args.budget is not None and not size and args.model_flops is None:
            raise ValueError("--budget needs the model's work: give --input, --tokens or --model-flops")
        model = load_target(args.target, args.args)
        sample: Any = torch.empty(args.batch, *args.input, device="meta") if args.input else None
        if args.tokens:
            sample = token_input(model, args.batch, args.tokens)
        cost = estimate(model, sample_input=sample, model_flops=args.model_flops, **scale, **options)
        suggestion = None
        if args.budget is not None:
            free = {name: value for name, value in options.items() if name not in ("interval", "block_size")}
            suggestion = suggest(model, args.budget, model_flops=cost.model_flops, **scale, **free)
    except (ValueError, TypeError, ModelFlopsError) as error:
        print(f"jorge cost: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(cost.to_dict() | {"suggestion": suggestion.to_dict() if suggestion else None}, indent=2))
        return 0
    if size:
        print(f"{args.target}, input {'×'.join(map(str, (args.batch, *size)))}\n")
    print(cost.text(None if args.all else args.rows))
    if suggestion is not None:
        print(f"\n{suggestion}")
    return 0


def _targets(given: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
    from jorge.lab.compare import UsageError

    targets = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            loss = float(value)
        except ValueError:
            loss = math.nan
        if not math.isfinite(loss):
            raise UsageError(f"--target takes a loss or TASK=LOSS, got {text!r}")
        if name and name not in tasks:
            raise UsageError(f"--target {text!r}: {name!r} is not among the tasks compared, {', '.join(tasks)}")
        if not name and len(tasks) > 1:
            raise UsageError(f"--target {text!r}: with several tasks, write TASK={text}")
        targets[name or tasks[0]] = loss
    return targets


def _compare(args: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from jorge.lab import compare
        from jorge.lab.contenders import CONTENDERS
        from jorge.lab.task import DataMissingError
        from jorge.lab.tasks import TASKS
    except ModuleNotFoundError as error:
        raise SystemExit(f"jorge: {error.name} is not installed; {_EXTRA}") from None
    try:
        names = list(dict.fromkeys(args.tasks))
        chosen = list(dict.fromkeys(name.strip() for name in args.optimizers.split(",") if name.strip()))
        for kind, wanted, known in (("task", names, TASKS), ("optimizer", chosen, CONTENDERS)):
            for name in wanted:
                if name not in known:
                    raise compare.UsageError(f"unknown {kind} {name!r}: there are {', '.join(known)}")
        if not chosen:
            raise compare.UsageError(f"--optimizers is empty: choose among {', '.join(CONTENDERS)}")
        device = _device(args.device)
        torch.set_num_threads(args.threads)
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        compare.open_folder(args.out)
        jobs = compare.jobs_for([TASKS[name] for name in names], chosen, args.seeds, args.steps, args.epochs)
        return compare.compare(jobs, args.out, _targets(args.target, names), device, console)
    except (compare.UsageError, DataMissingError) as error:
        print(f"jorge compare: {error}", file=sys.stderr)
        return 2


def _device(name: str) -> torch.device:
    from jorge.lab.compare import UsageError

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's); returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
