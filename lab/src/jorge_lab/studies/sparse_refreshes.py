"""How a refresh makes up for the steps without one, in steps: `python -m jorge_lab.studies.sparse_refreshes [TASK …]`.

At the default interval of 5, one refresh with the weight of 1, 2, 3 or 4 (:class:`jorge.methods.Refresh`), a fifth of
it a step where the gap is still narrower, and two steps of a refresh with the weight of 1, which cost twice as much.
Prints a Markdown table a task: steps to the baseline's best smoothed loss over the baseline's own and final smoothed
loss, a seed a row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch

from jorge.methods import METHODS, Refresh
from jorge.methods.whitening import Whitening
from jorge_lab.contenders import CONTENDERS
from jorge_lab.runs.environment import environment
from jorge_lab.runs.run import train
from jorge_lab.runs.store import Record
from jorge_lab.statistics.summary import summarize
from jorge_lab.tasks import TASKS
from jorge_lab.tasks.task import Task

#: Steps of a refresh and its weight.
VARIANTS = ((2, 1.0), (1, 1.0), (1, 2.0), (1, 3.0), (1, 4.0))


class Variant(Whitening):
    """The default method with other late refreshes."""

    def __init__(self, substeps: int, weight: float) -> None:
        self._substeps = substeps
        self.weight_per_step, self.most_weight = weight / 5, weight

    def refresh_at(self, number: int, gap: int) -> Refresh:
        """The substeps of the first three refreshes are the method's own."""
        usual = super().refresh_at(number, gap)
        return usual if number < len(self.early_substeps) else replace(usual, substeps=self._substeps)


@contextmanager
def whitening(substeps: int, weight: float) -> Iterator[None]:
    """The default method is a variant inside."""
    with patch.dict(METHODS, whitening=Variant(substeps, weight)):
        yield


def _cell(baseline: Record, record: Record) -> str:
    _, row = summarize([baseline, record])
    ratio = "not reached" if row.step_ratio is None else f"{row.step_ratio:.3f}"
    return f"{ratio}, {row.final_loss:.4f}"


def compare(task: Task, seed: int) -> list[str]:
    """A cell a variant."""
    data = task.load()

    def run(name: str) -> Record:
        return train(task, CONTENDERS[name], seed, task.steps, data, lambda *_: None)

    baseline, cells = run(task.recipe.baseline), []
    for substeps, weight in VARIANTS:
        with whitening(substeps, weight):
            cells.append(_cell(baseline, run("jorge")))
    return cells


def main() -> None:
    """Train every variant and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["mnist", "shakespeare", "autoencoder"], metavar="TASK")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")))
    for task in (replace(TASKS[name]("small"), steps=args.steps) for name in args.tasks):
        print(f"\n{task.title}, {task.steps} steps\n")
        print("| seed |" + "".join(f" {n} step{'s' * (n > 1)}, weight {w:g} |" for n, w in VARIANTS))
        print("|---|" + "---|" * len(VARIANTS))
        for seed in range(args.seeds):
            print(f"| {seed} | {' | '.join(compare(task, seed))} |", flush=True)


if __name__ == "__main__":
    main()
