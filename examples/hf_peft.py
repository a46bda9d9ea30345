"""PEFT: the matrices of LoRA are trained with Jorge, the model that they adapt is frozen."""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from jorge.integrations.transformers import from_arguments

STEPS = 16


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
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config.num_attention_heads = config.num_key_value_heads = 2
    lora = LoraConfig(r=4, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", modules_to_save=["lm_head"])
    model = get_peft_model(LlamaForCausalLM(config), lora)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        logging_steps=1,
        learning_rate=1e-2,
        per_device_train_batch_size=16,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Trainer(model, args, train_dataset=sentences(), optimizer_cls_and_kwargs=from_arguments(args))
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
