"""torch alone: averages of the weights by `torch.optim.swa_utils`, and batch norm's statistics for them."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from jorge import Jorge, param_groups

STEPS, AVERAGED = 20, 5


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images `[16, 1, 8, 8]`, whose class is the quarter that is brighter."""
    torch.manual_seed(1)
    images, classes = torch.randn(STEPS, 16, 1, 8, 8), torch.randint(4, (STEPS, 16))
    quarters = torch.eye(4).reshape(4, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    images += quarters[classes]
    return list(zip(images, classes, strict=True))


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the averaged model. Saves in the middle, or goes on from there."""
    data, losses = batches(), []
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 4)]
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), *head)
    optimizer = Jorge(param_groups(model, weight_decay=0.1), lr=0.02)
    scheduler = SWALR(optimizer, swa_lr=0.005, anneal_epochs=STEPS - AVERAGED)
    swa, ema = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    parts: dict[str, Any] = {"model": model, "swa": swa, "ema": ema, "optimizer": optimizer, "scheduler": scheduler}
    if resume:
        for name, saved in torch.load(folder / "half.pt", weights_only=True).items():
            parts[name].load_state_dict(saved)
    for step in range(scheduler.last_epoch, STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data[step][0]), data[step][1])
        loss.backward()
        optimizer.step()
        scheduler.step()
        ema.update_parameters(model)
        if step >= STEPS - AVERAGED:
            swa.update_parameters(model)
        losses.append(loss.item())
        if step == STEPS // 2 - 1:
            torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "half.pt")
    update_bn([images for images, _ in data], swa)
    return losses, swa


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
