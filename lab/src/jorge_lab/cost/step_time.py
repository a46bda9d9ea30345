"""Milliseconds a step, of Jorge and its rivals, interleaved: `python -m jorge_lab.cost.step_time [--models …]`.

Jorge is measured past its warm-up: K = 1 in steps that all refresh; K = 10 as the refresh of ten steps and the nine
without, or (`--blocks`, and always on a GPU, where a step's launches overlap with the next) in ten steps at a stretch;
K = 50 as that and forty more steps without. One refresh in seven costs more, and counts for a seventh. SOAP, Shampoo
and PSGD are measured in ten steps at a stretch.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jorge.methods import DAMPING_PERIOD
from jorge_lab.cost import harness, shapes
from jorge_lab.cost.contenders import NEVER, Contender, Missing, build, check, never_refresh, settle
from jorge_lab.cost.harness import Spread
from jorge_lab.cost.rivals import PERIOD

EVERYTHING = [
    *("sgd", "adamw", "muon-float32", "muon-bfloat16"),
    *("jorge", "jorge-congruence", "jorge-binomial", "jorge-exact"),
    *("jorge-256", "jorge-512", "jorge-1024", "jorge-2048"),
    *("soap-pytorch_optimizer", "soap-heavyball", "shampoo-pytorch_optimizer"),
    *("psgd-pytorch_optimizer", "psgd-heavyball"),
]
#: Those that two cores measure in some ten minutes on a ResNet-50.
OPTIMIZERS = [
    *("sgd", "adamw", "muon-float32", "muon-bfloat16", "jorge", "jorge-exact", "jorge-256", "jorge-1024"),
    *("soap-pytorch_optimizer", "soap-heavyball"),
]
#: What the ratios are to; they run with every batch of contenders.
ANCHORS = ("sgd", "muon-float32")
LONG = 50
#: Steps in a block of an optimizer whose steps are all alike, and short.
SHORT_STEPS = 5
COLUMNS = [
    "optimizer",
    "K",
    "ms a step",
    "quartiles",
    "first step, ms",
    "GFLOP a step",
    "÷ GEMM time",
    "÷ SGD",
    "÷ Muon",
]
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Some consecutive steps of a contender; of Jorge at an interval, the first of them a refresh."""

    contender: Contender
    steps: int
    interval: int | None = None
    damped: bool = False

    @property
    def name(self) -> str:
        """Its name in a round."""
        return f"{self.contender.name}/{self.interval}{'/damped' * self.damped}"

    def prepare(self) -> None:
        """Bring Jorge to where the steps begin."""
        if self.interval == NEVER:
            never_refresh(self.contender)
        elif self.interval is not None:
            settle(self.contender, self.interval, damped=self.damped)

    def __call__(self) -> None:
        """Take the steps."""
        self.contender.steps(self.steps)


def _cases(contender: Contender, *, blocks: bool) -> list[Case]:
    if contender.jorge is None:
        steps = contender.period if contender.period > 1 else 1 if contender.name.startswith("muon") else SHORT_STEPS
        return [Case(contender, steps)]
    ones = [Case(contender, 1, 1), Case(contender, 1, 1, damped=True)]
    if blocks:  # a whole cycle of refreshes
        ones = [Case(contender, DAMPING_PERIOD, 1)]
    stretch = PERIOD if blocks else 1
    tens = [Case(contender, stretch, PERIOD), Case(contender, stretch, PERIOD, damped=True)]
    return [*ones, *tens, Case(contender, stretch + 1, NEVER)]


def _prepare(name: str, named: shapes.Named, device: torch.device) -> tuple[Contender, float]:
    """Build a contender and take its first step; the seconds of it."""
    contender = build(name, named)
    try:
        first = harness.seconds(contender.step, device)
    except Exception as error:  # whatever a package throws is news about that package, not the end of the run
        if contender.jorge is not None:
            raise
        raise Missing(f"failed: {type(error).__name__}: {error}".splitlines()[0]) from error
    settle(contender)
    return contender, first


def _spreads(cases: Sequence[Case], samples: dict[str, list[float]]) -> dict[int | None, Spread]:
    """Seconds a step at each interval, in the mean over a whole cycle of refreshes."""
    found: dict[int | None, Spread] = {}
    stretch = 1
    for case in cases:
        spread = Spread.of(samples[case.name]).scaled(1 / case.steps)
        if case.damped:  # follows the case without
            assert case.interval is not None
            spread = found[case.interval].scaled(1 - 1 / DAMPING_PERIOD).plus(spread.scaled(1 / DAMPING_PERIOD))
        found[case.interval] = spread
        stretch = case.steps if case.interval == PERIOD else stretch
    if NEVER in found:
        refresh, none = found[PERIOD], found[NEVER]
        for interval in (PERIOD, LONG):
            found[interval] = refresh.scaled(stretch / interval).plus(none.scaled(1 - stretch / interval))
    return found


