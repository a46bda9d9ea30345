"""What the shape of blocks costs in steps and in operations: `python -m benchmarks.blocks [TASK …]`.

Prints a Markdown table a task: steps to the baseline's best smoothed loss over the baseline's own (median over seeds),
final smoothed loss (mean), operations of the optimizer a step and bytes of roots, each over the parameters. `auto W–S`
is the rule of `block_size="auto"` with sides kept whole up to W and cut to at most S.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from jorge import Jorge, blocks
from jorge.blocks import Side
from jorge.lab.contenders import CONTENDERS, Contender, transferred
from jorge.lab.run import environment, train
from jorge.lab.summary import Row, summarize
from jorge.lab.task import Task
from jorge.lab.tasks import TASKS
from jorge.methods import METHODS, RootOptions, direction_flops, refresh_flops

FIXED = (32, 64, 128, 256, 512, 1024)
RULES = ((64, 256), (128, 256), (128, 512), (128, 1024), (256, 1024))
INTERVAL = 10


@contextmanager
def rule(whole: int, largest: int) -> Iterator[None]:
    """`block_size="auto"` with another rule inside."""
    plain = blocks.near_square
    blocks.near_square = partial(plain, whole=whole, largest=largest)
    try:
        yield
    finally:
        blocks.near_square = plain


def cost(task: Task, block_size: Any) -> tuple[float, float]:
    """Operations a step and floats of roots, over the number of parameters."""
    with torch.device("meta"):
        model = task.model()
    plan = Jorge(model.named_parameters(), lr=0.1, block_size=block_size).plan()
    operations, floats = 0.0, 0
    for row in plan.rows:
        for count, m, n in row.blocks:
            sides: tuple[Side, Side] = (row.left or "full", row.right or "full")
            substeps = METHODS["whitening"].substeps_at(1000, INTERVAL)
            each = [
                refresh_flops("whitening", (m, n), sides, RootOptions(), substeps=substeps, number=1000 + i)
                for i in range(8)
            ]
            operations += count * (direction_flops((m, n), sides) + sum(each) / len(each) / INTERVAL)
            floats += count * sum(d * d if side == "full" else d for d, side in zip((m, n), sides, strict=True))
    size = sum(p.numel() for p in model.parameters())
    return operations / size, floats / size


def variants() -> Iterator[tuple[str, Any, tuple[int, int] | None]]:
    """Name, block size and rule."""
    for size in FIXED:
        yield str(size), size, None
    for whole, largest in RULES:
        yield f"auto {whole}–{largest}", "auto", (whole, largest)


def _line(row: Row, operations: float, floats: float) -> str:
    ratio = "not reached" if row.step_ratio is None or row.reached < row.runs else f"{row.step_ratio:.3f}"
    final = f"diverged: {row.diverged}" if row.diverged else f"{row.final_loss:.4f}"
    return f"| {row.optimizer} | {ratio} | {final} | {operations:,.0f} | {floats:.2f} |"


def main() -> None:
    """Train every variant and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["mnist", "shakespeare", "autoencoder"], metavar="TASK")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")))
    for task in (TASKS[name] for name in args.tasks):
        data = task.load()
        baseline = CONTENDERS[task.recipe.baseline]
        records = [train(task, baseline, seed, task.steps, data, lambda *_: None) for seed in range(args.seeds)]
        costs = {baseline.name: (0.0, 0.0)}
        for name, block_size, limits in variants():
            with rule(*(limits or (128, 128))):
                costs[name] = cost(task, block_size)
                contender = Contender(name, name, transferred(block_size=block_size))
                records += [
                    train(task, contender, seed, task.steps, data, lambda *_: None) for seed in range(args.seeds)
                ]
        print(f"\n{task.title}, {task.steps} steps, {args.seeds} seeds\n")
        print(
            "| blocks | steps to target ÷ baseline's | final loss | operations ÷ parameter | root floats ÷ parameter |"
        )
        print("|---|---|---|---|---|")
        for row in summarize(task, records):
            print(_line(row, *costs[row.optimizer]), flush=True)


if __name__ == "__main__":
    main()
