"""Lightning with two optimizers: Jorge for the body, SGD for the head, in manual optimization."""

import tempfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jorge import Jorge, param_groups

EPOCHS = 6


class Regression(L.LightningModule):
    """A perceptron that learns a linear map, and keeps the losses of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body, self.head = nn.Sequential(nn.Linear(8, 32), nn.GELU()), nn.Linear(32, 2)
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], _: int) -> None:
        """A step of both optimizers."""
        loss = nn.functional.mse_loss(self.head(self.body(batch[0])), batch[1])
        both = self.optimizers()
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in both:
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
        self.losses.append(loss.item())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for the body, one for the head."""
        body = Jorge(param_groups(self.body, weight_decay=0.1), lr=0.02)
        return [body, torch.optim.SGD(self.head.parameters(), lr=0.02, momentum=0.9)]


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    L.seed_everything(0, verbose=False)
    inputs = torch.randn(64, 8)
    data = TensorDataset(inputs, inputs @ torch.randn(8, 2))
    saving = ModelCheckpoint(folder, "{epoch}", every_n_epochs=EPOCHS // 2, save_top_k=-1)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=EPOCHS, callbacks=[saving], **quiet)
    model, half = Regression(), folder / f"epoch={EPOCHS // 2 - 1}.ckpt"
    trainer.fit(model, DataLoader(data, batch_size=16), ckpt_path=half if resume else None)
    return model.losses, model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
