"""An AlgoPerf submission with Jorge, external tuning: `tuning_search_space.json` beside it has what is tuned.

The search space is that of a recipe for AdamW; none of the benchmark's own trainings was run with it.
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
    adamw = torch.optim.AdamW(
        param_groups(model_params, weight_decay=hyperparameters.weight_decay),
        lr=hyperparameters.learning_rate,
        betas=(1 - hyperparameters.one_minus_beta1, hyperparameters.beta2),
    )
    steps = int(workload.step_hint)
    warmup = int(hyperparameters.warmup_factor * steps)
    optimizer, scheduler = Jorge.from_adamw(adamw, total_steps=steps, warmup_steps=warmup, schedule="cosine")
    return {"optimizer": optimizer, "scheduler": scheduler}
