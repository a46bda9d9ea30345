"""torchtitan: its optimizers container with Jorge, its schedulers, and a distributed checkpoint of one process."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchtitan.components.optimizer import LRSchedulersContainer, ParamGroupConfig

from jorge.integrations.torchtitan import JorgeContainer

STEPS = 16
RECIPE = {"lr": 3e-3, "betas": (0.9, 0.95)}


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    torch.manual_seed(0)
    rows = [torch.randint(64, (STEPS, 16, 1))]
    for _ in range(15):
        rows.append((3 * rows[-1] + 1) % 64)
    tokens = torch.cat(rows, 2)
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = nn.ModuleDict({"words": nn.Embedding(64, 32), "layer": layer, "head": nn.Linear(32, 64)})
    groups = [  # the first pattern that fits a name says what the parameter gets
        ParamGroupConfig(
            pattern=r"norm|bias", optimizer_name="AdamW", optimizer_kwargs={**RECIPE, "weight_decay": 0.0}
        ),
        ParamGroupConfig(pattern=r"in_proj", optimizer_name="Jorge", optimizer_kwargs={**RECIPE, "splits": 3}),
        ParamGroupConfig(pattern=r".*", optimizer_name="Jorge", optimizer_kwargs=RECIPE),
    ]
    config = JorgeContainer.Config(param_groups=groups, implementation="for-loop")
    optimizers = config.build(model_parts=[model])
    schedulers = LRSchedulersContainer.Config(warmup_steps=2).build(optimizers=optimizers, training_steps=STEPS)
    mask = nn.Transformer.generate_square_subsequent_mask(15)
    done, losses = 0, []
    parts = {"model": model, "optimizer": optimizers, "lr_scheduler": schedulers}
    if resume:
        done = STEPS // 2
        load(parts, checkpoint_id=folder / "half")
    for step in range(done, STEPS):
        optimizers.zero_grad()
        hidden = model["layer"](model["words"](tokens[step, :, :-1]), src_mask=mask, is_causal=True)
        loss = nn.functional.cross_entropy(model["head"](hidden).flatten(0, 1), tokens[step, :, 1:].flatten())
        loss.backward()
        optimizers.step()
        schedulers.step()
        losses.append(loss.item())
        if step == STEPS // 2 - 1:
            save(parts, checkpoint_id=folder / "half")
    return losses, model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
