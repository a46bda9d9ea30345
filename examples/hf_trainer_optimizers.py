"""Hugging Face Trainer takes a built optimizer and schedule: `optimizers`. Jorge has the recipe of an AdamW."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from jorge import Jorge, param_groups

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
    set_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.1,
    )
    model = LlamaForCausalLM(config)
    adamw = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=3e-3, betas=(0.9, 0.95))
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        logging_steps=1,
        per_device_train_batch_size=16,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    optimizers = Jorge.from_adamw(adamw, total_steps=STEPS, warmup_steps=2, schedule="cosine")
    trainer = Trainer(model, args, train_dataset=sentences(), optimizers=optimizers)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
