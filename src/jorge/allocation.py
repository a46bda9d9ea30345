"""The tensors of a work set's state: made here, and cut into the views that `optimizer.state` holds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from jorge.arrange import WorkSet
from jorge.methods import METHODS
from jorge.options import Options
from jorge.routing import layout, stored_dtype

T = TypeVar("T")
#: Where a tensor can be found: the place of a parameter, and the key of its view.
Address = tuple[int, str]
#: What numbers are before any gradient where they are not 0.
_START = {"schatten_scale": 1.0}


@dataclass(frozen=True)
class SetState(Generic[T]):
    """The state of a work set: its tensors, or where to find them.

    Args:
        buffers: of each shape group, by name, `[count, *part]`; `row_var` and `col_var` are `[count, side]`.
        scalars: by name, `[total, …]`: `adam_step` of all parts, `graft_length` and `schatten_scale` of the matrices.
        stacks: of each stack by name, `[count, …]`.
    """

    buffers: list[dict[str, T]] = field(default_factory=list)
    scalars: dict[str, T] = field(default_factory=dict)
    stacks: list[dict[str, T]] = field(default_factory=list)


def allocate(
    work: WorkSet, options: Options, device: torch.device
) -> tuple[SetState[Address], list[tuple[int, str, Tensor]]]:
    """New tensors for a work set, as they are before any gradient.

    Returns:
        where to find them again, and their views by place and key; the views alone hold the tensors.
    """
    found, views = SetState[Address](), list[tuple[int, str, Tensor]]()
    groups = work.groups[: len(work.groups) - len(work.matrices)] + work.sources
    layouts = [layout(group.spec.shape, group.spec.dtype, options) for group in groups]
    for group, kept in zip(groups, layouts, strict=True):
        segments = group.is_segmented
        for name, dtype in kept.buffers.items():
            shape = (len(group.places), *group.spec.local) if segments else (group.count, *group.local)
            whole = torch.zeros(shape, dtype=dtype, device=device).view(len(group.places), *group.spec.local)
            views += [(place, name, whole[i]) for i, place in enumerate(group.places)]
        for name, (shape, dtype) in kept.sides.items():
            side = torch.zeros(group.count, shape[-1], dtype=dtype, device=device)
            whole = side.view(len(group.places), *shape)
            views += [(place, name, whole[i]) for i, place in enumerate(group.places)]
        addresses = {name: (group.places[0], name) for name in (*kept.buffers, *kept.sides)}
        found.buffers.extend([addresses] * (group.parts if segments else 1))
    for name in dict.fromkeys(name for kept in layouts for name in kept.scalars):
        having = [(group, kept) for group, kept in zip(groups, layouts, strict=True) if name in kept.scalars]
        shape, dtype = having[0][1].scalars[name]
        each = shape[1:] if having[0][0].parts > 1 else shape
        total = torch.full(
            (sum(group.count for group, _ in having), *each), _START.get(name, 0), dtype=dtype, device=device
        )
        start = 0
        for group, kept in having:
            mine = total[start : start + group.count]
            if group.is_segmented:  # matrix by matrix, not parameter by parameter
                mine = mine.view(group.parts, len(group.places), *each).transpose(0, 1)
            mine = mine.view(len(group.places), *kept.scalars[name][0])
            views += [(place, name, mine[i]) for i, place in enumerate(group.places)]
            start += group.count
        found.scalars[name] = (having[0][0].places[0], name)
    for stack in work.stacks:
        dtype = stored_dtype(work.sources[stack.parts[0].source].spec.dtype, options)
        state = METHODS[options.method].initial(stack.count, stack.shape, stack.sides, dtype=dtype, device=device)
        if options.measures_schatten:
            state["quartics"] = torch.ones(stack.count, 2, dtype=work.compute, device=device)
        first, start = len(views), 0
        for part in stack.parts:
            here = Counter(work.cut[part.group].places)
            for place in work.sources[part.source].places:  # one view each, of no blocks where none are kept here
                stop = start + here[place] * part.grid.blocks * work.cut[part.group].parts
                for name, tensor in state.items():
                    key = _other_side(name) if part.transposed else name
                    views.append((place, f"{key}.{part.number}", tensor[start:stop]))
                start = stop
        # The first parameter has one view of each tensor, in the order of the state.
        found.stacks.append({name: views[first + i][:2] for i, name in enumerate(state)})
    return found, views


def _other_side(name: str) -> str:
    """The name of a tensor of the left side for the right one, and the reverse."""
    side, _, rest = name.partition("_")
    other = {"left": "right", "right": "left"}.get(side, side)
    return f"{other}_{rest}" if rest else other


class Constants:
    """Small constant tensors on a device by what is in them, the last few that were asked for.

    They are copied there without waiting for the device. What a CUDA graph was captured with is never forgotten: every
    replay reads it.
    """

    def __init__(self, device: torch.device, most: int = 32) -> None:
        self.device, self.most = device, most
        self._kept: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._captured: dict[tuple[Any, ...], Tensor] = {}

    def get(self, values: tuple[Any, ...]) -> Tensor:
        """`[len(values)]` on the device.

        Raises:
            RuntimeError: it is not there yet, and a CUDA graph is being captured, in which no memory may be pinned.
        """
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        found = self._captured.get(values)
        if found is None and values in self._kept:
            self._kept.move_to_end(values)
            found = self._kept[values]
        if found is not None:
            if capturing:
                self._captured[values] = found
            return found
        if capturing:
            raise RuntimeError(
                "step() is being captured in a CUDA graph with another set of gradients than any step before: take a "
                "step with these before the capture"
            )
        made = torch.tensor(values, device="cpu")  # whatever torch's default device is
        if self.device.type == "cuda":
            made = made.pin_memory()
        self._kept[values] = made = made.to(self.device, non_blocking=True)
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return made