def _rows(
    contender: Contender, first: float, cases: Sequence[Case], samples: dict[str, list[float]], flops: dict[str, int]
) -> list[Row]:
    """One row a contender, four for Jorge."""
    per_step = _spreads(cases, samples)
    work = _spreads(cases, {case.name: [float(flops[case.name])] for case in cases})
    repeats: dict[int | None, Any] = {None: contender.period if contender.period > 1 else None, NEVER: "never"}
    return [
        {
            "optimizer": contender.name,
            "interval": repeats.get(interval, interval),
            "ms": 1e3 * per_step[interval].median,
            "ms_quartiles": [1e3 * per_step[interval].low, 1e3 * per_step[interval].high],
            "first_ms": 1e3 * first,
            "flops": work[interval].median,
            "rounds": min(len(samples[case.name]) for case in cases),
        }
        for interval in ([None] if contender.jorge is None else [1, PERIOD, LONG, NEVER])
    ]


def _batches(names: Sequence[str], together: int) -> list[list[str]]:
    """The names in batches of at most `together`, each with the anchors among them."""
    anchors = [name for name in ANCHORS if name in names]
    rest = [name for name in names if name not in anchors]
    size = max(1, together - len(anchors))
    return [[*anchors, *rest[i : i + size]] for i in range(0, max(1, len(rest)), size)]


def _ratios(rows: list[Row], rate: float) -> None:
    """Add the ratios to the anchors of the same batch, and to the GEMM time."""
    anchors = {row["optimizer"]: row["ms"] for row in rows if row["optimizer"] in ANCHORS}
    for row in rows:
        row["to_gemm"] = row["ms"] / 1e3 / (row["flops"] / rate) if row["flops"] else None
        row["to_sgd"] = row["ms"] / anchors["sgd"] if "sgd" in anchors else None
        row["to_muon"] = row["ms"] / anchors["muon-float32"] if "muon-float32" in anchors else None


def measure_model(
    model: str, names: Sequence[str], device: torch.device, args: argparse.Namespace, say: Callable[[str], None]
) -> tuple[float, list[Row]]:
    """All rows of a model, in batches that run interleaved, and the GEMM rate that they are held against."""
    rows: list[Row] = []
    sides = (128, 256) if args.quick else (512, 1024, 2048)
    rate = harness.gemm_rate(device, sides=sides)["flops_per_second"]
    named = shapes.parameters(model, device)
    started = time.monotonic()
    for number, batch in enumerate(_batches(names, args.together)):
        ready, missing = [], []
        for name in batch:
            say(f"{model}, {time.monotonic() - started:.0f} s: {name}")
            try:
                ready.append(_prepare(name, named, device))
            except Missing as news:
                missing.append({"optimizer": name, "missing": str(news)})
        of = {contender.name: _cases(contender, blocks=args.blocks) for contender, _ in ready}
        cases = {case.name: case for some in of.values() for case in some}
        flops: dict[str, int] = {}
        for name, case in cases.items():
            say(f"{model}, {time.monotonic() - started:.0f} s: warming {name}")
            case.prepare()
            flops[name] = harness.flops(case)  # this is the warm-up, too
        say(f"{model}, {time.monotonic() - started:.0f} s: {len(cases)} cases, {args.rounds} rounds")
        prepare = {name: case.prepare for name, case in cases.items()}
        samples = harness.interleave(cases, device, prepare=prepare, rounds=args.rounds, seconds_each=args.seconds)
        found = [row for one, first in ready for row in _rows(one, first, of[one.name], samples, flops)]
        _ratios(found, rate)
        rows += [row for row in found if not number or row["optimizer"] not in ANCHORS] + missing
        del ready, cases, of
        gc.collect()
    return rate, rows


def _line(row: Row) -> list[Any]:
    if "missing" in row:
        return [f"`{row['optimizer']}`", None, row["missing"]]
    low, high = (harness.cell(float(x)) for x in row["ms_quartiles"])
    gflop = row["flops"] / 1e9 or None
    measured = [row["ms"], f"{low} … {high}", row["first_ms"], gflop, row["to_gemm"], row["to_sgd"], row["to_muon"]]
    return [f"`{row['optimizer']}`", row["interval"], *measured]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table a model."""
    parser = harness.parser(__doc__, shapes.MODELS, ["resnet50"], OPTIMIZERS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="a case that took so long sits out later rounds")
    parser.add_argument("--together", type=int, default=20, help="contenders in memory at once")
    parser.add_argument("--blocks", action="store_true", help="measure ten steps at a stretch on a CPU, too")
    args = parser.parse_args(argv)
    args.blocks |= args.device == "cuda"
    if args.quick:
        args.models, args.rounds, args.seconds = ["tiny"], 2, 0.2
    if args.optimizers == ["all"]:
        args.optimizers = EVERYTHING
    check(args.optimizers)
    device = harness.start(args)
    found = harness.where(device)
    print(harness.heading(found))
    results = {}
    for model in args.models:
        rate, rows = measure_model(model, args.optimizers, device, args, lambda text: print(text, file=sys.stderr))
        results[model] = {"gemm_flops_per_second": rate, "rows": rows}
        print(f"\n{model}; float32 products at {rate / 1e9:.0f} GFLOP/s\n")
        print(harness.table(COLUMNS, [_line(row) for row in rows]), flush=True)
        harness.write(args.out, {"environment": found, "models": results})


if __name__ == "__main__":
    main()
