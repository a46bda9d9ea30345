"""DeepSpeed: Jorge as the client's optimizer, with clipping and its checkpoints; ZeRO is off.

`deepspeed examples/deepspeed_client.py` starts a process a device; alone it is one process.
"""

import os
import tempfile
from pathlib import Path

import deepspeed
import torch
from torch import nn

from jorge import Jorge, param_groups

STEPS = 20
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
CONFIG = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 0},  # higher ones flatten and shard the parameters, which Jorge cannot read then
}


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    torch.manual_seed(0)
    inputs, truth = torch.randn(STEPS, 2, 8, 8), torch.randn(8, 2)
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = Jorge(param_groups(net, weight_decay=0.1), lr=0.02)
    engine, _, _, _ = deepspeed.initialize(model=net, optimizer=optimizer, config=CONFIG)
    if resume:
        engine.load_checkpoint(str(folder))
    losses = []
    for step in range(engine.global_steps, STEPS):
        total = 0.0
        for batch in inputs[step]:
            loss = nn.functional.mse_loss(engine(batch), batch @ truth)
            engine.backward(loss)
            engine.step()
            total += loss.item() / 2
        losses.append(total)
        if step == STEPS // 2 - 1:
            engine.save_checkpoint(str(folder))
    return losses, net


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
