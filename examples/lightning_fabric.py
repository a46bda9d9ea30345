"""Fabric: `setup`, bfloat16, clipping, `save` and `load`."""

import tempfile
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import nn

from jorge import Jorge, param_groups

STEPS = 20


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.seed_everything(0, verbose=False)
    data = torch.randn(STEPS, 16, 8)
    truth = torch.randn(8, 2)
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
    model, optimizer = fabric.setup(net, Jorge(param_groups(net, weight_decay=0.1), lr=0.02))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    if resume:
        fabric.load(folder / "half.ckpt", state)
    losses = []
    for step in range(state["step"], STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(data[step]).float(), data[step] @ truth)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        losses.append(loss.item())
        if step == STEPS // 2 - 1:
            fabric.save(folder / "half.ckpt", {**state, "step": step + 1})
    return losses, net


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
