"""What a call asks of the device: operators, kernel launches, and waits of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operators after which the host has waited: they hand it a number, or a shape that depends on data. `eigh` reads
#: its error codes back.
WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "_linalg_eigh", "_linalg_check_errors"}

#: Operators that make room and write nothing.
ALLOCATING = {"empty", "empty_like", "new_empty", "empty_strided"}

#: Operators that copy, perhaps from the GPU to the host.
COPYING = {"_to_copy", "copy_", "_foreach_copy_"}


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _waits(name: str, device: torch.device, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether the host has waited for the device. On a CPU a number that the host reads anyhow counts as well."""
    if name in COPYING:
        inputs, outputs = _tensors((args, kwargs)), _tensors((args[:1], result))
        return any(t.is_cuda for t in inputs) and any(not t.is_cuda for t in outputs)
    return name in WAITING and any(t.device.type == device.type for t in _tensors((args, kwargs)))


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that are dispatched inside the block, those of them that compute, and the waits."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.total = 0
        self.computing = 0
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += 1
        self.computing += not (func.is_view or func.overloadpacket.__name__ in ALLOCATING)
        self.waits += _waits(func.overloadpacket.__name__, self.device, args, kwargs, result)
        return result


def operators(call: Callable[[], object], device: torch.device) -> Operators:
    """Count the operators of a call."""
    counter = Operators(device)
    with counter:
        call()
    return counter


def kernel_launches(call: Callable[[], object], device: torch.device) -> int | None:
    """Kernels that a call launches on the GPU, by the profiler; `None` on a CPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiled:
        call()
        torch.cuda.synchronize(device)
    return sum("LaunchKernel" in event.name for event in profiled.events())


def gpu_waits(call: Callable[[], object], device: torch.device) -> int | None:
    """Waits of the host for the GPU by torch's own watch, which sees what no operator shows; `None` on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
