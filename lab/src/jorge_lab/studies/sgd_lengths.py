"""Whether Shampoo holds out at SGD's step lengths, and whose fault it is: `python -m jorge_lab.studies.sgd_lengths`.

Trains the perceptron of MNIST-1D, whose SGD recipe has a learning rate of 1, from that recipe. Prints a Markdown table:
for each method, with and without what may be at fault, the step at which each seed diverged or its final smoothed loss.
In float64 weights, gradients, factors and roots all are.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.environment import environment
from jorge_lab.runs.run import train
from jorge_lab.statistics.reaching import smooth
from jorge_lab.tasks import TASKS
from jorge_lab.tasks.task import Batch, Data, Task

TASK = "mnist1d-mlp"
#: What differs, the optimizer, and the dtype.
VARIANTS = (
    ("Shampoo", "shampoo:grafting=sgd", torch.float32),
    ("Shampoo, all in float64", "shampoo:grafting=sgd", torch.float64),
    ("Shampoo, ε = 1e-2", "shampoo:grafting=sgd:root_eps=1e-2", torch.float32),
    ("Shampoo, no limit on lengths", "shampoo:grafting=sgd:graft_limit=None", torch.float32),
    ("Shampoo, lengths limited to 1.25 of their average", "shampoo:grafting=sgd:graft_limit=1.25", torch.float32),
    ("Shampoo, half the learning rate", "shampoo:grafting=sgd:lr=0.5", torch.float32),
    ("congruence", "jorge-congruence:grafting=sgd", torch.float32),
    ("whitening", "jorge:grafting=sgd", torch.float32),
)


def widened(task: Task, dtype: torch.dtype) -> Task:
    """A task with its model and its inputs in a dtype."""

    def cast(batch: Batch) -> Batch:
        return tuple(each.to(dtype) if each.is_floating_point() else each for each in batch)

    def load() -> Data:
        data = task.load()
        return Data(cast(data.train), cast(data.validation))

    return replace(task, load=load, model=lambda: task.model().to(dtype))


def outcome(task: Task, name: str, seed: int) -> str:
    """A run's cell."""
    record = train(task, find_contender(name), seed, task.steps, task.load(), lambda *_: None)
    if record["diverged_at"]:
        return f"diverged at step {record['diverged_at']}"
    return f"{smooth(record['losses'], record['steps'])[-1]:.4f}"


def main() -> None:
    """Train every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", choices=("smoke", "small"), default="small")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[TASK](args.size)
    print(environment(torch.device("cpu")))
    print(f"\n{task.title}, {task.steps} steps of {task.recipe.sgd}\n")
    print(f"| |{''.join(f' seed {seed} |' for seed in range(args.seeds))}")
    print(f"|---|{'---|' * args.seeds}")
    for label, name, dtype in VARIANTS:
        cells = [outcome(widened(task, dtype), name, seed) for seed in range(args.seeds)]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
