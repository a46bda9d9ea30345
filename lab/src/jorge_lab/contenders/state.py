"""The state of an optimizer, whichever way it keeps it: how many bytes it is, and how it is put back to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in an optimizer's state; memory that several tensors share counts once.

    State that is nested (lists, dicts, objects) is searched, and so is what SINGD and SIRFShampoo keep beside their
    `state` and list in `STATE_ATTRIBUTES`. The parameters and their gradients are not state.
    """
    parts = [optimizer, *getattr(optimizer, "parts", ())]
    held = [part.state for part in parts]
    held += [getattr(part, name) for part in parts for name in getattr(part, "STATE_ATTRIBUTES", ())]
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(held, set())}
    for group in optimizer.param_groups:
        for p in group["params"]:
            for tensor in (p, p.grad):
                if tensor is not None:
                    sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a `state_dict()`, with tensors of the dtypes that were saved.

    Torch casts what it loads to the dtype of the parameter, which rounds the float64 numbers that PSGD-Kron keeps.

    Raises:
        whatever the optimizer's `load_state_dict` does where the state is not of such an optimizer.
    """
    optimizer.load_state_dict(saved)
    _uncast(saved, optimizer.state_dict())


def _uncast(saved: Any, loaded: Any) -> Any:
    """`loaded`, with each tensor that has another dtype than in `saved` replaced in the dict or list that holds it."""
    if isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved
    if isinstance(saved, dict):
        for key in saved.keys() & loaded.keys():
            loaded[key] = _uncast(saved[key], loaded[key])
    elif isinstance(saved, list):
        loaded[:] = map(_uncast, saved, loaded)
    return loaded


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """All tensors within `value`, but for keys of dicts and for modules."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, (nn.Module, type, str, bytes)):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        inner: Any = value.values()
    elif isinstance(value, (list, tuple, set)):
        inner = value
    else:
        inner = getattr(value, "__dict__", {}).values()
    for part in inner:
        yield from _tensors(part, seen)
