"""What torch dispatches while something runs: operators, FLOPs, bytes moved, and waits of the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that start nothing though they are no views: they make room, or are views in all but name.
_BARE = ("empty", "new_empty", "_unsafe_view")
#: Operators that write what they are given without reading what was there.
_OVERWRITING = ("copy_", "_foreach_copy_", "fill_", "zero_")
#: Operators after which the host has waited: they hand it a number, or a shape that depends on data. `eigh` reads its
#: error codes back.
_WAITING = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2"),
    *("_linalg_eigh", "_linalg_check_errors"),
)
#: Operators that wait where they are given a mask, whose true places they count.
_INDEXING = ("index", "index_put", "index_put_")
#: Operators that copy, perhaps from a device to the host.
_COPYING = ("_to_copy", "copy_", "_foreach_copy_")


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched while it is active.

    `total`: operators. `launches`: those other than views, bare allocations
    and marks of the profiler. `flops`: of operators that torch's FLOP
    counter knows, by its formulas. `moved_bytes`: of the other launches, each reading its inputs and writing its
    outputs once, as they do when they are not fused and nothing stays in a cache. `waits`: operators for which the
    host has waited for the device.

    Args:
        device: whose waits count; those of any device if None. On a CPU a number that the host reads anyhow counts.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        from torch.utils.flop_counter import flop_registry  # not needed to import jorge.cost

        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = flop_registry
        self._device = device
        self.total = 0
        self.launches = 0
        self.flops = 0
        self.moved_bytes = 0
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        self.total += 1
        if func.is_view or func.namespace == "profiler" or packet.__name__.startswith(_BARE):
            return result
        self.launches += 1
        if packet in self._formulas:
            self.flops += self._formulas[packet](*args, **kwargs, out_val=result)
        else:
            self.moved_bytes += _moved(func, args, kwargs, result)
        self.waits += self._waits(packet.__name__, args, kwargs, result)
        return result

    def _waits(self, name: str, args: Any, kwargs: Any, result: Any) -> bool:
        if name in _COPYING:
            given, written = _tensors([*args, *kwargs.values()]), _tensors([args[:1], result])
            return any(t.is_cuda for t in given) and any(t.device.type == "cpu" for t in written)
        if name in _INDEXING and not any(t.dtype is torch.bool for t in _tensors(args[1])):
            return False
        return name in (*_WAITING, *_INDEXING) and any(self._is_watched(t) for t in _tensors([*args, *kwargs.values()]))

    def _is_watched(self, tensor: Tensor) -> bool:
        return self._device is None or tensor.device.type == self._device.type


def _moved(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Bytes that an operator reads and writes; a tensor given twice is read once."""
    read: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {id(t): t for t in _tensors(result)}
    overwrites = func.overloadpacket.__name__ in _OVERWRITING
    for index, parameter in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(parameter.name)
        writes = parameter.alias_info is not None and parameter.alias_info.is_write
        for tensor in _tensors(value):
            if writes:
                written[id(tensor)] = tensor
            if not (writes and overwrites):
                read[id(tensor)] = tensor
    return sum(_nbytes(t) for t in read.values()) + sum(_nbytes(t) for t in written.values())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _nbytes(tensor: Tensor) -> int:
    """Bytes of the elements that lie in memory: an expanded tensor has fewer than its shape says."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
