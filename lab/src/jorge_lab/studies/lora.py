"""Low-rank adapters, whose matrices are a few rows long: what a side costs, and what it is worth.

`python -m jorge_lab.studies.lora` trains a perceptron on a part of Fashion-MNIST, then adapters of it (LoRA, Hu et al.,
arXiv 2106.09685) on MNIST, with AdamW and with Jorge's long sides in blocks of about 128, in blocks of 32, and
diagonal. Writes losses and bytes of state to `--out`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge import Jorge
from jorge_lab.contenders import state_bytes
from jorge_lab.runs.environment import environment
from jorge_lab.tasks.finding import find_task

#: By name, the options of Jorge; `None` is AdamW.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "AdamW": None,
    "Jorge": {},
    "Jorge, block_size=32": {"block_size": 32},
    "Jorge, max_dim=256": {"max_dim": 256},
}
_BATCH = 128


class Adapter(nn.Module):
    """A frozen linear layer, and a product of two thin matrices beside it."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and the adapter's."""
        return torch.add(self.layer(x), 2 * (x @ self.down.T) @ self.up.T)


def perceptron(width: int) -> nn.Sequential:
    """Four layers, the same at each call."""
    torch.manual_seed(0)
    sizes = [784, width, width, width, 10]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Tensor], seed: int, steps: int
) -> list[float]:
    """The losses of a training with a learning rate that falls to zero."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    generator, losses = torch.Generator().manual_seed(seed), []
    inputs, targets = data
    for _ in range(steps):
        rows = torch.randint(len(inputs), (_BATCH,), generator=generator)
        loss = F.cross_entropy(model(inputs[rows].flatten(1)), targets[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def adapt(base: dict[str, Tensor], width: int, rank: int, variant: str, lr: float, seed: int, steps: int) -> Any:
    """Mean loss of the last tenth, and the bytes of state."""
    model = perceptron(width)
    model.load_state_dict(base)
    torch.manual_seed(seed)
    for i, layer in enumerate(list(model)):
        if isinstance(layer, nn.Linear):
            model[i] = Adapter(layer, rank)
    params = [p for p in model.parameters() if p.requires_grad]
    options = VARIANTS[variant]
    optimizer: torch.optim.Optimizer
    if options is None:
        optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=0)
    else:
        optimizer = Jorge(params, lr=lr, weight_decay=0, **options)
    losses = fit(model, optimizer, find_task("mnist", "small").load().train, seed, steps)
    return fmean(losses[-max(1, steps // 10) :]), state_bytes(optimizer)


def main(argv: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Train, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 8, 64])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--out", type=Path, default=Path("lab/records/lora.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    base = perceptron(args.width)
    first = torch.optim.AdamW(base.parameters(), lr=1e-3)
    fit(base, first, find_task("fashion", "smoke").load().train, 0, args.steps)
    rows = []
    for rank in args.ranks:
        for variant in VARIANTS:
            found = {
                lr: [
                    adapt(base.state_dict(), args.width, rank, variant, lr, seed, args.steps)
                    for seed in range(args.seeds)
                ]
                for lr in args.rates
            }
            losses = {lr: fmean(loss for loss, _ in each) for lr, each in found.items()}
            lr = min(losses, key=losses.__getitem__)
            row = {"rank": rank, "optimizer": variant, "lr": lr, "loss": losses[lr], "state_bytes": found[lr][0][1]}
            rows.append(row)
            say(f"rank {rank}, {variant}: loss {losses[lr]:.4f} at lr {lr}, {row['state_bytes'] / 1e6:.2f} MB")
    kept = {"environment": environment(torch.device("cpu")), "steps": args.steps, "seeds": args.seeds, "rows": rows}
    args.out.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
