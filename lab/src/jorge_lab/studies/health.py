"""What diagnostics say of a healthy run, and of three that were made sick: `python -m jorge_lab.studies.health`.

Each task is trained with Jorge from its recipe as it is; at ten times the recipe's learning rate; with a layer whose
gradients are all zero; and with gradients that overflow from a third of the run on, as float16's do. Writes the numbers
to `--out` and a picture a task into the folder `--images`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from jorge import Jorge
from jorge_lab.contenders.finding import find_contender
from jorge_lab.report.figures import decorate, legend, on_white, svg
from jorge_lab.runs.environment import environment
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Task

TASKS = ("shakespeare", "fashion")
RUNS = ("healthy", "lr × 10", "dead layer", "overflow")
#: What the pictures show.
SHOWN = ("update_to_weight", "cosine", "gradient_residual", "whitening_residual", "staleness", "skipped_steps")
_COLOURS = ("#1f77b4", "#d62728", "#9467bd", "#8c564b")
#: Numbers are taken so many times in a run.
_TIMES = 25


def train(task: Task, run: str, steps: int) -> dict[str, Any]:
    """Losses, and diagnostics now and then, of one run."""
    torch.manual_seed(0)
    model = task.model()
    optimizer, scheduler = find_contender("jorge").build(task, model, steps, "transferred")
    assert isinstance(optimizer, Jorge)
    if run == "lr × 10":
        for group in optimizer.param_groups:
            group["lr"] *= 10
            group["initial_lr"] *= 10
        scheduler.base_lrs = [10 * lr for lr in scheduler.base_lrs]
    dead = _silenced(model) if run == "dead layer" else []
    batches = task.batches(task.load(), 0)
    losses: list[float] = []
    seen: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = task.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for p in dead:
            assert p.grad is not None
            p.grad.zero_()
        if run == "overflow" and step > steps // 3:
            for p in model.parameters():
                assert p.grad is not None
                p.grad.copy_((p.grad * 2.0**30).to(torch.float16))
        optimizer.step()
        losses.append(loss.item())
        if step % max(1, steps // _TIMES) == 0:
            found = optimizer.diagnostics()
            still = sum(values["grad_norm"] == 0 for values in found.parameters.values())
            seen.append({"step": step, **found.overall, "without_gradient": still})
        scheduler.step()
    return {"run": run, "loss": sum(losses[-10:]) / len(losses[-10:]), "seen": seen}


def _silenced(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a layer in the middle, whose gradients are to be zero."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return list(layers[len(layers) // 2].parameters())


def picture(runs: Sequence[dict[str, Any]], title: str) -> str:
    """Six measures of all runs against the step."""
    figure = Figure(figsize=(10.4, 5.4), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(2, 3).flatten()
    for axes, key in zip(panels, SHOWN, strict=True):
        for run, colour in zip(runs, _COLOURS, strict=True):
            points = [(each["step"], each[key]) for each in run["seen"] if key in each]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=run["run"])
        if key in ("update_to_weight", "staleness"):
            axes.set_yscale("log")
        axes.set_title(key, fontsize=9)
        decorate(axes)
    legend(figure, panels[:1])
    return svg(figure, f"Diagnostics of four runs: {title}")


def main(argv: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Train, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("smoke", "small"))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--out", type=Path, default=Path("lab/records/health.json"))
    parser.add_argument("--images", type=Path, default=Path("docs/generated/images"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"environment": environment(torch.device("cpu")), "steps": args.steps, "tasks": {}}
    args.images.mkdir(parents=True, exist_ok=True)
    for name in args.tasks:
        task = find_task(name, args.size)
        runs = []
        for run in RUNS:
            runs.append(train(task, run, args.steps))
            say(f"{name}, {run}: loss {runs[-1]['loss']:.4g}")
        found["tasks"][name] = {"title": task.title, "runs": runs}
        (args.images / f"health-{name}.svg").write_text(on_white(picture(runs, task.title)), encoding="utf-8")
    args.out.write_text(
        json.dumps(_rounded(found), ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )


def _rounded(value: Any) -> Any:
    """Numbers with five digits; what is not finite, which JSON has no word for, is left out."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {
            key: _rounded(each)
            for key, each in value.items()
            if not (isinstance(each, float) and not math.isfinite(each))
        }
    return [_rounded(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
