"""What every recipe is given: arguments, and the optimizer that follows from them and a first-order recipe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from jorge import Jorge, checks


@dataclass(frozen=True)
class Recipe:
    """A first-order recipe: what SGD and AdamW are given, and what Jorge and Shampoo take over.

    Args:
        batch_size: examples a step that the learning rates are for. SGD's grows with the batch, AdamW's does not.
        epochs: passes over the data.
        sgd: of `torch.optim.SGD`; `None` where there is no such recipe.
        adamw: of `torch.optim.AdamW`.
        transferred: which of the two Jorge and Shampoo take their settings from.
        decay: the factor on the learning rate at a share of the training, from 0 to 1.
        warmup_steps: over which the learning rate grows from zero.
        clip: the largest norm of the gradient; `None` for any.
    """

    batch_size: int
    epochs: int
    sgd: Mapping[str, Any] | None
    adamw: Mapping[str, Any]
    transferred: str
    decay: Callable[[float], float]
    warmup_steps: int = 0
    clip: float | None = None


def steps_at(*shares: float) -> Callable[[float], float]:
    """The learning rate × 0.1 at each of these shares of the training."""
    return partial(_steps, shares)


def _steps(shares: Sequence[float], done: float) -> float:
    return float(0.1 ** sum(done >= share for share in shares))


def parser(name: str, description: str | None, recipe: Recipe) -> argparse.ArgumentParser:
    """The arguments that all recipes have; the first is where the data are."""
    found = argparse.ArgumentParser(
        f"python -m recipes.{name}", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    kinds = ["sgd", "adamw", "shampoo", "jorge"]
    add = found.add_argument
    add("data", type=Path, help="where the data are")
    add("--out", type=Path, default=Path("runs", name), help="checkpoints and curves")
    add("--optimizer", choices=kinds if recipe.sgd else kinds[1:], default="jorge")
    add("--lr", type=float, help="default: the recipe's, and SGD's in proportion to the batch")
    add("--weight-decay", type=float, help="default: the recipe's")
    add("--schedule", choices=["recipe", "step"], help="step is the paper's, and the default of what is had from SGD")
    add("--warmup-steps", type=int, default=recipe.warmup_steps)
    add("--options", nargs="+", default=[], metavar="NAME=VALUE", help="of Jorge: interval=10 method=binomial")
    add("--batch-size", type=int, default=recipe.batch_size, help="examples a step, of all processes together")
    add("--accumulate", type=int, default=1, metavar="N", help="take a step's examples in N parts")
    add("--epochs", type=int, default=recipe.epochs)
    add("--steps", type=int, help="length of the training, instead of epochs")
    add("--stop-at", type=int, metavar="STEP", help="save and end here; the schedule stays that of the whole training")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out where there is one")
    add("--amp", choices=["bfloat16", "float16"], help="autocast; float16 with a scaler, and not with fsdp")
    add("--channels-last", action="store_true")
    add("--strategy", choices=["ddp", "fsdp"], default="ddp", help="under torchrun")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--workers", type=int, default=0, help="processes that read the data, of each process")
    add("--seed", type=int, default=0)
    add("--save-every", type=int, metavar="STEPS", help="default: an epoch")
    add("--evaluate-every", type=int, metavar="STEPS", help="default: an epoch")
    add("--log-every", type=int, default=50, metavar="STEPS")
    add("--tensorboard", action="store_true", help="write curves to --out")
    return found


def optimizer_of(
    args: argparse.Namespace, recipe: Recipe, groups: list[dict[str, Any]], total_steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimizer that was asked for and its schedule. A group may have an `lr_scale`.

    Jorge and Shampoo, which is `method="exact"`, have all settings from the first-order recipe. From SGD it is the
    paper's single-shot transfer, with the paper's schedule unless `--schedule recipe` is given.
    """
    kind = args.optimizer if args.optimizer in ("sgd", "adamw") else recipe.transferred
    settings = dict(recipe.sgd or {}) if kind == "sgd" else dict(recipe.adamw)
    if kind == "sgd":
        settings["lr"] *= args.batch_size / recipe.batch_size
    settings |= {
        name: value for name, value in (("lr", args.lr), ("weight_decay", args.weight_decay)) if value is not None
    }
    groups = [{**group, "lr": settings["lr"] * group.get("lr_scale", 1.0)} for group in groups]
    first: Any = (torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)(groups, **settings)
    factor = partial(_factor, recipe.decay, args.warmup_steps, total_steps)
    if args.optimizer == kind:
        if args.options:
            raise SystemExit(f"--options are Jorge's: {args.optimizer} has none")
        return first, LambdaLR(first, factor)
    pairs = [text.partition("=")[::2] for text in args.options]
    options = {name: checks.parse(name, value) for name, value in pairs}
    if args.optimizer == "shampoo":
        options["method"] = "exact"
    if kind == "adamw":
        found, _ = Jorge.from_adamw(first, **options)
    elif args.schedule == "recipe":
        found, _ = Jorge.from_sgd(first, schedule="keep", **options)
    else:
        return Jorge.from_sgd(first, total_steps=total_steps, warmup_steps=args.warmup_steps, **options)
    return found, LambdaLR(found, factor)


def _factor(decay: Callable[[float], float], warmup: int, total: int, step: int) -> float:
    return min(1.0, (step + 1) / warmup if warmup else 1.0) * decay(min(1.0, step / total))
