"""What the state weighs and what a step needs on top: `python -m jorge_lab.cost.memory [--models …] [--optimizers …]`.

Everything as a multiple of the parameters' bytes. *State*: the tensors in `optimizer.state`, each memory once.
*Held*: what is still allocated after the first step, whether in `state` or not. *Peak*: temporary memory in a step,
above what was there before it, in the step that needs most (a refresh) and in the one that needs least.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from jorge_lab.contenders import state_bytes
from jorge_lab.cost import harness, shapes
from jorge_lab.cost.allocation import allocations
from jorge_lab.cost.contenders import Contender, Missing, build, check, typical_steps

OPTIMIZERS = [
    *("sgd", "adamw", "muon-float32", "muon-bfloat16"),
    *("jorge", "jorge-256", "jorge-512", "jorge-1024", "jorge-2048"),
    *("jorge-bf16", "jorge-bf16-256", "jorge-bf16-512", "jorge-bf16-1024", "jorge-bf16-2048"),
    *("soap-pytorch_optimizer", "soap-heavyball", "shampoo-pytorch_optimizer"),
    *("psgd-pytorch_optimizer", "psgd-heavyball"),
]
COLUMNS = ["optimizer", "state", "held", "peak, refresh", "peak, no refresh", "peak, first step"]
KEYS = ["state", "held", "peak_refresh", "peak_plain", "peak_first"]
Row = dict[str, Any]


def measure(name: str, named: shapes.Named, device: torch.device) -> Row:
    """The row of one optimizer, in multiples of the parameters' bytes."""
    weight = shapes.nbytes(named)
    built: list[Contender] = []

    def build_and_step() -> None:
        built.append(build(name, named))
        built[0].step()

    def calls() -> Iterator[Callable[[], None]]:
        yield build_and_step
        yield from typical_steps(built[0])

    try:
        first, *settled = allocations(calls(), device)
    except Missing as news:
        return {"optimizer": name, "missing": str(news)}
    except Exception as error:  # whatever a package throws is news about that package, not the end of the run
        if name.startswith("jorge"):
            raise
        return {"optimizer": name, "missing": f"failed: {type(error).__name__}: {error}".splitlines()[0]}
    (contender,) = built
    peaks = [allocation.peak for allocation in settled]
    found = {
        "state": state_bytes(contender.optimizer),
        "held": first.held,
        "peak_refresh": max(peaks),
        "peak_plain": min(peaks),
        "peak_first": first.peak,
    }
    row: Row = {"optimizer": name, "bytes": found}
    if contender.jorge is not None:
        row["bytes"]["plan"] = contender.jorge.plan().state_bytes
    return row | {key: row["bytes"][key] / weight for key in KEYS}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table a model."""
    parser = harness.parser(__doc__, shapes.MODELS, ["resnet50"], OPTIMIZERS)
    args = parser.parse_args(argv)
    if args.quick:
        args.models = ["tiny"]
    check(args.optimizers)
    device = harness.start(args)
    found = harness.where(device)
    print(harness.heading(found))
    results = {}
    for model in args.models:
        named = shapes.parameters(model, device)
        rows = []
        for name in args.optimizers:
            print(f"{model}: {name}", file=sys.stderr)
            rows.append(measure(name, named, device))
            gc.collect()
        results[model] = {"parameter_bytes": shapes.nbytes(named), "rows": rows}
        print(f"\n{model}; parameters of {shapes.nbytes(named) / 2**20:.1f} MiB; all in multiples of that\n")
        lines = [
            [f"`{row['optimizer']}`", *([row["missing"]] if "missing" in row else [f"{row[k]:.2f}" for k in KEYS])]
            for row in rows
        ]
        print(harness.table(COLUMNS, lines), flush=True)
        harness.write(args.out, {"environment": found, "models": results})


if __name__ == "__main__":
    main()
