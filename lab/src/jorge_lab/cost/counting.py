"""What a call asks of the device: operators, kernel launches, and waits of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from jorge.cost.counter import Meter


def counted(call: Callable[[], object], device: torch.device) -> Meter:
    """What a call dispatches, with the waits for a device."""
    meter = Meter(device)
    with meter:
        call()
    return meter


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
