"""Hydra and OmegaConf: Jorge from a configuration, by `instantiate`."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from jorge import param_groups

STEPS = 20
# `_partial_` leaves the parameters to the program. Jorge makes a tuple of OmegaConf's list, which is what it saves.
CONFIG = """
optimizer:
  _target_: jorge.Jorge
  _partial_: true
  lr: 0.02
  betas: [0.9, 0.99]
  weight_decay: ${decay}
decay: 0.1
"""


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    torch.manual_seed(0)
    config = OmegaConf.create(CONFIG)
    inputs, truth = torch.randn(STEPS, 16, 8), torch.randn(8, 2)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = instantiate(config.optimizer)(param_groups(model, weight_decay=config.decay))
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if resume:
        for name, saved in torch.load(folder / "half.pt", weights_only=True).items():
            parts[name].load_state_dict(saved)
    losses = []
    for step in range(STEPS // 2 if resume else 0, STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs[step]), inputs[step] @ truth)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == STEPS // 2 - 1:
            torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "half.pt")
    return losses, model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
