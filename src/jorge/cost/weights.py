"""Which weights are trained: from a module, named tensors, named shapes or a state dict, as tensors without memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jorge.cost.muon_partition import hidden, is_hidden
from jorge.validation import check_params

#: State dicts do not say what is a buffer; these names are those of torch's own modules.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Weight:
    """One trained parameter: its name, a meta tensor of its shape, dtype and layout, and whether Muon takes it."""

    name: str
    tensor: Tensor
    hidden: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The parameter's dtype."""
        return self.tensor.dtype


def weights_of(source: Any) -> tuple[Weight, ...]:
    """The weights that an optimizer would be given.

    Args:
        source: a module (its parameters that require a gradient), a state dict or other mapping of names to tensors
            or shapes, or an iterable of parameters or of `(name, tensor or shape)` pairs. A shape means float32.
            In a mapping of tensors, integers and the buffers of torch's batch norms are left out.

    Raises:
        TypeError: entries that are neither; parameters that cannot be optimized.
        ValueError: nothing to optimize; a lazy module that has not seen its first input.

    >>> [(w.name, w.shape) for w in weights_of({"weight": (4, 3), "bias": (4,)})]
    [('weight', (4, 3)), ('bias', (4,))]
    """
    taken: set[int] | None = None  # by Muon, where layers are known, not names alone
    entries: Iterable[Any]
    if isinstance(source, nn.Module):
        taken = {id(p) for p in hidden(source)}
        entries = [(name, p) for name, p in source.named_parameters() if p.requires_grad]
    elif isinstance(source, Mapping):
        entries = [(name, value) for name, value in source.items() if not _is_buffer(name, value)]
    elif isinstance(source, Iterable) and not isinstance(source, (Tensor, str)):
        entries = source
    else:
        raise TypeError(
            f"expected a module, named tensors, shapes or a state dict, got {type(source).__name__}: pass a model, "
            "model.named_parameters(), or {'name': (rows, columns)}"
        )
    found: dict[Any, Weight] = {}
    for index, entry in enumerate(entries):
        name, value = entry if _is_pair(entry) else (f"parameter {index}", entry)
        key = _identity(value) if isinstance(value, Tensor) else index
        if key not in found:
            tensor = _meta(str(name), value)
            is_taken = id(value) in taken if taken is not None else is_hidden(str(name), tensor.dim())
            found[key] = Weight(str(name), tensor, is_taken)
    if not found:
        raise ValueError("there are no parameters to optimize: is every layer frozen, or the iterator already used?")
    check_params({"params": [(weight.name, weight.tensor) for weight in found.values()]}, [], 0)
    return tuple(found.values())


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


def _is_buffer(name: Any, value: Any) -> bool:
    if str(name).rpartition(".")[2] in _BUFFERS:
        return True
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _identity(tensor: Tensor) -> Any:
    """Equal for tied parameters, also where they come as different views of one memory, as in a state dict."""
    if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
        return id(tensor)
    memory = tensor.untyped_storage()._cdata
    return (memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else id(tensor)


def _meta(name: str, value: Any) -> Tensor:
    if nn.parameter.is_lazy(value):
        raise ValueError(f"{name!r} has no shape yet: run the lazy module once, or build it with its sizes")
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta", requires_grad=False)
    if isinstance(value, (tuple, list)) and all(type(d) is int and d >= 0 for d in value):
        return torch.empty(tuple(value), device="meta", dtype=torch.float32)
    raise TypeError(f"{name!r} is a {type(value).__name__}: expected a tensor, or a shape as a tuple of whole numbers")
