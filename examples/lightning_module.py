"""Lightning: bfloat16, clipping, a schedule that counts steps, stochastic weight averaging, a checkpoint."""

import tempfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jorge import Jorge, param_groups

EPOCHS = 6


class Regression(L.LightningModule):
    """A perceptron that learns a linear map, and keeps the losses of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """The loss of a batch."""
        loss = nn.functional.mse_loss(self.net(batch[0]).float(), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """Jorge, and a schedule that Lightning steps with it: without `interval` it would once an epoch."""
        adamw = torch.optim.AdamW(param_groups(self, weight_decay=0.1), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = Jorge.from_adamw(adamw, total_steps=steps, warmup_steps=2, schedule="cosine")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    L.seed_everything(0, verbose=False)
    inputs = torch.randn(64, 8)
    data = TensorDataset(inputs, inputs @ torch.randn(8, 2))
    saving = ModelCheckpoint(folder, "{epoch}", every_n_epochs=EPOCHS // 2, save_top_k=-1)
    averaging = StochasticWeightAveraging(swa_lrs=0.005, swa_epoch_start=EPOCHS - 2, annealing_epochs=1)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=EPOCHS, callbacks=[saving, averaging], precision="bf16-mixed", gradient_clip_val=1.0, **quiet
    )
    model, half = Regression(), folder / f"epoch={EPOCHS // 2 - 1}.ckpt"
    trainer.fit(model, DataLoader(data, batch_size=16), ckpt_path=half if resume else None)
    return model.losses, model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
