"""Hugging Face Trainer builds the optimizer: `optimizer_cls_and_kwargs`. Accumulation, bfloat16, clipping, cosine."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from jorge.integrations.transformers import from_arguments

STEPS = 12


def sentences() -> list[dict[str, torch.Tensor]]:
    """Sequences of 16 tokens of 64, each one more than a multiple of the one before it."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(64, (256, 1), generator=generator)]
    for _ in range(15):
        rows.append((3 * rows[-1] + 1) % 64)
    return [{"input_ids": row, "labels": row} for row in torch.cat(rows, 1)]


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        logging_steps=1,
        learning_rate=3e-3,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    trainer = Trainer(model, args, train_dataset=sentences(), optimizer_cls_and_kwargs=from_arguments(args))
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
