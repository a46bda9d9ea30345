"""Steps as CUDA graphs that the optimizer captures itself: one for each kind of step, which is then replayed.

A graph reads and writes the addresses that it was captured with, and holds every number of the host as it was then. So
gradients are copied to where it reads them, the numbers that schedules change lie on the device, and all else that it
holds is looked at before each replay (:meth:`Graphs.still_hold`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from jorge.options import FIELDS, Options
from jorge.scalars import DeviceScalars

#: A step takes numbers from the device where schedules change them; the values of all other options are in a graph.
_BAKED = tuple(name for name in FIELDS if name not in ("lr", "momentum", "weight_decay", "betas"))
#: So many kinds of step are captured at most: a staggered schedule with a long interval has more.
_MOST = 32


class Recorder(Protocol):
    """Captures what is launched on a device."""

    def warm(self, body: Callable[[], None]) -> None:
        """Run it as it will be captured, so that nothing is left to be made in the capture."""

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Capture it without running it; what is returned runs it with what lies at its addresses by then."""


class CudaRecorder:
    """Torch's CUDA graphs, which share one pool of memory: they are replayed one after the other.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, body: Callable[[], None]) -> None:
        """See :class:`Recorder`. It runs on the stream of the captures, where cuBLAS then has its workspace."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            body()
        current.wait_stream(self._stream)

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """See :class:`Recorder`. What other threads do meanwhile, as loaders and NCCL's watchdog, is not in its way."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            body()
        replay: Callable[[], None] = graph.replay
        return replay


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one for captures on a device: torch keeps a workspace of cuBLAS, of many MB, for each that is used."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


#: Of each type of device that has graphs.
RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}


class Graphs:
    """The graphs of a param group's step on one device, and what is at fixed addresses for them.

    Args:
        device: of a type that :data:`RECORDERS` has.
        dtype: of the numbers that schedules change.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.scalars = DeviceScalars(device, dtype)
        self._device = device
        with torch.inference_mode(False):
            self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._baked: Hashable = None
        self._given: Hashable = None
        self._last: Hashable = None
        self.release()

    def release(self) -> None:
        """Give back the graphs and all that is there for them; later steps are captured anew."""
        self.rooms: list[list[Tensor]] = []
        self._recorder: Recorder | None = None
        self._warm: dict[Hashable, None] = {}
        self._replays: dict[Hashable, Callable[[], None]] = {}
        self._held: list[object] = []

    def still_hold(self, options: Options, params: list[Tensor], given: Hashable) -> bool:
        """Whether this step can be one of a graph; what no longer holds is released.

        Args:
            options: of the param group.
            params: its parameters on the device.
            given: which of them have a gradient. The graphs are for one such set: another one has to come twice in a
                row before they are for that, so that a step that lacks a gradient now and then costs no capture.
        """
        weights = [(p.data_ptr(), p.stride()) for p in params]
        baked = (*(getattr(options, name) for name in _BAKED), options.decays, weights)
        if baked != self._baked:
            self.release()
            self._baked = baked
        repeated, self._last = given == self._last, given
        if given != self._given:
            if self._given is not None and not repeated:
                return False
            self.release()
            self._given = given
        return True

    def finite(self, flag: Tensor) -> Tensor:
        """The same flag, a 0-dim boolean, where graphs read it."""
        return self._finite.copy_(flag)

    def run(self, kind: Hashable, body: Callable[[], None], held: object) -> None:
        """Run a step: the first of its kind as it is, the second and all later ones by a graph.

        Args:
            kind: what all steps that do the same on the host share.
            body: the step.
            held: what it reads beside the state, the parameters and what is here; it is kept as long as the graph.
        """
        if kind in self._replays:
            self._replays[kind]()
            return
        if self._recorder is None:
            self._recorder = RECORDERS[self._device.type](self._device)
        if kind in self._warm and len(self._replays) < _MOST:
            self._replays[kind] = self._recorder.capture(body)
            self._held.append(held)
            self._replays[kind]()
            return
        self._warm[kind] = None
        if len(self._warm) > 4 * _MOST:  # kinds that do not come again
            del self._warm[next(iter(self._warm))]
        self._recorder.warm(body)
