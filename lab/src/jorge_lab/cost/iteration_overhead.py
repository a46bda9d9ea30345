"""A whole training iteration, against SGD's: `python -m jorge_lab.cost.iteration_overhead [--models resnet18 vit gpt]`.

Forward, backward and step, in blocks of ten iterations, so that one refresh of Jorge's falls in each block (ten of
them with `jorge/1`, which refreshes at every step). The optimizers take turns block by block on one model, with a
learning rate so small that it stays what it is. One refresh in seven costs more (it applies the damping of the narrow
forms), so seven rounds are a whole cycle, and the mean over them says what the median leaves out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jorge.methods import DAMPING_PERIOD
from jorge_lab.cost import harness
from jorge_lab.cost.contenders import Contender, Missing, build, check, settle
from jorge_lab.cost.harness import Spread
from jorge_lab.cost.networks import ResNet18, SmallGPT, SmallViT
from jorge_lab.cost.rivals import PERIOD

#: Names of contenders; after a slash, Jorge's interval.
OPTIMIZERS = ["sgd", "adamw", "muon-float32", "muon-bfloat16", "jorge", "jorge/1"]
COLUMNS = ["optimizer", "ms an iteration", "quartiles", "÷ SGD", "quartiles", "mean ÷ SGD", "rounds"]


def _images(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))


def _bytes(batch: int, context: int) -> tuple[Tensor, Tensor]:
    return torch.randint(256, (batch, context)), torch.randint(256, (batch * context,))


@dataclass(frozen=True)
class Training:
    """What is trained: a model and a batch, in full size and in quick."""

    model: Callable[[bool], nn.Module]
    batch: Callable[[bool], tuple[Tensor, Tensor]]
    title: str


TRAININGS = {
    "resnet18": Training(
        lambda quick: ResNet18(8 if quick else 64),
        lambda quick: _images(8 if quick else 128),
        "ResNet-18 for 32 × 32 images, width 64, batch 128",
    ),
    "vit": Training(
        lambda quick: SmallViT(32, 2) if quick else SmallViT(),
        lambda quick: _images(4 if quick else 128),
        "ViT for 32 × 32 images, patch 4, width 192, depth 6, batch 128",
    ),
    "gpt": Training(
        lambda quick: SmallGPT(32, 2, 16) if quick else SmallGPT(),
        lambda quick: _bytes(*((4, 16) if quick else (32, 128))),
        "GPT over bytes, width 256, depth 4, context 128, batch 32",
    ),
}


def _contender(name: str, model: nn.Module, iterate: Callable[[Contender], None]) -> Contender:
    """A contender that has taken a first step, past its warm-up."""
    kind, _, interval = name.partition("/")
    contender = build(kind, list(model.named_parameters()), fixed_gradients=False)
    iterate(contender)
    settle(contender, int(interval or PERIOD))
    for _ in range(2):
        iterate(contender)
    settle(contender, int(interval or PERIOD))
    return contender


def measure(
    name: str, optimizers: Sequence[str], device: torch.device, *, rounds: int, seconds_each: float, quick: bool
) -> list[dict[str, Any]]:
    """The rows of one training."""
    training = TRAININGS[name]
    model = training.model(quick).to(device)
    inputs, targets = (t.to(device) for t in training.batch(quick))

    def iterate(contender: Contender) -> None:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        contender.step()

    def block(contender: Contender) -> Callable[[], None]:
        def run() -> None:
            for _ in range(PERIOD):
                iterate(contender)

        return run

    cases: dict[str, Callable[[], None]] = {}
    missing = []
    for optimizer in optimizers:
        print(f"{name}: {optimizer}", file=sys.stderr)
        try:
            cases[optimizer] = block(_contender(optimizer, model, iterate))
        except Missing as news:
            missing.append({"optimizer": optimizer, "missing": str(news)})
    samples = harness.interleave(cases, device, rounds=rounds, seconds_each=seconds_each)
    rows: list[dict[str, Any]] = []
    for optimizer, taken in samples.items():
        ms = Spread.of(taken).scaled(1e3 / PERIOD)
        row = {"optimizer": optimizer, "ms": ms.median, "ms_quartiles": [ms.low, ms.high], "rounds": len(taken)}
        if "sgd" in samples:  # ratios within a round: what slows the machine then slows both
            ratio = Spread.of([a / b for a, b in zip(taken, samples["sgd"], strict=False)])
            mean = sum(taken) / sum(samples["sgd"][: len(taken)])
            row |= {"to_sgd": ratio.median, "to_sgd_quartiles": [ratio.low, ratio.high], "mean_to_sgd": mean}
        rows.append(row)
    return rows + missing


def _line(row: dict[str, Any]) -> list[Any]:
    if "missing" in row:
        return [f"`{row['optimizer']}`", row["missing"]]
    low, high = map(harness.cell, row["ms_quartiles"])
    line = [f"`{row['optimizer']}`", row["ms"], f"{low} … {high}"]
    if "to_sgd" not in row:
        return [*line, None, None, None, row["rounds"]]
    low, high = (f"{x:.3f}" for x in row["to_sgd_quartiles"])
    return [*line, f"{row['to_sgd']:.3f}", f"{low} … {high}", f"{row['mean_to_sgd']:.3f}", row["rounds"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table a training."""
    parser = harness.parser(__doc__, TRAININGS, list(TRAININGS), OPTIMIZERS)
    parser.add_argument("--rounds", type=int, default=DAMPING_PERIOD)
    parser.add_argument("--seconds", type=float, default=90.0, help="one that took so long sits out later rounds")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.seconds = 2, 1.0
    check([name.partition("/")[0] for name in args.optimizers])
    device = harness.start(args)
    found = harness.where(device)
    print(harness.heading(found))
    results = {}
    for name in args.models:
        rows = measure(name, args.optimizers, device, rounds=args.rounds, seconds_each=args.seconds, quick=args.quick)
        results[name] = {"rows": rows}
        print(f"\n{TRAININGS[name].title}{' (in small)' if args.quick else ''}\n")
        print(harness.table(COLUMNS, [_line(row) for row in rows]), flush=True)
        harness.write(args.out, {"environment": found, "models": results})


if __name__ == "__main__":
    main()
