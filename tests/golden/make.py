"""What a release promises of states and numbers, written once: `python -m tests.golden.make [METHOD …]`.

`state-METHOD-GRAFT.pt` is a state dict that every later version loads, with the weights that it belongs to and those
that ten more steps lead to. `trajectories.json` has weights of longer trainings. A change of either is deliberate, and
stands in the changelog. What is of other methods than the named ones stays as it is.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jorge import Jorge
from jorge.methods import METHODS

HERE = Path(__file__).parent
GRAFTS = ("adam", "sgd")
#: Steps before the state is saved, and after.
BEFORE, AFTER = 13, 10
#: Steps at which a trajectory is recorded.
RECORDED = (1, 5, 25, 100)

_SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "weight": ((6, 5), torch.float32),
    "cut": ((4, 19), torch.float32),
    "kernel": ((4, 2, 3, 3), torch.float32),
    "long": ((30, 3), torch.float32),
    "bias": ((5,), torch.float32),
    "scale": ((), torch.float32),
    "double": ((3, 4), torch.float64),
    "half": ((5, 4), torch.bfloat16),
}
_EXPERTS = (2, 4, 3)


def _numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers that any torch makes alike."""
    count = math.prod(shape)
    return torch.tensor([math.sin(1.7 * seed + 0.37 * i * i + i) for i in range(count)], dtype=torch.float64).view(
        shape
    )


def parameters() -> dict[str, nn.Parameter]:
    """Matrices that are whole, cut, diagonal on a side and of other dtypes, a kernel, vectors, and experts."""
    found = {
        name: nn.Parameter(_numbers(shape, i).to(dtype)) for i, (name, (shape, dtype)) in enumerate(_SHAPES.items())
    }
    return found | {"experts": nn.Parameter(_numbers(_EXPERTS, 99).float())}


def build(params: dict[str, nn.Parameter], method: str, graft: Any) -> Jorge:
    """The optimizer whose states and numbers are kept."""
    plain = [(name, p) for name, p in params.items() if name != "experts"]
    groups: list[dict[str, Any]] = [{"params": plain}, {"params": [("experts", params["experts"])], "batch_dims": 1}]
    options: dict[str, Any] = {"block_size": 8, "max_dim": 25, "interval": 3, "warmup_refreshes": 4}
    return Jorge(groups, lr=0.02, weight_decay=0.1, method=method, grafting=graft, **options)


def advance(params: dict[str, nn.Parameter], optimizer: Jorge, first: int, steps: int) -> None:
    """Steps with gradients that depend on their number and on the weights."""
    for step in range(first, first + steps):
        for i, p in enumerate(params.values()):
            noise = _numbers(tuple(p.shape), 31 * step + i)
            p.grad = (p.detach().double() * 0.3 + noise).to(p.dtype)
        optimizer.step()


def weights(params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies."""
    return {name: p.detach().clone() for name, p in params.items()}


def main(named: Sequence[str]) -> None:
    """Write the files of some methods, or of all."""
    kept_numbers = HERE / "trajectories.json"
    trajectories: dict[str, Any] = json.loads(kept_numbers.read_text(encoding="utf-8")) if named else {}
    for method in named or METHODS:
        for graft in GRAFTS:
            params = parameters()
            optimizer = build(params, method, graft)
            advance(params, optimizer, 1, BEFORE)
            file = io.BytesIO()
            kept = {"state": optimizer.state_dict(), "before": weights(params)}
            advance(params, optimizer, 1 + BEFORE, AFTER)
            torch.save({**kept, "after": weights(params)}, file)
            (HERE / f"state-{method}-{graft}.pt").write_bytes(file.getvalue())
            trajectories[f"{method}, {graft}"] = trajectory(method, graft)
    kept_numbers.write_text(json.dumps(trajectories, indent=1) + "\n", encoding="utf-8")


def trajectory(method: str, graft: str) -> dict[str, dict[str, list[float]]]:
    """By step and parameter, norm and first element of the weights."""
    params = parameters()
    optimizer, taken = build(params, method, graft), 0
    found = {}
    for step in RECORDED:
        advance(params, optimizer, 1 + taken, step - taken)
        taken = step
        found[str(step)] = {
            name: [
                float(f"{x:.7g}") for x in (p.detach().double().norm().item(), p.detach().double().flatten()[0].item())
            ]
            for name, p in params.items()
        }
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
