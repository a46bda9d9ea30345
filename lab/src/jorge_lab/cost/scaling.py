"""How the optimizer grows with the number of processes: `python -m jorge_lab.cost.scaling [--models …] [--measure]`.

By the assignment alone: what each process holds, computes and sends (:func:`jorge.cost.distributed`), and a model of
the time of products and messages from a rate and a bandwidth that can be given. With `--measure` also the seconds of a
step here, of 1, 2 and 4 processes with gloo; they share this machine's cores, and say what sharing costs and not how
fast it is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from jorge import Jorge
from jorge.cost import distributed
from jorge.cost.distributed import STRATEGIES, Strategy
from jorge_lab.cost import shapes

SIZES = (1, 2, 4, 8, 16, 64, 256, 1024)
Shapes = dict[str, tuple[int, ...]]


def gpt2_xl() -> Shapes:
    """The matrices and norms of GPT-2 XL, 1.56 billion parameters without biases."""
    found: Shapes = {"wte": (50257, 1600), "wpe": (1024, 1600)}
    for i in range(48):
        found |= {f"{i}.qkv": (4800, 1600), f"{i}.proj": (1600, 1600), f"{i}.up": (6400, 1600)}
        found |= {f"{i}.down": (1600, 6400), f"{i}.norm1": (1600,), f"{i}.norm2": (1600,)}
    return found


def llama_7b() -> Shapes:
    """Those of Llama-7B, 6.7 billion parameters."""
    found: Shapes = {"embed": (32000, 4096), "head": (32000, 4096)}
    for i in range(32):
        found |= {f"{i}.{name}": shape for name, shape in shapes.MODELS["llama7b_layer"]()}
    return found


MODELS: dict[str, Callable[[], Shapes]] = {
    "resnet50": lambda: dict(shapes.MODELS["resnet50"]()),
    "gpt2_xl": gpt2_xl,
    "llama7b": llama_7b,
    "tiny": lambda: dict(shapes.MODELS["tiny"]()),
}


def row(model: str, strategy: Strategy, size: int, *, flops: float, bandwidth: float) -> dict[str, Any]:
    """What a process of so many has to do."""
    cost = distributed(MODELS[model](), world_size=size, strategy=strategy)
    return {
        "model": model,
        "strategy": strategy,
        "processes": size,
        "state_bytes": max(cost.state_bytes),
        "refresh_flops": max(cost.refresh_flops),
        "share": max(cost.refresh_flops) / max(1, sum(cost.refresh_flops)),
        "imbalance": cost.imbalance,
        "step_bytes": max(cost.step_bytes),
        "refresh_bytes": max(cost.refresh_bytes),
        "seconds": cost.seconds(flops=flops, bandwidth=bandwidth),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| model | strategy | processes | state, GB | refresh, GFLOPs | of one process' | imbalance "
        "| sent a step, MB | and at a refresh, MB | ms a step, modelled |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each in rows:
        figures = [f"{each['state_bytes'] / 1e9:.3g}", f"{each['refresh_flops'] / 1e9:.3g}", f"{each['share']:.2g}"]
        figures += [f"{each['imbalance']:.2f}", f"{each['step_bytes'] / 1e6:.3g}", f"{each['refresh_bytes'] / 1e6:.3g}"]
        figures.append(f"{1e3 * each['seconds']:.3g}")
        name = (each["model"], each["strategy"], str(each["processes"]))
        lines.append("| " + " | ".join((*name, *figures)) + " |")
    return "\n".join(lines)


def _work(rank: int, size: int, model: str, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    named = shapes.parameters(model, torch.device("cpu"))  # the same in each
    optimizer = Jorge(named, lr=1e-3, distributed="replicate" if size > 1 else None)
    seconds = []
    for _ in range(steps):
        dist.barrier()
        begin = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        Path(folder, "seconds").write_text(str(statistics.median(seconds[2:])))
    dist.destroy_process_group()


def measured(model: str, size: int, steps: int = 8) -> float:
    """The median seconds of a refreshing step of so many processes on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, args=(size, model, folder, steps), nprocs=size)  # type: ignore[no-untyped-call]
        return float(Path(folder, "seconds").read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m jorge_lab.cost.scaling", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["resnet50", "gpt2_xl", "llama7b"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["ddp", "ddp-shard", "fsdp"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="numbers of processes")
    parser.add_argument("--flops", type=float, default=5e13, help="that a device does in a second (default: 5e13)")
    parser.add_argument("--bandwidth", type=float, default=5e10, help="bytes it sends in a second (default: 5e10)")
    parser.add_argument("--measure", nargs="*", type=int, metavar="N", help="time N processes here (default: 1 2 4)")
    args = parser.parse_args(argv)
    rows = [
        row(model, strategy, size, flops=args.flops, bandwidth=args.bandwidth)
        for model in args.models
        for strategy in args.strategies
        for size in args.sizes
    ]
    print(table(rows))
    if args.measure is not None:
        model = "resnet18" if args.models != ["tiny"] else "tiny"
        found = {size: measured(model, size) for size in args.measure or (1, 2, 4)}
        base = next(iter(found.values()))
        print(f"\n{model}, a refreshing step on this machine, one thread each, over that of the first:")
        print(", ".join(f"{size} processes {seconds / base:.2f}" for size, seconds in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
