"""A run of sections within a budget of seconds: what each finds is on disk as soon as it ends."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Session:
    """The device, the time left, and what has been found.

    Args:
        device: a CUDA device, or the CPU to show that everything runs.
        budget: seconds for all sections.
        out: a JSON file, or `None`.
        tiny: small sizes everywhere.
    """

    def __init__(self, device: torch.device, budget: float, out: Path | None, *, tiny: bool) -> None:
        self.device, self.out, self.tiny = device, out, tiny
        self.cuda = device.type == "cuda"
        self.found: dict[str, Any] = {}
        self._end = time.monotonic() + budget

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def say(self, line: str) -> None:
        """Tell who watches."""
        print(line, file=sys.stderr, flush=True)

    def section(self, name: str, needs: float, body: Callable[[], Any]) -> None:
        """Run a section if there is time for it. One that fails is a finding, not the end."""
        if self.left() < needs:
            self.keep(name, {"skipped": f"{self.left():.0f} s are left of the {needs:.0f} that it needs"})
            return
        self.say(f"--- {name} ({self.left():.0f} s left)")
        try:
            self.keep(name, body())
        except Exception as error:
            traceback.print_exc()
            self.keep(name, {"failed": first_line(error)})
        self.free()

    def keep(self, name: str, value: Any) -> None:
        """Remember what a section has found, and write all that there is."""
        self.found[name] = value
        if self.out is not None:
            self.out.write_text(json.dumps(self.found, indent=1) + "\n")

    def free(self) -> None:
        """Give back memory that nothing holds any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


class Timer:
    """Milliseconds between two points of the device's time, and of the host's, which does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[Any] = []
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]

    def __enter__(self) -> Timer:
        if self._events:
            self._events[0].record()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._host = time.perf_counter() - self._start
        if self._events:
            self._events[1].record()

    @property
    def host_ms(self) -> float:
        """Of the host."""
        return self._host * 1e3

    @property
    def ms(self) -> float:
        """Of the device; waits for it."""
        if not self._events:
            return self.host_ms
        self._events[1].synchronize()
        elapsed: float = self._events[0].elapsed_time(self._events[1])
        return elapsed


def best_ms(session: Session, call: Callable[[], object], repeats: int) -> float:
    """Milliseconds a call, of `repeats` in a row; the best of three."""
    call()
    taken = []
    for _ in range(3):
        with Timer(session.device) as timer:
            for _ in range(repeats):
                call()
        taken.append(timer.ms / repeats)
    return min(taken)
