"""Each default of Jorge against its alternatives, one option at a time: `python -m benchmarks.defaults [TASK …]`.

Prints a Markdown table a task: steps to the baseline's best smoothed loss, over the baseline's own (median over
seeds); final smoothed loss (mean); milliseconds a step and the optimizer's share of them, in this process.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from jorge.lab.opponents import CONTENDERS, variant
from jorge.lab.run import environment, train
from jorge.lab.summary import Row, summarize
from jorge.lab.tasks import TASKS

VARIANTS: list[dict[str, Any]] = [
    {},
    {"interval": 1},
    {"interval": 50},
    {"warmup_refreshes": 0},
    {"warmup_refreshes": 100},
    {"block_size": 1024},
    {"block_size": 64},
    {"preconditioner_beta2": 0.9},
    {"preconditioner_beta2": 0.99},
    {"damping": 0.0},
    {"damping": 1e-5},
    {"damping": 1e-3},
    {"preconditioner_dtype": torch.bfloat16},
    {"method": "congruence"},
    {"method": "binomial"},
    {"method": "binomial", "init": "paper"},
    {"method": "exact"},
]


def _name(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "default"


def _line(row: Row) -> str:
    ratio = "not reached" if row.step_ratio is None or row.reached < row.runs else f"{row.step_ratio:.2f}"
    final = f"diverged: {row.diverged}" if row.diverged else f"{row.final_loss:.4f}"
    return f"| `{row.optimizer}` | {ratio} | {final} | {row.step_ms:.1f} | {row.optimizer_share:.0%} |"


def main() -> None:
    """Train every variant and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["mnist", "shakespeare"], metavar="TASK")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")))
    for task in (TASKS[name]("small") for name in args.tasks):
        data = task.load()
        contenders = [CONTENDERS[task.recipe.baseline]]
        contenders += [variant(_name(options), _name(options), **options) for options in VARIANTS]
        records = [
            train(task, contender, seed, task.steps, data, lambda *_: None)
            for seed in range(args.seeds)
            for contender in contenders
        ]
        print(f"\n{task.title}, {task.steps} steps, {args.seeds} seeds\n")
        print("| options | steps to target ÷ baseline's | final loss | ms a step | optimizer's share |")
        print("|---|---|---|---|---|")
        for row in summarize(records):
            print(_line(row), flush=True)


if __name__ == "__main__":
    main()
