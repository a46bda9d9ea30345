"""A stand-in for CUDA graphs on a CPU: the operators of a step on fixed addresses, and what runs them again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What a capture on a GPU ends with an error at: the host waits, or pages of it are pinned or copied from.
_FORBIDDEN = {"_local_scalar_dense", "equal", "nonzero", "_pin_memory", "lift_fresh"}


class Recorder:
    """As :class:`jorge.graphs.CudaRecorder`, of operators.

    Attributes:
        warmed, captured, replayed: how often so far, over all recorders since :meth:`forget`.
    """

    warmed = captured = replayed = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    @classmethod
    def forget(cls) -> None:
        cls.warmed = cls.captured = cls.replayed = 0

    def warm(self, body: Callable[[], None]) -> None:
        Recorder.warmed += 1
        body()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        Recorder.captured += 1
        tape = Tape()
        with tape:
            body()
        tape.undo()
        del body  # a graph knows no Python

        def replay() -> None:
            Recorder.replayed += 1
            tape.replay()

        return replay


class Plain(Recorder):
    """Takes the same steps without recording or counting them."""

    def warm(self, body: Callable[[], None]) -> None:
        body()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        return body


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators with the tensors that they read and wrote; nothing has changed after :meth:`undo`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operators: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._mine: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operator, and run it for the sake of its result."""
        name = func.overloadpacket.__name__
        if name in _FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for tensor in _tensors((args, kwargs)):
            place = tensor.untyped_storage().data_ptr()
            if place not in self._mine and place not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._before[place] = (whole, whole.clone())
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        self._mine |= {m.untyped_storage().data_ptr() for m in made} - self._before.keys()
        self._operators.append((func, args, kwargs or {}, made))
        return result

    def undo(self) -> None:
        """Put back what the operators wrote that was there before."""
        for whole, before in self._before.values():
            whole.copy_(before)
        self._before = {}

    def replay(self) -> None:
        """Run the operators on the same memory."""
        for func, args, kwargs, made in self._operators:
            for there, found in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if found.untyped_storage().data_ptr() != there.untyped_storage().data_ptr():
                    there.copy_(found)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
