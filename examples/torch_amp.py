"""torch alone: a compiled model, autocast with a GradScaler, accumulation, clipping, a cosine schedule.

On a GPU "cpu" becomes "cuda". Autocast's float16 needs the scaler, bfloat16 does not.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jorge import Jorge, param_groups

STEPS, ACCUMULATE = 20, 2


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs `[16, 8]` and targets `[16, 2]` of a linear map with noise."""
    torch.manual_seed(1)
    inputs = torch.randn(STEPS * ACCUMULATE, 16, 8)
    return list(zip(inputs, inputs @ torch.randn(8, 2) + 0.1 * torch.randn(len(inputs), 16, 2), strict=True))


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    data, losses = batches(), []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
    compiled = torch.compile(model)
    optimizer = Jorge(param_groups(model, weight_decay=0.1), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    if resume:
        for name, saved in torch.load(folder / "half.pt", weights_only=True).items():
            parts[name].load_state_dict(saved)
    for step in range(scheduler.last_epoch, STEPS):
        optimizer.zero_grad()
        total = 0.0
        for inputs, targets in data[step * ACCUMULATE : (step + 1) * ACCUMULATE]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(compiled(inputs).float(), targets) / ACCUMULATE
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)  # before clipping: the limit is the true gradient's
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        losses.append(total)
        if step == STEPS // 2 - 1:
            torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "half.pt")
    return losses, model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
