"""What the shape of blocks costs in steps and in operations: `python -m benchmarks.blocks [TASK …]`.

Prints a Markdown table a task: steps to the baseline's best smoothed loss over the baseline's own (median over seeds),
final smoothed loss (mean), operations of the optimizer a step and floats of roots, each over the parameters.
"""

from __future__ import annotations

import argparse

import torch

from jorge import Jorge
from jorge.blocks import BlockSize, Side
from jorge.lab.opponents import CONTENDERS, variant
from jorge.lab.run import environment, train
from jorge.lab.summary import Row, summarize
from jorge.lab.task import Task
from jorge.lab.tasks import TASKS
from jorge.methods import METHODS, RootOptions, direction_flops, refresh_flops

BLOCK_SIZES: tuple[BlockSize, ...] = (32, 64, 128, 256, 512, 1024, None)
INTERVAL = 10


def cost(task: Task, block_size: BlockSize) -> tuple[float, float]:
    """Operations a step and floats of roots, over the number of parameters."""
    with torch.device("meta"):
        model = task.model()
    plan = Jorge(model.named_parameters(), lr=0.1, block_size=block_size).plan()
    operations, floats = 0.0, 0
    for row in plan.rows:
        for count, m, n in row.blocks:
            sides: tuple[Side, Side] = (row.left or "full", row.right or "full")
            substeps = METHODS["whitening"].substeps_at(1000)
            each = [
                refresh_flops("whitening", (m, n), sides, RootOptions(), substeps=substeps, number=1000 + i)
                for i in range(8)
            ]
            operations += count * (direction_flops((m, n), sides) + sum(each) / len(each) / INTERVAL)
            floats += count * sum(d * d if side == "full" else d for d, side in zip((m, n), sides, strict=True))
    size = sum(p.numel() for p in model.parameters())
    return operations / size, floats / size


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
    for task in (TASKS[name]("small") for name in args.tasks):
        data = task.load()
        baseline = CONTENDERS[task.recipe.baseline]
        records = [train(task, baseline, seed, task.steps, data, lambda *_: None) for seed in range(args.seeds)]
        costs = {baseline.name: (0.0, 0.0)}
        for block_size in BLOCK_SIZES:
            name = str(block_size or "whole")
            costs[name] = cost(task, block_size)
            contender = variant(name, name, block_size=block_size)
            records += [train(task, contender, seed, task.steps, data, lambda *_: None) for seed in range(args.seeds)]
        print(f"\n{task.title}, {task.steps} steps, {args.seeds} seeds\n")
        print(
            "| blocks | steps to target ÷ baseline's | final loss | operations ÷ parameter | root floats ÷ parameter |"
        )
        print("|---|---|---|---|---|")
        for row in summarize(records):
            print(_line(row, *costs[row.optimizer]), flush=True)


if __name__ == "__main__":
    main()
