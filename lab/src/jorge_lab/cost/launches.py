"""Operators a step, and waits of the host: `python -m jorge_lab.cost.launches [--models resnet50 resnet101]`.

An operator is one dispatch of torch's, views left out: they start nothing. Counted are the step that asks for the most,
a refresh, and the one that asks for the least: of Jorge's past its warm-up, of the others' among ten. The waits are
counted over 100 steps from the first on a small network. On a GPU the kernel launches of a step and torch's own count
of waits stand beside them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

import torch

from jorge_lab.cost import harness, shapes
from jorge_lab.cost.contenders import Contender, Missing, build, check, typical_steps
from jorge_lab.cost.counting import counted, gpu_waits, kernel_launches

OPTIMIZERS = [
    *("sgd", "adamw", "muon-float32", "jorge", "jorge-1024", "jorge-exact"),
    *("soap-pytorch_optimizer", "soap-heavyball", "shampoo-pytorch_optimizer"),
    *("psgd-pytorch_optimizer", "psgd-heavyball"),
]
WAITING_STEPS = 100
Row = dict[str, Any]


def _extremes(values: Sequence[int | None]) -> list[int] | None:
    known = [value for value in values if value is not None]
    return [max(known), min(known)] if known else None


def count(contender: Contender, device: torch.device) -> dict[str, Any]:
    """Operators, views included and not, and kernel launches: with a refresh and without."""
    contender.step()
    meters = [counted(step, device) for step in typical_steps(contender)]
    return {
        "operators": _extremes([meter.launches for meter in meters]),
        "with_views": _extremes([meter.total for meter in meters]),
        "kernels": _extremes([kernel_launches(step, device) for step in typical_steps(contender)]),
    }


def _count_or_news(name: str, model: str, device: torch.device) -> dict[str, Any]:
    try:
        return count(build(name, shapes.parameters(model, device)), device)
    except Missing as news:
        return {"missing": str(news)}
    except Exception as error:  # whatever a package throws is news about that package, not the end of the run
        if name.startswith("jorge"):
            raise
        return {"missing": f"failed: {type(error).__name__}: {error}".splitlines()[0]}


def _waits(name: str, device: torch.device) -> dict[str, int | None]:
    """Waits in 100 steps from the first, on a small network."""
    contender = build(name, shapes.parameters("tiny", device))
    again = build(name, shapes.parameters("tiny", device))
    return {
        "waits": counted(lambda: contender.steps(WAITING_STEPS), device).waits,
        "gpu_waits": gpu_waits(lambda: again.steps(WAITING_STEPS), device),
    }


def measure(name: str, models: Sequence[str], device: torch.device) -> Row:
    """The row of one optimizer: its counts on each model, the ratio of the last to the first, its waits."""
    row: Row = {"optimizer": name, "models": {}}
    for model in models:
        print(f"{model}: {name}", file=sys.stderr)
        found = _count_or_news(name, model, device)
        gc.collect()
        if "missing" in found:
            return {"optimizer": name, "missing": found["missing"]}
        row["models"][model] = found
    first, last = row["models"][models[0]]["operators"], row["models"][models[-1]]["operators"]
    return row | {"growth": [last[0] / first[0], last[1] / first[1]]} | _waits(name, device)


def _line(row: Row, models: Sequence[str], device: torch.device) -> list[Any]:
    if "missing" in row:
        return [f"`{row['optimizer']}`", row["missing"]]
    cells: list[Any] = [f"`{row['optimizer']}`"]
    for model in models:
        for kind in ("operators", "kernels") if device.type == "cuda" else ("operators",):
            cells += row["models"][model][kind]
    if len(models) > 1:
        cells += [f"{ratio:.2f}" for ratio in row["growth"]]
    return [*cells, row["waits"], *([row["gpu_waits"]] if device.type == "cuda" else [])]


def _columns(models: Sequence[str], device: torch.device) -> list[str]:
    columns = ["optimizer"]
    for model in models:
        for kind in ("operators", "kernels") if device.type == "cuda" else ("operators",):
            columns += [f"{model}: {kind}, refresh", "no refresh"]
    if len(models) > 1:
        columns += [f"{models[-1]} ÷ {models[0]}, refresh", "no refresh"]
    columns.append(f"waits in {WAITING_STEPS} steps")
    return [*columns, *(["by torch's watch"] if device.type == "cuda" else [])]


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print a table."""
    parser = harness.parser(__doc__, shapes.MODELS, ["resnet50", "resnet101"], OPTIMIZERS)
    args = parser.parse_args(argv)
    if args.quick:
        args.models = ["tiny"]
    check(args.optimizers)
    device = harness.start(args)
    found = harness.where(device)
    print(harness.heading(found))
    rows: list[Row] = []
    for name in args.optimizers:
        rows.append(measure(name, args.models, device))
        harness.write(args.out, {"environment": found, "rows": rows})
    print()
    print(harness.table(_columns(args.models, device), [_line(row, args.models, device) for row in rows]))


if __name__ == "__main__":
    main()
