"""TRL: supervised fine-tuning with SFTTrainer, on data that is tokens already."""

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from jorge.integrations.transformers import from_arguments

STEPS = 12


def sentences() -> Dataset:
    """Sequences of 16 tokens of 64, each one more than a multiple of the one before it."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(64, (256, 1), generator=generator)]
    for _ in range(15):
        rows.append((3 * rows[-1] + 1) % 64)
    return Dataset.from_dict({"input_ids": torch.cat(rows, 1).tolist()})


def train(folder: Path, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The loss of each step, and the model. Saves in the middle, or goes on from there."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(64)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
    set_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config.num_attention_heads = config.num_key_value_heads = 2
    model = LlamaForCausalLM(config)
    args = SFTConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        logging_steps=1,
        learning_rate=3e-3,
        max_length=16,
        per_device_train_batch_size=16,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        report_to="none",
    )
    glue = from_arguments(args)
    trainer = SFTTrainer(
        model, args, train_dataset=sentences(), processing_class=tokenizer, optimizer_cls_and_kwargs=glue
    )
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        found, _ = train(Path(here))
        print(f"loss {found[0]:.3f} → {found[-1]:.3f}, resumed to {train(Path(here), resume=True)[0][-1]:.3f}")
