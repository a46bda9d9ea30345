"""Muon for the hidden layers of any model, AdamW for the rest (:mod:`jorge.cost.muon_partition`).

`torch.optim.Muon` takes matrices alone: kernels are handed to it as matrices that share their memory.
"""

from __future__ import annotations

import torch
from torch import nn

from jorge.cost.muon_partition import hidden
from jorge_lab.contenders.contender import Built, Contender, Options, arguments, by_setting, scheduled
from jorge_lab.contenders.first_order import adamw_options
from jorge_lab.contenders.parts import Parts, as_matrix, the_rest
from jorge_lab.tasks.task import Task

#: Options of the part that is AdamW alone.
_ADAMW_ALONE = ("betas", "eps")
#: Options of the part that is Muon alone.
_MUON_ALONE = ("momentum", "nesterov", "adjust_lr_fn", "ns_steps")


def _make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
    matrices = hidden(model)
    rest = the_rest(model, matrices)
    given = arguments(options)
    views = [(p, as_matrix(p)) for p in matrices]
    parts: list[torch.optim.Optimizer] = []
    if views:
        muon = {name: value for name, value in given.items() if name not in _ADAMW_ALONE}
        parts.append(torch.optim.Muon([matrix for _, matrix in views], **muon))
    if rest:
        parts.append(torch.optim.AdamW(rest, **{n: v for n, v in given.items() if n not in _MUON_ALONE}))
    return scheduled(Parts(parts, views), task, steps)


def _transferred(task: Task) -> Options:
    """AdamW's lr and decay for both parts: Muon's updates are scaled to AdamW's typical length (arXiv 2502.16982)."""
    return adamw_options(task) | {"adjust_lr_fn": "match_rms_adamw"}


MUON = Contender("muon", "Muon", by_setting("muon", _transferred), _make)
