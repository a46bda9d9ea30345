"""An AlgoPerf submission with Jorge, self-tuning: one recipe for every workload.

The recipe is a plain one for AdamW; none of the benchmark's own trainings was run with it.
"""

from typing import Any

import torch
from torch import nn

from jorge import Jorge, param_groups
from jorge.integrations.algoperf import data_selection, get_batch_size, prepare_for_eval, update_params

__all__ = ["data_selection", "get_batch_size", "init_optimizer_state", "prepare_for_eval", "update_params"]


def init_optimizer_state(
    workload: Any, model_params: nn.Module, model_state: Any, hyperparameters: Any, rng: Any
) -> dict[str, Any]:
    """Jorge with the recipe of an AdamW, warm-up and a cosine over the workload's `step_hint`."""
    adamw = torch.optim.AdamW(param_groups(model_params, weight_decay=0.05), lr=2e-3, betas=(0.9, 0.99))
    steps = int(workload.step_hint)
    optimizer, scheduler = Jorge.from_adamw(adamw, total_steps=steps, warmup_steps=steps // 20, schedule="cosine")
    return {"optimizer": optimizer, "scheduler": scheduler}
