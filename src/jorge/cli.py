"""The command `jorge`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
import torch.distributed as dist

import jorge
from jorge import checks, options
from jorge.errors import said

#: The group of entry points in which other distributions name commands: objects with a method `add(subparsers)`.
GROUP = "jorge.commands"
#: Options of Jorge with a flag of their own in `jorge cost`.
_FLAGS = ("interval", "block_size", "method", "grafting", "preconditioner_dtype")
#: Commands that are here.
_OWN = ("cost", "doctor")
#: What the laboratory brings.
LABORATORY = ("compare", "tune", "ablate", "report", "tasks")
_INSTALL = "pip install jorge-lab, or in a checkout of Jorge: pip install ./lab"


def at_least(least: int) -> Callable[[str], int]:
    """A kind of argument: a whole number of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return parse


def above_zero(text: str) -> float:
    """A kind of argument: a finite number above 0."""
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
    return tuple(at_least(1)(size) for size in text.split(","))


def _option(text: str) -> tuple[str, Any]:
    """`name=value` of an option of :class:`jorge.Jorge`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"write an option as name=value, not {text!r}")
    return name, _value(name)(value)


def _value(name: str) -> Callable[[str], Any]:
    """A kind of argument: the value of an option of :class:`jorge.Jorge`."""

    def parse(text: str) -> Any:
        try:
            return checks.parse(name, text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    """The parser of the command that is wanted; of all commands, for the help, where there is none of the name."""
    parser = argparse.ArgumentParser(
        prog="jorge",
        description="Second-order optimization without inverses.",
        epilog=f"{', '.join(LABORATORY[:-1])} and {LABORATORY[-1]} come with the laboratory: {_INSTALL}.",
    )
    parser.add_argument("--version", action="version", version=f"jorge {jorge.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    if wanted not in _OWN:
        found = {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in _OWN}
        if wanted in LABORATORY and wanted not in found:
            parser.exit(2, f"jorge {wanted} comes with the laboratory, which is not installed: {_INSTALL}\n")
        for entry in [found[wanted]] if wanted in found else found.values():
            if (problem := _add(entry, commands)) is not None:
                if entry.name == wanted:
                    parser.exit(2, problem)
                sys.stderr.write(problem)
    _add_cost(commands)
    _add_doctor(commands)
    return parser


def _add(entry: EntryPoint, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> str | None:
    """Add the command of an entry point; what is wrong with it, in a line, where it cannot be added."""
    try:
        entry.load().add(commands)
    except Exception as error:  # another distribution's fault must not cost the commands that work
        whose = f" of {entry.dist.name}" if entry.dist is not None else ""
        lines = [*str(error).splitlines(), ""]
        return f"jorge: the command {entry.name}{whose} cannot be loaded: {type(error).__name__}: {lines[0]}\n"
    return None


def _add_cost(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cost = commands.add_parser(
        "cost",
        help="what would the optimizer cost a model, in state, FLOPs and launches, before anything is trained?",
        description="Count state bytes, FLOPs and launches of Jorge and of other optimizers for a model, without "
        "allocating its weights, and predict the overhead over training with SGD or AdamW (docs/guide/cost.md).",
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
    model.add_argument("--tokens", type=at_least(1), metavar="N", help="length of one example of token numbers")
    model.add_argument("--model-flops", type=above_zero, metavar="X", help="of a forward and backward pass instead")
    cost.add_argument("--batch", type=at_least(1), default=32, metavar="N", help="examples a step (default: 32)")
    for name in _FLAGS:
        flag, default = f"--{name.replace('_', '-')}", options.DEFAULTS[name]
        says = f"{checks.wants(name)} (default: {default})"
        cost.add_argument(flag, type=_value(name), default=default, metavar=name.rpartition("_")[2].upper(), help=says)
    cost.add_argument(
        "--options",
        nargs="+",
        type=_option,
        default=[],
        metavar="NAME=VALUE",
        help="other options of Jorge, such as max_dim=4096 degree=1",
    )
    cost.add_argument(
        "--balance", type=above_zero, metavar="X", help="FLOPs in the time of a byte (default: 20; with --gpu 120)"
    )
    cost.add_argument("--gpu", action="store_true", help="count the step on CUDA, and what its launches take")
    cost.add_argument(
        "--model-speed",
        type=above_zero,
        default=1.0,
        metavar="X",
        help="model's FLOPs a second over ours (default: 1)",
    )
    cost.add_argument("--budget", type=_budget, metavar="X", help="5%% or 0.05: suggest interval and block size")
    cost.add_argument(
        "--world-size", type=at_least(1), metavar="N", help="what each of N processes holds and sends too"
    )
    cost.add_argument(
        "--strategy",
        choices=("ddp", "ddp-shard", "ddp-alone", "fsdp", "hsdp"),
        help="how parameters and state lie in them (default: the three of DDP)",
    )
    cost.add_argument(
        "--communication-dtype", choices=("float32", "bfloat16", "float16"), help="in which directions are sent back"
    )
    cost.add_argument(
        "--bandwidth", type=above_zero, default=5e10, metavar="X", help="bytes a second between processes"
    )
    cost.add_argument("--flops-rate", type=above_zero, default=5e13, metavar="X", help="the optimizer's FLOPs a second")
    rows = cost.add_mutually_exclusive_group()
    rows.add_argument("--rows", type=at_least(0), default=12, metavar="N", help="parameters to show (default: 12)")
    rows.add_argument("--all", action="store_true", help="show all parameters, in order")
    cost.add_argument("--json", action="store_true", help="print JSON, with all parameters")
    cost.set_defaults(run=_cost)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="is anything wrong with model, loss and optimizer, before they train?",
        description="Take three dry steps on a copy and say what looks wrong, and what to do. Exit status: 0 where "
        "there is nothing but notes, 1 where there are warnings or errors, 2 where it cannot be asked. Under torchrun "
        "the first process prints.",
    )
    doctor.add_argument(
        "target",
        metavar="TARGET",
        help="module:function, which returns a model, a function of model and batch that is the loss, a batch, and if "
        "you like an optimizer",
    )
    doctor.add_argument("--full", action="store_true", help="print the diagnostics of each parameter too")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from jorge.checkup import doctor
    from jorge.cost.targets import TargetError, imported

    module, colon, name = args.target.partition(":")
    try:
        if not (colon and module and name):
            raise TargetError(f"{args.target!r} is no target: expected module:function")
        given = imported(module, name)()
        if not isinstance(given, (tuple, list)) or len(given) not in (3, 4):
            raise TargetError(f"{args.target} is to return model, loss and batch, and if you like an optimizer")
        if len(given) == 4 and not isinstance(given[3], torch.optim.Optimizer):
            kind = type(given[3]).__name__
            raise TargetError(f"the optimizer of {args.target} is a {kind}; from_sgd and from_adamw return a pair")
        found = doctor(*given)
    except TargetError as error:
        print(f"jorge doctor: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever the user's code may raise
        print(f"jorge doctor: {args.target} raised {said(error)}", file=sys.stderr)
        return 2
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):  # the first of several processes
        if args.full and found.diagnostics is not None:
            print(f"{found.diagnostics}\n")
        print(found)
    return 0 if found.healthy else 1


def _cost(args: argparse.Namespace) -> int:
    from jorge.cost import ModelFlopsError, distributed, estimate, suggest
    from jorge.cost.distributed import automatic
    from jorge.cost.targets import load_target, token_input
    from jorge.exchange.rates import FAR, Rates

    given = {name: getattr(args, name) for name in _FLAGS} | dict(args.options)
    scale = {"balance": args.balance, "model_speed": args.model_speed, "gpu": args.gpu}
    size = args.input or (args.tokens and (args.tokens,))
    try:
        if args.strategy is not None and args.world_size is None:
            raise ValueError("--strategy needs --world-size")
        if args.communication_dtype is not None and args.world_size is None:
            raise ValueError("--communication-dtype needs --world-size")
        if args.budget is not None and not size and args.model_flops is None:
            raise ValueError("--budget needs the model's work: give --input, --tokens or --model-flops")
        model = load_target(args.target, args.args)
        sample: Any = torch.empty(args.batch, *args.input, device="meta") if args.input else None
        if args.tokens:
            sample = token_input(model, args.batch, args.tokens)
        cost = estimate(model, sample_input=sample, model_flops=args.model_flops, **scale, **given)
        suggestion = None
        if args.budget is not None:
            free = {name: value for name, value in given.items() if name not in ("interval", "block_size")}
            suggestion = suggest(model, args.budget, model_flops=cost.model_flops, **scale, **free)
        ways: list[Any] = [args.strategy] if args.strategy else ["ddp", "ddp-shard", "ddp-alone"]
        sent = {"communication_dtype": getattr(torch, args.communication_dtype)} if args.communication_dtype else {}
        several = [
            distributed(model, world_size=args.world_size, strategy=way, **sent, **given) for way in ways[: _many(args)]
        ]
        rates = Rates(args.flops_rate, args.bandwidth, FAR.latency)
        auto = automatic(model, world_size=args.world_size, rates=rates, **given) if len(several) == 3 else None
    except (ValueError, TypeError, ModelFlopsError) as error:
        print(f"jorge cost: {error}", file=sys.stderr)
        return 2
    if args.json:
        found = cost.to_dict() | {"suggestion": suggestion.to_dict() if suggestion else None}
        if several:
            found["distributed"] = [each.to_dict() for each in several]
        print(json.dumps(found, indent=2))
        return 0
    if size:
        print(f"{args.target}, input {'×'.join(map(str, (args.batch, *size)))}\n")
    print(cost.text(None if args.all else args.rows))
    if suggestion is not None:
        print("\n" + textwrap.fill(str(suggestion), 80, break_on_hyphens=False))
    seconds = [each.seconds(flops=args.flops_rate, bandwidth=args.bandwidth) for each in several]
    for each, time in zip(several, seconds, strict=True):
        print(f"\n{each}\nproducts and messages, nothing overlapping: {1e3 * time:.3g} ms a step")
    if len(several) == 3:
        chosen = several[seconds.index(min(seconds))].strategy
        print(f'\nof the three ways of DDP {chosen} takes least time in this model; {auto} is what "auto" takes')
    return 0


def _many(args: argparse.Namespace) -> int | None:
    """How many ways are asked for: none without a number of processes."""
    return 0 if args.world_size is None else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser(next((word for word in words if not word.startswith("-")), None)).parse_args(words)
    try:
        status: int = args.run(args)
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
