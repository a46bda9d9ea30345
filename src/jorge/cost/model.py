"""The model's own work: FLOPs of its forward and backward pass, counted on tensors without memory."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ModelFlopsError(RuntimeError):
    """The model's passes cannot be run without memory; the message says what stopped them."""


def model_flops(model: nn.Module, sample_input: Any, *, loss: Callable[[Any], Tensor] | None = None) -> int:
    """FLOPs of one forward and backward pass in training mode, as torch's FLOP counter counts (2 a multiply-add).

    A copy of the model whose tensors are on the meta device is run: the model itself is not touched, and no memory
    is allocated for weights or activations. Attention counts as its matrix products, without what a fused kernel
    computes again.

    Args:
        model: on any device.
        sample_input: a tensor, a tuple of arguments or a dict of keyword arguments; tensors may be meta.
        loss: makes a scalar of the model's output. Default: the sum of all its floating-point tensors.

    Raises:
        ModelFlopsError: the model reads values of tensors, or an operator has no meta implementation.

    >>> model_flops(nn.Linear(8, 4), torch.empty(2, 8, device="meta"))
    256
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel  # a tenth of a second that only this function needs
    from torch.utils.flop_counter import FlopCounterMode

    shadow = _shadow(model)
    args, kwargs = _arguments(sample_input)
    counter = FlopCounterMode(display=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.device("meta"), torch.enable_grad(), counter:
            output = shadow(*args, **kwargs)
            scalar = loss(output) if loss is not None else _sum(output)
            scalar.backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a model may raise
        raise ModelFlopsError(_explain(error)) from error
    return counter.get_total_flops()


def _explain(error: Exception) -> str:
    func = getattr(error, "func", None)
    lines = str(error).strip().splitlines() or ["no message"]
    what = f"operator {func}" if func is not None else f"{type(error).__name__}: {lines[0]}"
    return (
        f"the model's FLOPs cannot be counted on the meta device ({what}): "
        "give them instead, model_flops=… or --model-flops"
    )


def _shadow(model: nn.Module) -> nn.Module:
    """A copy in training mode whose tensors have no memory."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for tensor in [*module.buffers(recurse=False), *vars(module).values()]:
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    return copy.deepcopy(model, memo).train()


def _arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, dict):
        return (), {key: _to_meta(value) for key, value in sample.items()}
    return tuple(_to_meta(value) for value in sample) if isinstance(sample, tuple) else (_to_meta(sample),), {}


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_to_meta(v) for v in value)
    return {k: _to_meta(v) for k, v in value.items()} if isinstance(value, dict) else value


def _sum(output: Any) -> Tensor:
    """The sum of all floating-point tensors that carry a gradient."""
    parts = [t.sum() for t in _leaves(output) if t.is_floating_point() and t.requires_grad]
    if not parts:
        raise ValueError("the model's output holds no floating-point tensor that a gradient could flow from")
    return torch.stack([part.float() for part in parts]).sum()


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in _leaves(value)]
    if isinstance(output, (list, tuple)):
        return [t for value in output for t in _leaves(value)]
    if dataclasses.is_dataclass(output):
        return [t for field in dataclasses.fields(output) for t in _leaves(getattr(output, field.name))]
    return []
