"""timm: Jorge by name from its factory, with layer decay, timm's schedule and its average of the weights."""

import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from jorge.integrations.timm import register

STEPS = 16

register()


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the averaged model. Saves in the middle, or goes on from there."""
    torch.manual_seed(0)
    images, classes = torch.randn(STEPS, 16, 3, 16, 16), torch.randint(4, (STEPS, 16))
    images += torch.randn(4, 3, 16, 16)[classes]
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **size)
    optimizer = create_optimizer_v2(model, opt="jorge", lr=0.02, weight_decay=0.05, layer_decay=0.75)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=1, warmup_epochs=0, updates_per_epoch=STEPS, step_on_epochs=False
    )
    ema = ModelEmaV3(model, decay=0.8)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "ema": ema}
    done, losses = 0, []
    if resume:
        done = STEPS // 2
        for name, saved in torch.load(folder / "half.pt", weights_only=True).items():
            parts[name].load_state_dict(saved)
    for step in range(done, STEPS):
        scheduler.step_update(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[step]), classes[step])
        loss.backward()
        optimizer.step()
        ema.update(model, step)
        losses.append(loss.item())
        if step == STEPS // 2 - 1:
            torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "half.pt")
    return losses, ema


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
