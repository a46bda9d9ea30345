"""Accelerate: `prepare`, accumulation, bfloat16, clipping, `save_state` and `load_state`."""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from jorge import Jorge, param_groups

STEPS, ACCUMULATE = 12, 2


def sentences() -> TensorDataset:
    """Sequences of 8 tokens, of the first or of the last sixteen, and which."""
    labels = torch.arange(STEPS * ACCUMULATE * 8) % 2
    return TensorDataset(torch.randint(16, (len(labels), 8)) + 16 * labels[:, None], labels)


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=ACCUMULATE)
    config = BertConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    model = BertForSequenceClassification(config)
    optimizer = Jorge(param_groups(model, weight_decay=0.1), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    # With a generator of its own the loader draws no number from the one that dropout goes by.
    loader = DataLoader(sentences(), batch_size=8, generator=torch.Generator())
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    done, losses = 0, []
    if resume:
        accelerator.load_state(str(folder))
        done = STEPS // 2 * ACCUMULATE
        loader = accelerator.skip_first_batches(loader, done)
    for batch, (tokens, labels) in enumerate(loader, done + 1):
        with accelerator.accumulate(model):
            loss = model(tokens, labels=labels).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if batch == STEPS // 2 * ACCUMULATE:
            accelerator.save_state(str(folder))
    return losses, model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
