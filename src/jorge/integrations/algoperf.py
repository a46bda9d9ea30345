"""AlgoPerf: what a submission in PyTorch needs beside its optimizer, as the benchmark's API has it.

A submission imports these functions and adds `init_optimizer_state`, which returns a dict with `"optimizer"` and
`"scheduler"`: the runner saves and loads both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.nn import all_reduce

if TYPE_CHECKING:
    from algoperf import spec

#: Examples of a step, all devices together: those of the benchmark's own AdamW.
BATCH_SIZES = {
    "criteo1tb": 262_144,
    "fastmri": 32,
    "imagenet_resnet": 1024,
    "imagenet_resnet_gelu": 512,
    "imagenet_resnet_silu": 512,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "mnist": 16,
    "ogbg": 512,
    "wmt": 128,
}


def get_batch_size(workload_name: str) -> int:
    """Examples of a step; for a variant of a workload the runner asks again by the name of its base.

    Raises:
        ValueError: an unknown workload, as the runner expects.
    """
    if workload_name not in BATCH_SIZES:
        raise ValueError(f"unsupported workload: {workload_name}; known are {', '.join(BATCH_SIZES)}")
    return BATCH_SIZES[workload_name]


def update_params(
    *,
    workload: spec.Workload,
    current_param_container: nn.Module,
    model_state: Any,
    hyperparameters: Any,
    batch: dict[str, Any],
    optimizer_state: dict[str, Any],
    rng: Any,
    **_: Any,
) -> tuple[dict[str, Any], nn.Module, Any]:
    """One step. Of `hyperparameters`, `dropout_rate`, `label_smoothing` and `grad_clip` are read where they are."""
    from algoperf import spec

    model = current_param_container
    model.train()
    optimizer_state["optimizer"].zero_grad()
    dropout = {"dropout_rate": hyperparameters.dropout_rate} if hasattr(hyperparameters, "dropout_rate") else {}
    logits, new_state = workload.model_fn(
        params=model,
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
        **dropout,
    )
    found = workload.loss_fn(
        label_batch=batch["targets"],
        logits_batch=logits,
        mask_batch=batch.get("weights"),
        label_smoothing=getattr(hyperparameters, "label_smoothing", 0.0),
    )
    summed, count = found["summed"], found["n_valid_examples"]
    if torch.distributed.is_initialized():  # DDP averages gradients; the mean is to be over the examples of all
        summed, count = all_reduce(summed), all_reduce(count)
    (summed / count).backward()
    if hasattr(hyperparameters, "grad_clip"):
        nn.utils.clip_grad_norm_(model.parameters(), hyperparameters.grad_clip)
    optimizer_state["optimizer"].step()
    optimizer_state["scheduler"].step()
    return optimizer_state, model, new_state


def prepare_for_eval(
    *, current_param_container: nn.Module, model_state: Any, optimizer_state: dict[str, Any], **_: Any
) -> tuple[dict[str, Any], nn.Module, Any]:
    """Nothing is done before an evaluation."""
    return optimizer_state, current_param_container, model_state


def data_selection(workload: spec.Workload, input_queue: Iterator[dict[str, Any]], *_: Any) -> dict[str, Any]:
    """The next batch."""
    return next(input_queue)
