"""How much memory a call needs at its peak and leaves allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

#: The name under which a call appears in the profile.
_MARK = "jorge_lab.cost.allocation"


@dataclass(frozen=True)
class Allocation:
    """Bytes above what was allocated when the call began: at the most, and at its end."""

    peak: int
    held: int


def allocations(calls: Iterable[Callable[[], object]], device: torch.device) -> list[Allocation]:
    """Peak and remaining bytes of the tensors that each of some calls allocates, one call after the other.

    On a GPU these are the caching allocator's own counters. On a CPU they are exact too: every allocation and every
    release that torch reports to its profiler, added up in the order of time. What was allocated before the first call
    and is released in one of them is not seen there, so the first call should build what is measured. Scratch memory
    that a library takes without torch's allocator is in neither.
    """
    if device.type == "cuda":
        return [_allocation_on_gpu(call, device) for call in calls]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        for call in calls:
            with record_function(_MARK):
                call()
    assert profiled.profiler is not None
    results: Any = profiled.profiler.kineto_results
    # In the order of time: a call's beginning (no bytes), its allocations and releases, its end (no bytes).
    events: list[tuple[int, int | None]] = []
    for event in results.events():
        if event.name() == "[memory]":
            events.append((event.start_ns(), event.nbytes()))
        elif event.name() == _MARK:
            events += [(event.start_ns(), None), (event.start_ns() + event.duration_ns(), None)]
    return _segments([nbytes for _, nbytes in sorted(events, key=lambda event: event[0])])


def _allocation_on_gpu(call: Callable[[], object], device: torch.device) -> Allocation:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return Allocation(peak - before, torch.cuda.memory_allocated(device) - before)


def _segments(changes: Iterable[int | None]) -> list[Allocation]:
    """The sums between each first and second `None`."""
    found: list[Allocation] = []
    inside, peak, held = False, 0, 0
    for nbytes in changes:
        if nbytes is None:
            if inside:
                found.append(Allocation(peak, held))
            inside, peak, held = not inside, 0, 0
        else:
            held += nbytes
            peak = max(peak, held)
    return found
