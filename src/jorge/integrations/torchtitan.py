"""torchtitan: an optimizers container that knows Jorge by name, beside those that torchtitan's own knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

from jorge.optimizer import Jorge


class JorgeContainer(OptimizersContainer):
    """torchtitan's container, in whose `ParamGroupConfig` the `optimizer_name` may be `"Jorge"` too.

    torchtitan gives each group the parameters' names, and `fused` or `foreach`, which change nothing here.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """As that of torchtitan's container: its `build` makes this one."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., torch.optim.Optimizer]:
        return Jorge if name == "Jorge" else OptimizersContainer._resolve_optimizer_factory(name)


def default_jorge(lr: float = 8e-4, **options: Any) -> JorgeContainer.Config:
    """Jorge for every parameter, with the lr, betas, eps and decay of torchtitan's `default_adamw`.

    Args:
        lr: the learning rate that AdamW was tuned to.
        options: further options of :class:`jorge.Jorge`; they go before torchtitan's.
    """
    recipe = {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, **options}
    return JorgeContainer.Config(
        param_groups=[ParamGroupConfig(pattern=r".*", optimizer_name="Jorge", optimizer_kwargs=recipe)]
    )
