"""How long the slowest steps take, with refreshes at once and spread: `python -m jorge_lab.cost.stagger [--models …]`.

Jorge past its warm-up at an interval of 10, over steps in a row, the two in turns. The 99th percentile of a step over
the median says how even they are.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from jorge import Jorge
from jorge_lab.cost import harness, shapes
from jorge_lab.cost.contenders import LEARNING_RATE, Contender, settle

COLUMNS = ["`stagger`", "median, ms", "mean, ms", "p99, ms", "p99 ÷ median"]
INTERVAL = 10


def _contender(named: shapes.Named, *, stagger: bool) -> Contender:
    optimizer = Jorge(named, lr=LEARNING_RATE, interval=INTERVAL, stagger=stagger)
    contender = Contender(str(stagger), optimizer, INTERVAL, [(p, p.grad) for _, p in named])
    contender.step()
    settle(contender, INTERVAL)
    contender.steps(2)
    return contender


def measure(model: str, device: torch.device, steps: int) -> list[dict[str, Any]]:
    """A row each, with refreshes at once and spread."""
    named = shapes.parameters(model, device)
    contenders = [_contender(named, stagger=stagger) for stagger in (False, True)]
    taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(steps // INTERVAL):
        for contender in contenders:
            taken[contender.name] += [harness.seconds(contender.step, device) for _ in range(INTERVAL)]
    rows = []
    for name, samples in taken.items():
        median = statistics.median(samples)
        late = statistics.quantiles(samples, n=100, method="inclusive")[-1]
        row = {"stagger": name, "median": median, "mean": statistics.fmean(samples), "p99": late}
        rows.append(row | {"ratio": late / median, "steps": len(samples)})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table a model."""
    parser = harness.parser(__doc__, shapes.MODELS, ["resnet50"], [])
    parser.add_argument("--steps", type=int, default=100, help="of each; a multiple of ten")
    args = parser.parse_args(argv)
    if args.quick:
        args.models, args.steps = ["tiny"], 20
    device = harness.start(args)
    found = harness.where(device)
    print(harness.heading(found))
    results = {}
    for model in args.models:
        rows = results[model] = measure(model, device, args.steps)
        print(f"\n{model}, interval {INTERVAL}, {rows[0]['steps']} steps of each\n")
        lines = [
            [f"`{r['stagger']}`", *(f"{1e3 * r[k]:.0f}" for k in ("median", "mean", "p99")), f"{r['ratio']:.2f}"]
            for r in rows
        ]
        print(harness.table(COLUMNS, lines), flush=True)
        harness.write(args.out, {"environment": found, "models": results})


if __name__ == "__main__":
    main()
