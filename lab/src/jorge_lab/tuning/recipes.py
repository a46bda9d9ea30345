"""Is a first-order recipe's learning rate the best of a small grid? `python -m jorge_lab.tuning.recipes TASK …`.

Jorge takes its settings from a recipe that is tuned, so a task must come with one. The baseline of each task is trained
at its learning rate and at a third and three times of it, and on in the direction of the best until that one has worse
neighbours, with the seed of `jorge tune`, which no comparison uses. No other optimizer is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from jorge_lab.contenders import CONTENDERS
from jorge_lab.cost import harness
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Task
from jorge_lab.tuning.search import final_loss

#: What the recipe's learning rate is multiplied by, a factor of about three apart.
GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def bottom(loss: Callable[[float], float], grid: Sequence[float] = GRID) -> dict[float, float]:
    """Losses by factor: the grid's middle and its neighbours, then on until the best is inside or the grid ends."""
    middle = len(grid) // 2
    found = {grid[i]: loss(grid[i]) for i in (middle - 1, middle, middle + 1)}
    while True:
        best = grid.index(min(found, key=lambda factor: found[factor]))
        missing = [i for i in (best - 1, best + 1) if 0 <= i < len(grid) and grid[i] not in found]
        if not missing:
            return dict(sorted(found.items()))
        found |= {grid[i]: loss(grid[i]) for i in missing}


def final_losses(task: Task, device: torch.device) -> dict[float, float]:
    """Learning rate → smoothed training loss at the end, infinite where the run diverged."""
    contender, data = CONTENDERS[task.recipe.baseline], task.load().to(device)
    options = contender.options(task, "transferred")

    def loss(factor: float) -> float:
        return final_loss(task, contender, options | {"lr": options["lr"] * factor}, data, lambda *_: None)

    return {options["lr"] * factor: value for factor, value in bottom(loss).items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and print a line a task."""
    parser = harness.parser(__doc__, [], [], [])
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="as of jorge compare")
    args = parser.parse_args(argv)
    device = harness.start(args)
    found = harness.where(device)
    print(harness.heading(found) + "\n")
    lines, figures = [], {}
    for name in args.tasks:
        task = find_task(name, "smoke" if args.quick else "small")
        losses = figures[name] = final_losses(task, device)
        best = min(losses, key=lambda lr: losses[lr])
        said = ", ".join(f"{lr:.2g}: {value:.4g}" for lr, value in losses.items())
        lines.append([f"`{name}`", task.recipe.baseline, f"{best:.2g}", said])
    print(harness.table(["task", "baseline", "best lr", "final loss by lr"], lines))
    harness.write(args.out, {"environment": found, "losses": figures})


if __name__ == "__main__":
    main()
