"""Muon for the hidden layers of any model, AdamW for the rest, as its authors advise.

`torch.optim.Muon` takes matrices alone: kernels are handed to it as matrices that share their memory.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from jorge_lab.contenders.contender import Built, Contender, Options, arguments, by_setting, scheduled
from jorge_lab.contenders.first_order import adamw_options
from jorge_lab.contenders.parts import Parts, as_matrix
from jorge_lab.tasks.task import Task

#: Options of the part that is AdamW alone.
_ADAMW_ALONE = ("betas", "eps")
#: Options of the part that is Muon alone.
_MUON_ALONE = ("momentum", "nesterov", "adjust_lr_fn", "ns_steps")
#: What output layers are called; in a model without such names it is the last that is not recurrent.
_OUTPUT = {"head", "lm_head", "classifier", "fc", "output", "logits"}
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_FEEDFORWARD = (nn.Linear, _ConvNd, nn.MultiheadAttention)


def hidden(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear, attention, recurrent and convolutional layers, but for the output layer's.

    Embeddings, norms, biases and whatever else are not among them: Muon's authors leave those and the output layer
    to AdamW (K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024). A weight that an embedding
    shares is left out too.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (*_RECURRENT, *_FEEDFORWARD))}
    feedforward = [m for m in layers.values() if not isinstance(m, _RECURRENT)]
    output = [m for n, m in layers.items() if _OUTPUT & set(n.split("."))] or feedforward[-1:]
    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    others = {id(p) for m in (*output, *embeddings) for p in m.parameters()}
    weights = [p for m in layers.values() for p in m.parameters(recurse=False) if p.dim() >= 2 and p.requires_grad]
    return [p for p in {id(p): p for p in weights}.values() if id(p) not in others]


def _make(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
    matrices = hidden(model)
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
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
