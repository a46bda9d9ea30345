"""What the scripts share: options, the line that says where they ran, timing in turns, tables and JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jorge.cost.counter import Meter
from jorge_lab.runs.environment import environment, processor

#: Rounds that every case takes part in, however slow it is.
FEWEST_ROUNDS = 2


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of at least one sample."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)

    def scaled(self, factor: float) -> Spread:
        """The spread of the samples times `factor`."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def plus(self, other: Spread) -> Spread:
        """The sum of two, its quartiles as if both were low or high together: rather too wide."""
        return Spread(self.median + other.median, self.low + other.low, self.high + other.high)


def parser(doc: str | None, known: Iterable[str], models: list[str], optimizers: list[str]) -> argparse.ArgumentParser:
    """The options of every script; `known` models, and which models and optimizers by default."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--threads", type=int, help="torch's threads; default: torch's own choice")
    made.add_argument("--out", type=Path, metavar="FILE.json", help="where to write the figures as JSON")
    made.add_argument("--quick", action="store_true", help="tiny shapes and few rounds: does the script work?")
    made.add_argument("--models", nargs="+", choices=list(known), default=models)
    made.add_argument(
        "--optimizers", nargs="+", default=optimizers, metavar="NAME", help="docs/notebook/benchmarks.md names them"
    )
    return made


def start(args: argparse.Namespace) -> torch.device:
    """Set threads and seed as the options say; the device."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return torch.device(args.device)


def where(device: torch.device) -> dict[str, Any]:
    """Machine, versions, threads and date."""
    return {
        **environment(device),
        "cpu": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def heading(found: dict[str, Any]) -> str:
    """The line above a table that says where its figures are from."""
    device = found["cpu"] if found["device"] in found["cpu"] else f"{found['device']} ({found['cpu']})"
    return (
        f"{device}; {found['threads']} threads; torch {found['torch']}; Python {found['python']}; "
        f"Jorge {found['jorge']}; {found['date']}"
    )


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, with what it started on the GPU."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def gemm_rate(device: torch.device, *, sides: Sequence[int] = (512, 1024, 2048), repeats: int = 5) -> dict[str, Any]:
    """The best float32 rate of square `mm` and `bmm` in this process, in FLOP/s, and where it was seen."""
    best: dict[str, Any] = {"flops_per_second": 0.0}
    for side in sides:
        for kind, count in (("mm", 1), ("bmm", 4)):
            a = torch.randn(count, side, side, device=device)
            b = torch.randn(count, side, side, device=device)
            factors = (a[0], b[0]) if kind == "mm" else (a, b)
            product: Callable[..., torch.Tensor] = torch.mm if kind == "mm" else torch.bmm

            def call(product: Any = product, factors: Any = factors) -> None:
                product(*factors)

            call()
            fastest = min(seconds(call, device) for _ in range(repeats))
            rate = 2 * count * side**3 / fastest
            if rate > best["flops_per_second"]:
                best = {"flops_per_second": rate, "product": kind, "side": side}
    return best


def flops(call: Callable[[], object]) -> int:
    """FLOPs of the matrix products in a call, which are those of no decompositions and of no `a·b`."""
    meter = Meter()
    with meter:
        call()
    return meter.flops


def interleave(
    cases: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    seconds_each: float,
    prepare: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each case, run once in turn in every round, so that what disturbs the machine disturbs them alike.

    A case sits out once it has had :data:`FEWEST_ROUNDS` and more than `seconds_each`. What `prepare` has for a
    case is run before it and not counted. Callers warm the cases first.
    """
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            taken = samples[name]
            if len(taken) < FEWEST_ROUNDS or sum(taken) < seconds_each:
                if prepare is not None:
                    prepare[name]()
                taken.append(seconds(call, device))
    return samples


def cell(value: Any) -> str:
    """A table's cell: three significant digits, a dash for `None`."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; a row that is short goes on with dashes."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [*map(cell, row), *["–"] * (len(columns) - len(row))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures as JSON, if a path was given."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n")
