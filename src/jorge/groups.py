"""Param groups from a model: what its modules say of the parameters that shapes alone do not.

Which weights decay, where several matrices lie in one parameter, and what each is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from jorge.blocks import matrix_shape

#: Linear layers whose output is queries, keys and values, or gate and up projection, one after the other, by the names
#: that timm, nanoGPT, transformers and flash-attention give them; and how many matrices that makes.
_FUSED = {
    "qkv": 3,
    "c_attn": 3,
    "qkv_proj": 3,
    "Wqkv": 3,
    "in_proj_qkv": 3,
    "to_qkv": 3,
    "gate_up_proj": 2,
    "w12": 2,
}
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
#: Rows above which a vocabulary is diagonal.
_MANY = 8192
#: Gates of a recurrent layer, whose weights lie one below the other.
_GATES = ((nn.LSTM, 4), (nn.LSTMCell, 4), (nn.GRU, 3), (nn.GRUCell, 3))


def param_groups(model: nn.Module, *, weight_decay: float | None = None, **options: Any) -> list[dict[str, Any]]:
    """The trained parameters of a model in param groups, named, for :class:`jorge.Jorge` or `torch.optim.AdamW`.

    Parameters that need the same go into one group:

    - Norms, biases and vectors do not decay; a vector has at most one dim above 1, such as `[1, 1, width]`. Nor do
      parameters that `no_weight_decay()` of the model, or of a module in it, names, as timm's models do.
    - Weights of experts, `[experts, in, out]`, get `batch_dims=1`. Such are parameters of three dims of any module but
      convolutions and `nn.Bilinear`, where the first is above 1. Their biases are vectors each.
    - Fused weights get `splits`: `in_proj_weight` of `nn.MultiheadAttention`, linear layers
      `qkv`, `c_attn`, `qkv_proj`, `Wqkv` and `in_proj_qkv` of three times as many outputs as inputs, `to_qkv`,
      `gate_up_proj` and `w12`, and the gates of LSTMs and GRUs. Weights that are `[in, out]`, as in transformers'
      `Conv1D`, and those that mix heads, as `query_key_value`, are left whole.
    - Vocabularies get `max_dim=8192`, so that they have a diagonal side above that: embeddings, and linear layers with
      as many outputs as one of them has rows.

    Args:
        model: a module; frozen parameters are left out, tied ones are there once.
        weight_decay: of the parameters that decay; `None` leaves it to the optimizer.
        options: further keys of every group; what a module asks for goes first, but for `max_dim`.

    Raises:
        TypeError: no module.
        ValueError: no parameter is trained.

    >>> import torch
    >>> from jorge import Jorge, param_groups
    >>> model = torch.nn.TransformerEncoderLayer(32, 4, dim_feedforward=64)
    >>> groups = param_groups(model, weight_decay=0.1)
    >>> [(len(group["params"]), group["weight_decay"], group.get("splits", 1)) for group in groups]
    [(1, 0.1, 3), (8, 0.0, 1), (3, 0.1, 1)]
    >>> optimizer = Jorge(groups, lr=3e-3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"param_groups() takes a module, got {type(model).__name__}: pass the model itself")
    found: dict[tuple[tuple[str, Any], ...], list[tuple[str, Tensor]]] = {}
    words = {m.weight.shape[0] for m in model.modules() if isinstance(m, _EMBEDDINGS)}
    spared = set(_spared(model))
    for name, owner, p in _trained(model):
        keys = _matrices(name, owner, p)
        if "max_dim" not in options and _is_vocabulary(owner, p, words):
            keys["max_dim"] = _MANY
        if name in spared or matrix_shape(tuple(p.shape)) is None or _is_norm(owner) or _is_bias(name, owner, p):
            keys["weight_decay"] = 0.0
        elif weight_decay is not None:
            keys["weight_decay"] = weight_decay
        found.setdefault(tuple(sorted(keys.items())), []).append((name, p))
    if not found:
        raise ValueError("no parameter of the model requires a gradient: is every layer frozen?")
    return [{"params": params, **options, **dict(keys)} for keys, params in found.items()]


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Each parameter that requires a gradient, once: its name in the model, and the module that it belongs to."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(prefix, recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                yield name, module, p


def _spared(model: nn.Module) -> Iterator[str]:
    """The parameters that modules ask not to decay, by their names in the model; timm's method gives a set of names."""
    for prefix, module in model.named_modules():
        method = getattr(module, "no_weight_decay", None)
        for name in method() if callable(method) else ():
            yield f"{prefix}.{name}" if prefix else name


def _is_vocabulary(owner: nn.Module, p: Tensor, words: set[int]) -> bool:
    """Whether a weight has a row for each word of a long vocabulary."""
    kinds = (*_EMBEDDINGS, nn.Linear)
    return isinstance(owner, kinds) and p.dim() == 2 and p.shape[0] > _MANY and p.shape[0] in words


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, by what torch and other libraries call theirs."""
    return "norm" in type(module).__name__.lower()


def _is_bias(name: str, owner: nn.Module, p: Tensor) -> bool:
    """Whether a parameter is called one; `b1` is one of experts where `w1` beside it has a dim more."""
    own = name.rpartition(".")[2]
    if own.startswith("bias") or own.endswith("_bias"):
        return True
    experts = any(q.dim() == 3 and q.shape[0] == p.shape[0] for q in owner.parameters(recurse=False))
    return p.dim() == 2 and experts and re.fullmatch(r"b(\d+|_.*)?", own) is not None


def _matrices(name: str, owner: nn.Module, p: Tensor) -> dict[str, Any]:
    """`batch_dims` and `splits` of a parameter, where they are not 0 and 1."""
    if _is_bias(name, owner, p) and p.dim() > 1:
        return {"batch_dims": p.dim() - 1}
    if p.dim() == 3 and p.shape[0] > 1 and not isinstance(owner, (_ConvNd, nn.Bilinear)):
        return {"batch_dims": 1}
    parts = _splits(name, owner, p)
    return {"splits": parts} if parts > 1 else {}


def _splits(name: str, owner: nn.Module, p: Tensor) -> int:
    """How many matrices lie one below the other in a parameter of two dims."""
    own = name.rpartition(".")[2]
    if p.dim() != 2:
        return 1
    if isinstance(owner, nn.MultiheadAttention):
        return 3 if own == "in_proj_weight" else 1
    if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
        # A projection, `weight_hr`, is one matrix.
        gates = next((count for kind, count in _GATES if isinstance(owner, kind)), 1)
        return gates if own.startswith(("weight_ih", "weight_hh")) else 1
    layer = name.split(".")[-2] if own == "weight" and "." in name else own
    parts = _FUSED.get(layer, 1)
    rows, columns = p.shape
    fits = rows == 3 * columns if parts == 3 and layer != "to_qkv" else rows % parts == 0
    return parts if fits else 1
