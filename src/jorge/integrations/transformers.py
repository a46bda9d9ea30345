"""Hugging Face's Trainer: Jorge from its arguments, with groups from the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from jorge.groups import param_groups
from jorge.optimizer import Jorge

if TYPE_CHECKING:
    from transformers import TrainingArguments


def from_arguments(args: TrainingArguments, **options: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
    """What Trainer takes as `optimizer_cls_and_kwargs`: the AdamW that its arguments describe, as Jorge.

    `(Jorge, {"lr": …})` is taken too. Trainer then makes the groups, which know nothing of fused weights and have no
    names; and it passes none of its arguments on but `weight_decay`.

    Args:
        args: `learning_rate`, `adam_beta1`, `adam_beta2`, `adam_epsilon` and `weight_decay` are read; `optim` is not.
        options: further options of :class:`jorge.Jorge`; they go before what `args` says.

    Raises:
        TypeError, ValueError: where Trainer builds the optimizer, as :class:`jorge.Jorge` and
            :func:`jorge.param_groups`.
    """
    read = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.weight_decay,
    }
    return _factory, {**read, **options}


def _factory() -> Callable[..., Jorge]:
    """Trainer calls what is no class of optimizers twice: for the factory, and that with the model."""
    return _build


def _build(model: nn.Module, *, weight_decay: float, **options: Any) -> Jorge:
    return Jorge(param_groups(model, weight_decay=weight_decay), weight_decay=weight_decay, **options)
